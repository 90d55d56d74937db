"""What the documents say is so: hooks, examples, commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ptkit import hookspecs
from ptkit.cli import COMMANDS

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
READMES = ["README.md", "README.zh.md"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_guide_names_every_hook_and_no_other() -> None:
    known = {name for name in vars(hookspecs) if name.startswith("ptkit_")}
    named = set(re.findall(r"`(ptkit_\w+)\(", GUIDE))
    assert named == known


def test_the_guide_names_every_hooks_arguments() -> None:
    for name, arguments in re.findall(r"`(ptkit_\w+)\((.*?)\)`", GUIDE):
        code = getattr(hookspecs, name).__code__
        assert [a for a in arguments.split(", ") if a] == list(
            code.co_varnames[: code.co_argcount]
        ), name


def test_the_guides_example_runs(tmp_path: Path) -> None:
    """Its files, written as they stand, pass their own test."""
    project = tomllib.loads(blocks(GUIDE, "toml")[0])
    assert project["project"]["entry-points"]["ptkit"] == {"haiku": "ptkit_haiku"}
    for code in blocks(GUIDE, "python"):
        path = tmp_path / code.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
