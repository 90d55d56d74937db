"""Where events go: always events.jsonl, and the recipe's trackers, which can't end a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptkit.components import Tracker
from ptkit.records import RunInfo


class Tracking:
    """Hands every event to events.jsonl and the trackers; a tracker that fails is reported once and left out."""

    def __init__(
        self,
        file: Path,
        trackers: Sequence[Tracker],
        run: RunInfo,
        warning: Callable[[str], None],
    ) -> None:
        self._file = file.open("a", encoding="utf-8")
        self._trackers = list(trackers)
        self._warning = warning
        self._each(lambda tracker: tracker.start(run))

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"event": kind, **values}, ensure_ascii=False) + "\n")
        self._file.flush()
        self._each(lambda tracker: tracker.event(kind, values))

    def finish(self) -> None:
        self._file.close()
        self._each(lambda tracker: tracker.finish())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                text = " ".join(str(error).split())
                self._warning(
                    f"tracker {tracker.name!r} failed and is left out: {type(error).__name__}: {text}"
                )
