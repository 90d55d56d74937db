"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import ptkit
from ptkit import cli
from ptkit.commands import new_recipe, plugins
from ptkit.registry import Owner, empty_registry

ROOT = Path(ptkit.__file__).parents[1]


def python(code: str, *, path: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join([str(path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search, **environment},
        check=False,
    )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the command line in this process; returns (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


# ------------------------------------------------------------------------------ the group


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from ptkit.cli import main; code = main(['--help']); "
        "names = {'torch', 'transformers', 'pydantic', 'pluggy', 'rich', 'numpy'};"
        "heavy = names & set(sys.modules);"
        "commands = [m for m in sys.modules if m.startswith('ptkit.commands')];"
        "sys.exit(f'{heavy} {commands}' if heavy or commands or code else 0)"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    for name, entry in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.help in done.stdout


def test_python_m(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptkit", "run", "no.toml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "no.toml: no such file; `ptkit new recipe` writes one\n"


def commands(entries: Any = cli.COMMANDS) -> list[tuple[str, Any]]:
    return [
        pair
        for name, entry in entries.items()
        for pair in ([(name, entry)] if entry.module else commands(entry.commands))
    ]


@pytest.mark.parametrize(("name", "entry"), commands())
def test_the_help_of_a_command_begins_with_its_one_liner(name: str, entry: Any) -> None:
    command = entry.load(name)
    assert command.name == name
    assert command.help.splitlines()[0] == entry.help


def test_version(run: Any) -> None:
    assert run("--version") == (0, f"ptkit {ptkit.__version__}\n", "")


def test_usage_errors(run: Any) -> None:
    code, out, err = run("rnu")
    assert (code, out) == (2, "")
    assert "no such command 'rnu' (did you mean 'run'?)" in err
    assert "no such command 'zzz'\n" in run("zzz")[2]
    assert "no such command 'recipes' (did you mean 'recipe'?)" in run("new", "recipes")[2]
    assert "No such option" in run("--zzz")[2]
    assert run("run")[0] == 2
    assert run("new", "--help")[0] == 0


def test_an_error_of_ours_is_its_lines(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ptkit.DataError("a.json:1: bad", "a.json:2: 坏")

    monkeypatch.setattr(plugins, "describe", fail)
    assert run("plugins") == (2, "", "a.json:1: bad\na.json:2: 坏\n")


def test_any_other_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plugins, "describe", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plugins"])


def test_ctrl_c(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plugins, "describe", interrupt)
    code, out, err = run("plugins")
    assert (code, out, err.strip()) == (130, "", "interrupted")


# ------------------------------------------------------------------------------ plugins

MODULE = """\
import ptkit

class Length(ptkit.Metric):
    name = "fake-length"
    scores = "text"
    def score(self, pairs):
        return {}

@ptkit.hookimpl
def ptkit_register_metrics():
    return [Length]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with two installed distributions, one of them broken."""
    for name, module in {"fake_good": MODULE, "fake_bad": "import no_such_module_at_all"}.items():
        (tmp_path / f"{name}.py").write_text(module)
        info = tmp_path / f"{name}-1.5.dist-info"
        info.mkdir()
        project = name.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[ptkit]\n{project} = {name}\n")
    return tmp_path


def test_plugins_lists_what_is_installed_without_torch(site: Path) -> None:
    code = (
        "import sys; from ptkit.cli import main; code = main(['plugins', '--json']); "
        "sys.exit(code or ('torch' in sys.modules) or ('transformers' in sys.modules))"
    )
    done = python(code, path=site)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    by_name = {plugin["plugin"]: plugin for plugin in report["plugins"]}
    assert by_name["fake-good"] == {
        "distribution": "fake-good",
        "version": "1.5",
        "plugin": "fake-good",
        "status": "ok",
        "adds": {"metrics": ["fake-length"]},
        "problems": [],
    }
    assert by_name["fake-bad"]["status"] == "failed"
    assert by_name["fake-bad"]["problems"] == [
        "can't be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'"
    ]


def test_plugins_as_aligned_text_when_piped(site: Path) -> None:
    code = "from ptkit.cli import main; main(['plugins'])"
    done = python(code, path=site, PTKIT_DISABLE_PLUGINS="fake-good")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["distribution", "version", "plugin", "adds"]
    good = next(line for line in lines if line.startswith("fake-good"))
    assert good.split() == ["fake-good", "1.5", "fake-good", "disabled"]
    assert good.index("disabled") == lines[0].index("adds")
    assert lines[-1] == (
        "problem: plugin 'fake-bad' (fake-bad 1.5): can't be imported: "
        "ModuleNotFoundError: No module named 'no_such_module_at_all'"
    )


def test_plugins_as_a_table_on_a_terminal(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = {
        "plugins": [
            {
                "distribution": "ptkit-a",
                "version": "1",
                "plugin": "a",
                "status": "failed",
                "adds": {"metrics": ["m", "n"], "task": ["[bold]"]},
            }
        ],
        "problems": ["[red]"],
    }
    monkeypatch.setattr(plugins, "describe", lambda _: report)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = run("plugins")
    assert code == 0
    assert "│ ptkit-a" in out
    assert "failed; metrics: m, n; task: [bold]" in out
    assert "problem: [red]" in out


def test_no_plugins_at_all(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptkit.registry.load_plugins", empty_registry)
    out = "no plugin is installed; install ptkit[all] for those of ptkit\n"
    assert run("plugins") == (0, out, "")


# ------------------------------------------------------------------------------ schema


def test_schema_prints_json(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptkit.registry.load_plugins", empty_registry)
    code, out, _ = run("schema")
    assert code == 0
    assert json.loads(out)["title"] == "ptkit recipe"


# ------------------------------------------------------------------------------ new recipe


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "first.toml").write_text("# 第一 recipe.\n#\n# More.\nptkit = 1\n", encoding="utf-8")
    (folder / "none.toml").write_text("ptkit = 1\n")
    monkeypatch.setattr(new_recipe, "recipes_folder", lambda: folder)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return folder


def test_recipes_are_listed_by_their_first_comment(run: Any, recipes: Path) -> None:
    assert run("new", "recipe", "--list") == (0, "first  第一 recipe.\nnone\n", "")


def test_a_recipe_is_written_once(run: Any, recipes: Path) -> None:
    written = "wrote first.toml; next: ptkit run first.toml\n"
    assert run("new", "recipe", "first") == (0, written, "")
    assert Path("first.toml").read_bytes() == (recipes / "first.toml").read_bytes()
    exists = "first.toml: exists already; choose another file with --out\n"
    assert run("new", "recipe", "first.toml") == (2, "", exists)
    assert run("new", "recipe", "first", "--out", "mine.toml")[0] == 0
    assert Path("mine.toml").is_file()


def test_recipes_that_cannot_be_written(run: Any, recipes: Path) -> None:
    unknown = "no recipe 'frist' (did you mean 'first'?); there are: first, none\n"
    assert run("new", "recipe", "frist") == (2, "", unknown)
    assert run("new", "recipe", "../recipes/first")[0] == 2
    nowhere = "no/x.toml: can't be written: No such file or directory\n"
    assert run("new", "recipe", "first", "--out", "no/x.toml") == (2, "", nowhere)
    assert "which recipe? Give a NAME, or --list to see them" in run("new", "recipe")[2]


class Scripts:
    """A plugin that knows scripts which begin with "ours"."""

    @ptkit.hookimpl
    def ptkit_recipe_from_script(self, text: str, name: str) -> str | None:
        if "'" in text:
            raise ptkit.RecipeError(f"{name}:1: a quote")
        return f"# {name}\nptkit = 1\n" if text.startswith("ours") else None


@pytest.fixture
def scripts(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = empty_registry()
    registry.register(Scripts(), Owner("scripts", "ptkit-scripts", "1.0"))
    monkeypatch.setattr("ptkit.registry.load_plugins", lambda: registry)


def test_a_recipe_from_a_script(run: Any, scripts: None, tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text("ours")
    toml = path.with_suffix(".toml")
    written = f"wrote {toml}; read its comments, then: ptkit check {toml}\n"
    assert run("new", "recipe", "--from-script", str(path)) == (0, written, "")
    assert toml.read_text() == f"# {path}\nptkit = 1\n"
    again = run("new", "recipe", "--from-script", str(path))
    assert again == (2, "", f"{toml}: exists already; choose another file with --out\n")
    assert run("new", "recipe", "--from-script", str(path), "--out", "mine.toml")[0] == 0
    assert Path("mine.toml").is_file()


def test_scripts_that_give_no_recipe(run: Any, scripts: None) -> None:
    def refused(content: bytes) -> str:
        Path("x.sh").write_bytes(content)
        code, out, err = run("new", "recipe", "--from-script", "x.sh")
        assert (code, out) == (2, "")
        return str(err)

    assert refused(b"it's") == "x.sh:1: a quote\n"
    assert refused(b"theirs") == "x.sh: is no training script that an installed plugin knows\n"
    assert refused(b"ours\n\xff") == "x.sh:2: not UTF-8; re-save the file as UTF-8\n"
    missing = run("new", "recipe", "--from-script", "no.sh")
    assert missing == (2, "", "no.sh: no such file\n")
    Path("folder").mkdir()
    folder = run("new", "recipe", "--from-script", "folder")
    assert folder == (2, "", "folder: can't be read: Is a directory\n")
    both = run("new", "recipe", "first", "--from-script", "x.sh")
    assert (both[0], "give a NAME or --from-script, not both" in both[2]) == (2, True)
    assert not list(Path.cwd().glob("*.toml"))


def test_the_recipes_that_come_with_ptkit_are_found() -> None:
    folder = new_recipe.recipes_folder()
    assert {"quickstart", "adgen-chatglm2-6b"} <= {path.stem for path in folder.glob("*.toml")}


# ------------------------------------------------------------------------------ run


def test_run_loads_the_recipe_and_hands_it_to_the_engine(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    session: Any = ModuleType("ptkit.engine.session")
    session.run = lambda recipe, **options: calls.append((recipe, options))
    monkeypatch.setitem(sys.modules, "ptkit.engine.session", session)
    monkeypatch.setattr("ptkit.engine.session", session, raising=False)

    def load(path: Path, *, overrides: Any) -> Any:
        return SimpleNamespace(path=path, overrides=overrides)

    monkeypatch.setattr("ptkit.recipe.Recipe.load", load)
    arguments = ["--out", "o", "--device", "cpu", "--set", "a.b=1", "--set", "c.d=2"]
    assert run("run", "r.toml", *arguments) == (0, "", "")
    ((recipe, options),) = calls
    assert (recipe.path, recipe.overrides) == (Path("r.toml"), ("a.b=1", "c.d=2"))
    assert (options["out"], options["device"]) == (Path("o"), "cpu")


def test_run_refuses_a_bad_recipe_before_torch_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("ptkit = 1\n[train]\nmax_steps = 0\n")
    code = (
        "import sys; from ptkit.cli import main; "
        f"code = main(['run', {str(path)!r}]); sys.exit(99 if 'torch' in sys.modules else code)"
    )
    done = python(code)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"{path}: train.max_steps: must be at least 1, got 0"
    assert len(done.stderr.splitlines()) == 4
