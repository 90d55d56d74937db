"""A reporter that keeps what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ptkit.reporter import Reporter


class RecordingReporter(Reporter):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.warnings: list[str] = []
        self.scored: dict[str, dict[str, float]] = {}
        self.folder: Path | None = None

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def scores(
        self, scores: Mapping[str, Mapping[str, float]], constant: str | None, part: str, rows: int
    ) -> None:
        self.scored = {name: dict(column) for name, column in scores.items()}

    def finished(self, folder: Path) -> None:
        self.folder = folder
