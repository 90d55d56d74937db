"""Where events go: always events.jsonl, and the recipe's trackers, which can't end a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from ptkit.components import Tracker
from ptkit.engine.files import WriteError, whole_file
from ptkit.engine.stopping import Interrupted
from ptkit.errors import show_traceback
from ptkit.isolation import named, one_line
from ptkit.records import RunInfo


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a run, in order; a last line that was cut off by a crash is left out."""
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events


class Tracking:
    """Hands every event to events.jsonl and the trackers; a tracker that fails is reported once and
    left out.

    ``upto``: of events that are already there, those up to this step are kept.
    """

    def __init__(
        self,
        path: Path,
        trackers: Sequence[Tracker],
        run: RunInfo,
        failure: Callable[[str], None],
        *,
        upto: int = 0,
    ) -> None:
        self._path = path
        self._trackers = list(trackers)
        self._failure = failure
        self._cut_back(upto)
        self._each("start()", lambda tracker: tracker.start(run))

    def _cut_back(self, upto: int) -> None:
        kept = []
        if upto and self._path.exists():
            kept = [
                e for e in read_events(self._path) if e["step"] <= upto and e["event"] != "scores"
            ]
        with whole_file(self._path) as partial:
            partial.write_text("".join(map(_line, kept)), encoding="utf-8")

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line({"event": kind, **values}))
        except OSError as error:
            raise WriteError(f"{self._path}: can't be written: {error.strerror}") from error
        self._each(f"event({kind!r})", lambda tracker: tracker.event(kind, deepcopy(values)))

    def finish(self) -> None:
        """Let the trackers go; called once, however the run ends."""
        self._each("finish()", lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Interrupted:
                raise
            except (Exception, SystemExit) as error:
                self._trackers.remove(tracker)
                show_traceback(error)
                raised = f"{named(tracker)}: {what} raised {one_line(error)}"
                self._failure(f"{raised}; it is left out, and the run goes on")


def _line(event: Mapping[str, Any]) -> str:
    return json.dumps(event, ensure_ascii=False) + "\n"
