"""The tracker ``tensorboard``: event files in the run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

import ptkit
from ptkit_trackers.numbers import numbers, require


class TensorBoard(ptkit.Tracker):
    """Numbers as scalars such as ``train/loss`` and ``scores/after/bleu-4``, the recipe as text."""

    name = "tensorboard"

    class Settings(ptkit.Settings):
        folder: str | None = Field(None, min_length=1)
        """Where the event files go, relative to the current folder; `tensorboard` in the run
        folder if not given."""
        flush_seconds: int = Field(10, ge=1)
        """How long events may wait before they are written."""

    settings: Settings

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        require(self.name, "tensorboard")
        self._writer: Any = None

    def start(self, run: ptkit.RunInfo) -> None:
        chosen = self.settings.folder
        self._folder = Path(run.folder) / "tensorboard" if chosen is None else Path(chosen)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._recipe = json.dumps(run.recipe, indent=2, ensure_ascii=False)

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        step = values.get("step")
        if self._writer is None:
            self._open(0 if step is None else step)
        for path, value in numbers(kind, values).items():
            self._writer.add_scalar(path, value, step)

    def _open(self, step: int) -> None:
        """Begin to write at ``step``, the first of this run or of one that is gone on with.

        A run that goes on repeats the steps behind its checkpoint; TensorBoard drops those that the
        files in the folder have already.
        """
        from torch.utils.tensorboard import SummaryWriter

        before = any(self._folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(
            str(self._folder),
            purge_step=step if before else None,
            flush_secs=self.settings.flush_seconds,
        )
        code = "\n".join(f"    {line}" for line in self._recipe.splitlines())  # Markdown's code
        self._writer.add_text("recipe", code, step)

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
