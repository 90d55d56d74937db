"""The contract check for trackers: what runs do with one, and what it must leave alone."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from ptkit.components import Tracker
from ptkit.records import RunInfo
from ptkit.testing.faults import Subject, same

_TRAIN = {"learning_rate": 0.02, "gradient_norm": 1.5, "tokens": 320, "micro_batches": 1}
EVENTS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("untuned", {"step": 0, "loss": 3.5}),
    ("train", {"step": 1, "loss": 3.25, **_TRAIN, "seconds": 0.5}),
    ("train", {"step": 2, "loss": 3.0, **_TRAIN, "seconds": 0.25}),
    ("validation", {"step": 2, "loss": 3.125}),
    (
        "scores",
        {
            "step": 2,
            "before": {"bleu-4": 0.5, "rouge-l": 12.0},
            "constant": {"bleu-4": 1, "rouge-l": 30.0},
            "after": {"bleu-4": 80.25, "rouge-l": 88.0},
        },
    ),
)
"""The events of a run of two steps, as a tracker gets them."""
_UNKNOWN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("gpu", {"step": 2, "memory": [10, 20], "name": "cuda:0", "ok": True, "shared": None}),
    ("note", {"text": "without a step"}),
)


def check_tracker(tracker: Tracker, *, folder: Path | None = None) -> None:
    """Check that ``tracker`` keeps the contract of `ptkit.Tracker`.

    It is told of a run of two steps, as training does, then a fresh one of the same settings of
    another run and of one that ends without events. A kind of event or a value that it does not
    know must not fail it: later versions of ptkit may send them. ``folder``: what it takes for the
    folders of the runs are made there; by default in a temporary one.
    A tracker need not survive a full disk or a lost connection: the run goes on without it.
    Raises `AssertionError` naming the tracker, the fault and what to do.
    """
    subject = Subject(tracker, Tracker)
    subject.check_component()
    with tempfile.TemporaryDirectory(prefix="ptkit-tracker-") as scratch:
        base = folder or Path(scratch)
        with _left_alone(subject):
            _run(subject, tracker, base / "first", [*EVENTS, *_UNKNOWN])
            for name, events in (("second", [*EVENTS]), ("stopped", [])):
                fresh = subject.call("making it again", lambda: type(tracker)(tracker.settings))
                _run(subject, fresh, base / name, events)
    subject.check_import()


def _run(
    subject: Subject, tracker: Tracker, folder: Path, events: list[tuple[str, Mapping[str, Any]]]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {"ptkit": 1, "task": {"kind": "generation"}, "metrics": [{"kind": "bleu-char"}]}
    run = RunInfo(str(folder), recipe, {"device": "cpu", "packages": {"ptkit": "0.1.0"}})
    given = deepcopy(run)
    subject.call("start()", lambda: tracker.start(given))
    if not same(given, run):
        raise subject.fault("start() changed the run that it was told of; hooks read it too")
    for kind, values in events:
        own = deepcopy(dict(values))
        what = f"event({kind!r})"
        hint = (
            "; pass over events that it does not know"
            if (kind, values) in _UNKNOWN
            else "; values hold numbers, and for scores a dict a column"
        )
        subject.call(what, _event(tracker, kind, own), hint)
        if not same(own, dict(values)):
            raise subject.fault(f"{what} changed its values; work on a copy")
    subject.call("finish()", tracker.finish)


def _event(tracker: Tracker, kind: str, values: Mapping[str, Any]) -> Callable[[], None]:
    return lambda: tracker.event(kind, values)


@contextmanager
def _left_alone(subject: Subject) -> Iterator[None]:
    """A tracker watches: the process must be the same afterwards."""
    watched: dict[str, Callable[[], Any]] = {
        "the current folder": os.getcwd,
        "what Ctrl-C does": lambda: signal.getsignal(signal.SIGINT),
        "what SIGTERM does": lambda: signal.getsignal(signal.SIGTERM),
        "the state of `random`, and so what a run draws": random.getstate,
    }
    before = {what: look() for what, look in watched.items()}
    threads = set(threading.enumerate())
    yield
    for what, look in watched.items():
        if look() != before[what]:
            raise subject.fault(f"it changes {what}; leave the process as it is")
    left = [t.name for t in threading.enumerate() if t not in threads and not t.daemon]
    if left:
        raise subject.fault(
            f"it leaves the thread {left[0]!r} running behind finish(), so that the program never "
            "ends; join it in finish(), or make it a daemon"
        )
