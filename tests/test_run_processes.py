"""``ptkit run --processes``: what is started, and what is refused before anything is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ptkit.cli import main

Started = list[tuple[list[str], int, Path]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What is handed to the launcher, which gives exit code 7; no recipe is read."""
    calls: Started = []

    def launch(command: list[str], count: int, folder: Path) -> int:
        calls.append((command, count, folder))
        return 7

    def load(path: Path, *, overrides: Any) -> Any:
        return SimpleNamespace(name=path.stem)

    monkeypatch.setattr("ptkit.commands.launch.launch", launch)
    monkeypatch.setattr("ptkit.recipe.Recipe.load", load)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return calls


def test_each_process_gets_the_same_command(started: Started, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--device", "cpu", "--set", "a.b=1", "--set", "c.d=2"]
    assert main(["run", "r.toml", "--processes", "3", *arguments]) == 7
    ((command, count, folder),) = started
    assert command == [
        *(sys.executable, "-m", "ptkit", "run", "r.toml"),
        *("--device", "cpu", "--set", "a.b=1", "--set", "c.d=2", "--out", str(out)),
    ]
    assert (count, folder) == (3, out)


def test_all_processes_write_to_one_folder_if_none_is_given(started: Started) -> None:
    assert main(["run", "r.toml", "--processes", "2"]) == 7
    ((command, _, folder),) = started
    assert command[-2:] == ["--out", str(folder)]
    assert folder.parent == Path("runs")
    assert folder.name.startswith("r-")


def test_resume_is_handed_on(started: Started, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").touch()
    arguments = ["--out", str(tmp_path), "--resume"]
    assert main(["run", "r.toml", "--processes", "2", *arguments]) == 7
    assert "--resume" in started[0][0]


def _full(folder: Path) -> list[str]:
    (folder / "x").touch()
    return ["--out", str(folder)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            lambda folder: ["--resume"],
            "--resume needs --out with the folder of the run to go on with",
        ),
        (_full, "exists and is not empty; choose another folder with --out"),
    ],
)
def test_what_every_process_would_refuse_is_refused_once(
    started: Started,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path], list[str]],
    line: str,
) -> None:
    assert main(["run", "r.toml", "--processes", "2", *arguments(tmp_path)]) == 2
    assert line in capsys.readouterr().err
    assert not started


def test_a_process_of_a_launcher_starts_no_others(
    started: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["run", "r.toml", "--processes", "2"]) == 2
    assert capsys.readouterr().err == (
        "--processes: 2 are to be started, but WORLD_SIZE says that a launcher has started this "
        "one; leave --processes out\n"
    )
    assert not started


def test_less_than_one_process_is_refused(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "r.toml", "--processes", "0"]) == 2
    assert "0 is not in the range x>=1" in capsys.readouterr().err
