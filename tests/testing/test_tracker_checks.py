"""Every fault of trackers that `check_tracker` finds, and what it tells a good one."""

from __future__ import annotations

import csv
import importlib
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import ptkit
from ptkit.testing import check_tracker


class Table(ptkit.Tracker):
    """A line a number: kind, step, name, value."""

    name = "table"

    def start(self, run: ptkit.RunInfo) -> None:
        self.path = Path(run.folder) / "events.csv"
        self.lines: list[list[Any]] = []

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        self.lines += [[kind, values.get("step"), *pair] for pair in values.items()]

    def finish(self) -> None:
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows(self.lines)


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_good_tracker_passes_and_is_told_of_three_runs(tmp_path: Path) -> None:
    check_tracker(Table(Table.Settings()), folder=tmp_path)
    runs = {}
    for name in ("first", "second", "stopped"):
        with (tmp_path / name / "events.csv").open(newline="") as file:
            runs[name] = [(row[0], row[1]) for row in csv.reader(file)]
    assert runs["stopped"] == []
    assert list(dict.fromkeys(runs["second"])) == [
        ("untuned", "0"),
        ("train", "1"),
        ("train", "2"),
        ("validation", "2"),
        ("scores", "2"),
    ]
    assert list(dict.fromkeys(runs["first"]))[5:] == [("gpu", "2"), ("note", "")]


class NoStart(Table):
    def start(self, run: ptkit.RunInfo) -> None:
        raise ConnectionError("no network")


class NeedsLoss(Table):
    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        values["loss"] + 1


class KnownKinds(Table):
    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        {"untuned": 0, "train": 1, "validation": 2, "scores": 3}[kind]


class OnlyNumbers(Table):
    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind not in ("scores",):
            sum(values.values())


class TakesStep(Table):
    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        assert isinstance(values, dict)
        values.pop("step", None)


class ChangesRun(Table):
    def start(self, run: ptkit.RunInfo) -> None:
        run.recipe.pop("ptkit")


class NeedsEvents(Table):
    """Opens at the first event what it closes at the end."""

    def start(self, run: ptkit.RunInfo) -> None:
        self.folder = run.folder

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        self.path, self.lines = Path(self.folder) / "a.csv", []


class OneRun(Table):
    started = Counter[str]()

    def start(self, run: ptkit.RunInfo) -> None:
        super().start(run)
        self.started["run"] += 1
        if self.started["run"] > 1:
            raise RuntimeError("there is a run already")


class Moves(Table):
    def start(self, run: ptkit.RunInfo) -> None:
        super().start(run)
        os.chdir(run.folder)


class TakesCtrlC(Table):
    def start(self, run: ptkit.RunInfo) -> None:
        super().start(run)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class TakesTerm(Table):
    def start(self, run: ptkit.RunInfo) -> None:
        super().start(run)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Draws(Table):
    def start(self, run: ptkit.RunInfo) -> None:
        super().start(run)
        self.run_name = random.randrange(10**6)


class LeavesThread(Table):
    stop = threading.Event()

    def start(self, run: ptkit.RunInfo) -> None:
        super().start(run)
        threading.Thread(target=self.stop.wait, args=(20,), name="sender").start()


class TrackerName(Table):
    name = "My Table"


class Lenient(Table):
    class Settings(ptkit.Settings, extra="allow"):
        pass


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        (NoStart, r"start\(\) raised ConnectionError: no network"),
        (NeedsLoss, r"event\('scores'\) raised KeyError: 'loss'; .* for scores a dict a column"),
        (KnownKinds, r"event\('gpu'\) raised KeyError: 'gpu'; pass over events that it does not"),
        (OnlyNumbers, r"event\('gpu'\) raised TypeError: .*; pass over events"),
        (TakesStep, r"event\('untuned'\) changed its values; work on a copy"),
        (ChangesRun, r"start\(\) changed the run that it was told of"),
        (NeedsEvents, r"finish\(\) raised AttributeError"),
        (OneRun, r"start\(\) raised RuntimeError: there is a run already"),
        (Moves, "it changes the current folder; leave the process as it is"),
        (TakesCtrlC, "it changes what Ctrl-C does"),
        (TakesTerm, "it changes what SIGTERM does"),
        (Draws, "it changes the state of `random`, and so what a run draws"),
        (LeavesThread, r"it leaves the thread 'sender' running behind finish\(\)"),
        (TrackerName, "must be kebab-case such as 'my-name', got 'My Table'"),
        (Lenient, "must forbid unknown keys"),
    ],
)
def test_faults_of_trackers(
    tracker: type[ptkit.Tracker], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LeavesThread.stop.clear()
    monkeypatch.chdir(tmp_path)  # and back, where a tracker went elsewhere
    try:
        with pytest.raises(AssertionError, match=words) as raised:
            check_tracker(tracker(tracker.Settings()), folder=tmp_path)
    finally:
        LeavesThread.stop.set()
    assert str(raised.value).startswith(f"tracker '{tracker.name}': ")


def test_a_tracker_that_imports_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("")  # the check looks at the name, and the real one is slow
    (tmp_path / "eager_tracker.py").write_text(
        "import torch\nimport ptkit\n\n"
        "class Eager(ptkit.Tracker):\n"
        "    name = 'eager'\n\n"
        "    def start(self, run): pass\n\n"
        "    def event(self, kind, values): pass\n\n"
        "    def finish(self): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    eager: Any = importlib.import_module("eager_tracker")
    with pytest.raises(AssertionError, match="importing eager_tracker imports torch"):
        check_tracker(eager.Eager(eager.Eager.Settings()))


def test_a_class_in_place_of_an_instance() -> None:
    with pytest.raises(AssertionError, match="is not a ptkit.Tracker; hand the check an instance"):
        check_tracker(Table)  # type: ignore[arg-type]
