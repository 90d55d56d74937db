"""Commands of plugins: found by name, imported only when called, never in place of ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ptkit
from ptkit import cli

GREET = """
import click
import ptkit

@click.command()
@click.argument("name")
@click.option("--fail", is_flag=True)
def greet(name, fail):
    \"\"\"Greet NAME.\"\"\"
    if fail:
        raise ptkit.DataError("names.txt:1: no name")
    click.echo(f"hello {name}")
    return 7

@click.group()
def tools():
    pass

tools.add_command(greet)
"""

Install = Callable[..., None]


@pytest.fixture
def install(site: Path) -> Install:
    """Lay a distribution there that has commands: `name = attribute of its module`."""

    def lay(
        name: str, code: str, commands: dict[str, str], *, requires: str = "ptkit>=0.1"
    ) -> None:
        module = f"commanding_{name}"
        (site / f"{module}.py").write_text(code, encoding="utf-8")
        info = site / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: commanding-{name}\nVersion: 1.5\n"
            f"Requires-Dist: {requires}\n",
            encoding="utf-8",
        )
        lines = [f"{command} = {module}:{attribute}" for command, attribute in commands.items()]
        (info / "entry_points.txt").write_text("\n".join(["[ptkit.commands]", *lines]), "utf-8")

    return lay


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_a_command_is_called_with_its_arguments(install: Install, run: Run) -> None:
    install("good", GREET, {"greet": "greet", "tools": "tools"})
    # what it returns is no exit code, as with click itself
    assert run("greet", "you") == (0, "hello you\n", "")
    assert run("tools", "greet", "you") == (0, "hello you\n", "")
    assert run("greet", "--help")[1].startswith("Usage: ptkit greet [OPTIONS] NAME")
    assert run("greet")[0] == 2
    assert run("greet", "you", "--fail") == (2, "", "names.txt:1: no name\n")


def test_help_reads_no_entry_points(install: Install, site: Path) -> None:
    install("good", GREET, {"greet": "greet"})
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import importlib.metadata as m\n"
        "def no(*_, **__): raise AssertionError('scanned')\n"
        "m.distributions = m.Distribution.discover = no\n"
        "from ptkit.cli import main\n"
        "assert main(['--help']) == 0 and main(['run', '--help']) == 0\n"
        "assert 'ptkit.entrypoints' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Plugins may add commands; `ptkit plugins` lists them." in done.stdout
    assert "greet" not in done.stdout


def test_a_command_costs_neither_plugins_nor_pydantic(install: Install, site: Path) -> None:
    install("good", "import click\n@click.command()\ndef go():\n    pass\n", {"go": "go"})
    install("other", "raise AssertionError('imported')", {"other": "x"})
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from ptkit.cli import main\n"
        "assert main(['go']) == 0\n"
        "heavy = {'torch', 'transformers', 'pydantic', 'pluggy', 'ptkit_tasks'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_command_is_compared_with_theirs_too(install: Install, run: Run) -> None:
    install("good", GREET, {"greet": "greet"})
    assert "no such command 'gret' (did you mean 'greet'?)" in run("gret")[2]
    assert "no such command 'rnu' (did you mean 'run'?)" in run("rnu")[2]
    assert run("gret")[0] == 2


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "import commanding_nothing",
            "can't be imported: ModuleNotFoundError: No module named 'commanding_nothing'",
        ),
        ("import sys; sys.exit(0)", "can't be imported: SystemExit: 0"),
        (
            "",
            "can't be imported: AttributeError: module 'commanding_bad' has no attribute 'go'",
        ),
        (
            "def go(): ...",
            "commanding_bad:go must be a click command, got function; put @click.command() on it",
        ),
    ],
)
def test_a_broken_command_is_one_line(install: Install, run: Run, code: str, expected: str) -> None:
    install("bad", code, {"go": "go"})
    install("good", GREET, {"greet": "greet"})
    assert run("go") == (2, "", f"command 'go' (commanding-bad 1.5): {expected}\n")
    assert run("greet", "you")[0] == 0


def test_a_command_for_another_ptkit(install: Install, run: Run) -> None:
    install("newer", GREET, {"greet": "greet"}, requires="ptkit>=99")
    assert run("greet", "you") == (
        2,
        "",
        "command 'greet' (commanding-newer 1.5): needs ptkit>=99, and this is ptkit "
        f"{ptkit.__version__}; install that ptkit, or another version of commanding-newer\n",
    )


def test_what_its_module_prints_stays_out_of_the_output(install: Install, run: Run) -> None:
    install("loud", "print('noise')\n" + GREET, {"greet": "greet"})
    assert run("greet", "you") == (
        0,
        "hello you\n",
        "command 'greet' (commanding-loud 1.5): printed 'noise' to stdout while it was loaded; "
        "print nothing there\n",
    )


def test_ctrl_c_while_it_is_imported(install: Install, run: Run) -> None:
    install("stopped", "raise KeyboardInterrupt", {"go": "go"})
    code, out, err = run("go")
    assert (code, out, err.strip()) == (130, "", "interrupted")


# ------------------------------------------------------------------------------ names

SHARED = (
    "command 'greet' is registered by both commanding-one 1.5 and commanding-two 1.5; "
    "set PTKIT_DISABLE_PLUGINS=commanding-two or uninstall one of them"
)


def test_a_shared_name_names_both(
    install: Install, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("one", GREET, {"greet": "greet"})
    install("two", "raise AssertionError('imported')", {"greet": "greet"})
    assert run("greet", "you") == (2, "", f"{SHARED}\n")
    assert f"problem: {SHARED}" in run("plugins")[1].splitlines()
    monkeypatch.setenv("PTKIT_DISABLE_PLUGINS", "commanding-two")
    assert run("greet", "you")[0] == 0
    monkeypatch.setenv("PTKIT_DISABLE_PLUGINS", "commanding-two,greet")
    disabled = "command 'greet': commanding-one 1.5 is disabled by PTKIT_DISABLE_PLUGINS\n"
    assert run("greet", "you") == (2, "", disabled)


def test_ours_stay_ours(install: Install, run: Run) -> None:
    install("bold", GREET, {"schema": "greet"})
    assert run("schema")[1].startswith("{")
    line = "is a name of ptkit's own, which stays; rename it"
    problem = f"problem: command 'schema' (commanding-bold 1.5): {line}"
    assert problem in run("plugins")[1].splitlines()


def test_names_are_kebab_case(install: Install, run: Run) -> None:
    install("odd", GREET, {"Greet_All": "greet"})
    line = "its name must be kebab-case such as 'my-name'"
    problem = f"command 'Greet_All' (commanding-odd 1.5): {line}"
    assert run("Greet_All", "you") == (2, "", f"{problem}\n")
    assert f"problem: {problem}" in run("plugins")[1].splitlines()


def test_plugins_lists_commands_and_imports_none(install: Install, run: Run) -> None:
    install("good", "raise AssertionError('imported')", {"greet": "greet", "tools": "tools"})
    code, out, _ = run("plugins")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["distribution", "version", "command"] in lines
    assert ["commanding-good", "1.5", "greet"] in lines
    assert ["commanding-good", "1.5", "tools"] in lines
    report = json.loads(run("plugins", "--json")[1])
    entry = {"distribution": "commanding-good", "version": "1.5", "command": "greet"}
    assert entry in report["commands"]
