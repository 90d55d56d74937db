"""What a run tells the person who waits for it; the terminal's version is in `ptkit.commands`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Reporter:
    """Says nothing. Subclasses show some or all of it."""

    def stage(self, text: str) -> None:
        """A new stage of the run has begun, or a fact of it is known."""

    def warning(self, text: str) -> None:
        """Something that a reader of the results must know."""

    def failure(self, text: str) -> None:
        """A component failed, and the run goes on without it; shown as a warning by default."""
        self.warning(text)

    def progress(
        self, what: str, done: int, total: int | None, values: Mapping[str, float]
    ) -> None:
        """``done`` of ``total`` (None: not known) of a stage, with figures such as the loss."""

    def scores(
        self, scores: Mapping[str, Mapping[str, float]], constant: str | None, part: str, rows: int
    ) -> None:
        """The result: scores.json, the constant answer, and what was scored."""

    def finished(self, folder: Path) -> None:
        """The run folder is complete."""
