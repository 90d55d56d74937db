"""What the documents say is so: hooks, examples, commands."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ptkit
import ptkit.testing
from ptkit import hookspecs
from ptkit.cli import COMMANDS
from ptkit.registry import COLLECTED

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
READMES = ["README.md", "README.zh.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def signatures(code: str) -> dict[str, str]:
    """The functions of a module as they are written, by name: ``name(x: int) -> str``."""
    found = {}
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("ptkit_"):
            returns = ast.unparse(node.returns) if node.returns else ""
            found[node.name] = f"{node.name}({ast.unparse(node.args)}) -> {returns}"
    return found


def hook_sections() -> dict[str, str]:
    """What the guide says of each hook, by its heading."""
    parts = re.split(r"^(?:### `(ptkit_.*)`|##+ .*)$", GUIDE, flags=re.MULTILINE)
    return {parts[i]: parts[i + 1] for i in range(1, len(parts), 2) if parts[i]}


def test_every_hook_has_a_section_with_its_signature_and_an_example() -> None:
    expected = signatures(inspect.getsource(hookspecs))
    assert set(hook_sections()) == set(expected.values())
    everywhere = blocks(GUIDE, "python")
    for heading, text in hook_sections().items():
        name = heading.split("(")[0]
        (example,) = [code for code in blocks(text, "python") if f"def {name}(" in code]
        compile(example, name, "exec")
        assert "@ptkit.hookimpl\n" in example
        assert example in everywhere


def test_the_guide_names_no_hook_that_does_not_exist() -> None:
    known = signatures(inspect.getsource(hookspecs))
    assert set(re.findall(r"\bptkit_(?:register|before|after|on|resolve|recipe)\w*", GUIDE)) == set(
        known
    )


def test_the_guide_has_the_contract_check_of_every_component() -> None:
    rows = dict(re.findall(r"^\| `(ptkit_register_\w+)` \| .* \| (.*?) ?\|$", GUIDE, re.MULTILINE))
    assert set(rows) == {section.hook for section in COLLECTED}
    checks = {cell.strip("`") for cell in rows.values()} - {""}
    assert checks == {name for name in ptkit.testing.__all__ if name.startswith("check_")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the guide, written as they stand."""
    folder = tmp_path_factory.mktemp("guide")
    for code in blocks(GUIDE, "python"):
        path = folder / code.splitlines()[0].removeprefix("# ")
        assert not path.exists(), f"{path.name} is there twice"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    return folder


def python(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guides_examples_pass_their_own_tests(written: Path) -> None:
    project = tomllib.loads(blocks(GUIDE, "toml")[0])
    assert project["project"]["entry-points"]["ptkit"] == {"haiku": "ptkit_haiku"}
    python(written, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")


def test_the_guides_examples_are_plugins_that_load(written: Path) -> None:
    """All at once, without a failure, and without importing torch."""
    for path in sorted((written / "ptkit_haiku").glob("*.py")):
        assert path.name in ("command.py", "__init__.py") or "hookimpl" in path.read_text()
    code = """
import importlib, pathlib, sys
from ptkit.registry import Owner, empty_registry
registry = empty_registry()
for path in sorted(pathlib.Path("ptkit_haiku").glob("*.py")):
    module = importlib.import_module(f"ptkit_haiku.{path.stem}".removesuffix(".__init__"))
    if path.stem != "command":
        registry.register(module, Owner(path.stem, "ptkit-haiku", "0.1.0"))
assert not registry.failures + registry.warnings, registry.failures + registry.warnings
assert not registry.collisions, registry.collisions
assert "torch" not in sys.modules
"""
    python(written, "-c", code)


def test_the_guides_recipe_loads(written: Path) -> None:
    (recipe,) = [block for block in blocks(GUIDE, "toml") if "ptkit = 1" in block]
    (written / "recipe.toml").write_text(recipe, encoding="utf-8")
    (written / "poems.txt").write_text("old pond/a frog jumps in/sound of water\n")
    code = """
import ptkit, ptkit_haiku
from ptkit.registry import Owner, load_plugins
registry = load_plugins()
registry.register(ptkit_haiku, Owner("haiku", "ptkit-haiku", "0.1.0"))
recipe = ptkit.Recipe.load("recipe.toml", registry=registry)
assert recipe.dataset.registered.component is ptkit_haiku.HaikuFormat
"""
    python(written, "-c", code)


def test_the_guides_commands_exist() -> None:
    commands = set(re.findall(r"^(?:python -m )?ptkit (\w+)|`ptkit (\w+)", GUIDE, re.MULTILINE))
    assert commands
    assert {first or second for first, second in commands} <= set(COMMANDS)


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_links_of_the_guide_lead_somewhere() -> None:
    links = set(re.findall(r"\]\(#(.*?)\)", GUIDE))
    assert links
    assert links <= anchors(GUIDE)
    for target in re.findall(r"\]\(([^)#:]+)\)", prose(GUIDE)):
        assert (ROOT / "plugins" / target).exists(), target


def reference(module: str) -> set[str]:
    """The names in the guide's table of the public names of a module."""
    table = GUIDE.split("## Reference")[1].split(f"| `{module}` |")[1].split("\n\n")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = re.findall(r"`(\w+)`", " ".join(cells))
    assert len(names) == len(set(names))
    return set(names)


def test_the_reference_is_the_public_door() -> None:
    """A name that isn't in the guide isn't exported, and none is named that isn't there."""
    assert reference("ptkit") == set(ptkit.__all__)
    assert reference("ptkit.testing") == {*ptkit.testing.__all__, "fixtures"}


@pytest.mark.parametrize("name", READMES)
def test_commands_in_the_readme_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    commands = set(re.findall(r"`ptkit (\w+)", text))
    assert commands
    assert commands <= set(COMMANDS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("name", READMES)
def test_links_in_the_readme_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_readmes_show_the_same_code() -> None:
    english, chinese = ((ROOT / n).read_text(encoding="utf-8") for n in READMES)
    strip = re.compile(r"#.*")
    for language in ("toml", "python"):
        first, second = (
            [strip.sub("", b) for b in blocks(t, language)] for t in (english, chinese)
        )
        assert first == second


def test_ci_calls_the_readmes_test_line() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
