"""`ptkit new plugin`: what it writes works, whichever parts are chosen, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import ptkit
from ptkit import cli
from ptkit.commands import new_plugin
from ptkit.commands.plugin_files import PARTS, bound, plugin_files

ROOT = Path(ptkit.__file__).parents[1]
EVERYTHING = ",".join(PARTS)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["new", "plugin", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def install(folder: Path) -> None:
    """What `pip install -e` leaves behind: the metadata beside the package, on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    requires = "".join(f"Requires-Dist: {line}\n" for line in project["dependencies"])
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n{requires}"
    )
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
            for group, entries in project["entry-points"].items()
        )
    )


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )


# ------------------------------------------------------------------------------ what is written


def test_a_plugin_with_everything_passes_its_own_tests(run: Run, tmp_path: Path) -> None:
    code, out, err = run("my-demo", "--adds", EVERYTHING)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "wrote my-demo: 23 files. Next:",
        "  cd my-demo",
        "  python -m pip install -e '.[test]'",
        "  python -m pytest",
        "  ptkit plugins",
        "  ptkit run recipe.toml",
        "  ptkit my-demo-count data/train.tsv",
    ]
    folder = tmp_path / "my-demo"
    install(folder)
    done = python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    listed = python(folder, "-m", "ptkit", "plugins").stdout
    (line,) = (
        line for line in listed.splitlines() if line.startswith("my-demo  ") and "; " in line
    )
    assert line.split(maxsplit=3)[3] == (
        "backbone: my-demo-bytes; dataset: my-demo-tsv; transforms: my-demo-first-of-each; "
        "task: my-demo-known-answers; metrics: my-demo-distinct; trackers: my-demo-csv; "
        "hooks: ptkit_resolve_source"
    )
    assert ["my-demo", "0.1.0", "my-demo-count"] in [line.split() for line in listed.splitlines()]
    assert "my-demo (" not in listed  # no problem, no warning
    counted = python(folder, "-m", "ptkit", "my-demo-count", "data/train.tsv")
    assert counted.stdout == "rows     48\nempty    0\nlongest  22 characters\n"


@pytest.mark.parametrize("adds", ["format,head,metric,tracker,command", "metric"])
def test_its_recipe_runs_on_nano(run: Run, tmp_path: Path, adds: str) -> None:
    assert run("demo", "--adds", adds)[0] == 0
    folder = tmp_path / "demo"
    install(folder)
    recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe["backbone"] == {"kind": "chatglm2", "source": "nano"}
    done = python(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_recipe.py")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_is_whole(part: str, tmp_path: Path) -> None:
    files = plugin_files("ptkit-demo", [part], "0.1.0")
    assert {f"ptkit_demo/{part}.py", f"tests/test_{part}.py"} <= set(files)
    others = set(PARTS) - {part}
    assert not {f"ptkit_demo/{other}.py" for other in others} & set(files)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert "ptkit>=0.1,<0.2" in project["dependencies"]
    group = {"ptkit.commands": {"demo-count": "ptkit_demo.command:count"}}
    if part != "command":
        group = {"ptkit": {"demo": "ptkit_demo"}}
        assert f"def {PARTS[part].hook}()" in files["ptkit_demo/__init__.py"]
    assert project["entry-points"] == group
    recipe = tomllib.loads(files["recipe.toml"])
    assert recipe["dataset"]["train"] in files
    assert "$" not in "".join(files.values())
    for path, text in files.items():
        assert text.endswith("\n") or path.endswith("py.typed"), path


def test_the_code_is_clean_for_ruff_and_mypy(tmp_path: Path) -> None:
    """Under the rules that both have by default, with the shortest and the longest name."""
    for name in ("q", "q" * new_plugin.LONGEST):
        folder = tmp_path / name
        new_plugin.write_all(folder, plugin_files(name, list(PARTS), "0.1.0"))
        for command in (["check", "--isolated"], ["format", "--isolated", "--check"]):
            done = python(folder, "-m", "ruff", *command, ".")
            assert done.returncode == 0, done.stdout + done.stderr
    done = python(tmp_path / "q", "-m", "mypy", "--cache-dir", os.devnull)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_bound_is_that_of_the_running_version() -> None:
    assert bound("0.1.0") == "ptkit>=0.1,<0.2"
    assert bound("0.9.3") == "ptkit>=0.9,<0.10"
    assert bound("2.3.1rc1") == "ptkit>=2.3,<2.4"


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Demo", "must be lower-case words with hyphens between, such as 'my-plugin'"),
        ("my_demo", "must be lower-case words with hyphens between, such as 'my-plugin'"),
        ("../demo", "must be lower-case words with hyphens between, such as 'my-plugin'"),
        ("9demo", "must be lower-case words with hyphens between, such as 'my-plugin'"),
        ("", "must be lower-case words with hyphens between, such as 'my-plugin'"),
        ("d" * 31, "has 31 characters; use at most 30"),
        ("class", "is a keyword of Python; use another name"),
        ("json", "is a module of Python's standard library; use another name"),
        ("tests", "is the name of a folder inside every new plugin; use another name"),
    ],
)
def test_names_that_cannot_be_used(run: Run, tmp_path: Path, name: str, problem: str) -> None:
    assert run(name, "--adds", "metric") == (2, "", f"{name!r} {problem}\n")
    assert list(tmp_path.iterdir()) == []


def test_names_of_what_is_installed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import version

    code, out, err = run("pluggy", "--adds", "metric")
    installed = f"pluggy {version('pluggy')}"
    assert (code, out) == (2, "")
    assert err == f"'pluggy' is installed already ({installed}); use another name\n"
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    (site / "lonely.py").write_text("")
    assert run("lonely", "--adds", "metric")[2] == (
        "'lonely': the module lonely is installed already; use another name\n"
    )
    taken = "'tasks': 'tasks' is the entry point of ptkit-tasks "
    assert run("tasks", "--adds", "metric")[2].startswith(taken)


def test_names_that_a_component_or_a_command_has(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("first", "--adds", "metric,command")[0] == 0
    folder = tmp_path / "first"
    pyproject = folder / "pyproject.toml"
    text = pyproject.read_text(encoding="utf-8").replace('"first"', '"other"', 1)
    pyproject.write_text(text.replace('first = "first"', 'other = "first"'), encoding="utf-8")
    install(folder)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "first").rename(folder / "moved")  # the module's name is free, its kinds are not
    init = (folder / "moved" / "__init__.py").read_text(encoding="utf-8")
    (folder / "moved" / "__init__.py").write_text(init.replace("first.", "moved."))
    points = next(folder.glob("*.dist-info")) / "entry_points.txt"
    points.write_text(points.read_text().replace("= first", "= moved"))
    monkeypatch.chdir(folder)
    assert run("first", "--adds", "metric")[2] == (
        "'first': its metric would be 'first-distinct', which is one of other 0.1.0; "
        "use another name\n"
    )
    assert run("first", "--adds", "command")[2] == (
        "'first': its command would be 'first-count', which is one of other 0.1.0; "
        "use another name\n"
    )
    for module in [name for name in sys.modules if name.split(".")[0] == "moved"]:
        del sys.modules[module]


def test_parts_that_there_are_not(run: Run, tmp_path: Path) -> None:
    there_are = "there are: format, head, metric, backbone, tracker, transform, command"
    code, out, err = run("demo", "--adds", "fromat,head,metrics,zzz")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"--adds: unknown 'fromat' (did you mean 'format'?); {there_are}",
        f"--adds: unknown 'metrics' (did you mean 'metric'?); {there_are}",
        f"--adds: unknown 'zzz'; {there_are}",
    ]
    assert run("demo", "--adds", " , ") == (2, "", f"--adds: names nothing; {there_are}\n")
    assert "Missing option '--adds'" in run("demo")[2]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_touched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert run("demo", "--adds", "metric") == (
        2,
        "",
        "demo: exists already; use another name, or another folder (--into)\n",
    )
    assert list((tmp_path / "demo").iterdir()) == []
    nowhere = run("demo", "--adds", "metric", "--into", "no")
    assert nowhere == (2, "", "no/demo: can't be written: No such file or directory\n")
    (tmp_path / "inside").mkdir()
    code, out, _ = run("demo", "--adds", "metric", "--into", "inside")
    assert (code, out.splitlines()[1]) == (0, f"  cd {Path('inside', 'demo')}")


def test_a_plugin_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ptkit.PtkitError, match=r"demo: can't be written: "):
        new_plugin.write_all(tmp_path / "demo", {"a": "text", "a/b": "a is no folder"})
    assert list(tmp_path.iterdir()) == []
