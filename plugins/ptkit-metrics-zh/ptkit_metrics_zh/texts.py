"""What the text metrics do alike with predictions and references that hold no text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ptkit import Pair, RowMetric


class TextMetric(RowMetric):
    """Compares two texts that both hold more than white space.

    An empty prediction is a wrong answer and scores 0. A row without a reference has nothing to be
    compared with and is left out. `warnings` counts both.
    """

    scores: ClassVar[str] = "text"
    names: ClassVar[tuple[str, ...]]
    """The names of the scores."""

    @abstractmethod
    def compare(self, prediction: str, reference: str) -> dict[str, float]:
        """A score, percent, for each of ``names``."""

    def score_row(self, pair: Pair) -> dict[str, float] | None:
        if _is_empty(pair.reference):
            return None
        if _is_empty(pair.prediction):
            return dict.fromkeys(self.names, 0.0)
        return self.compare(pair.prediction, pair.reference)

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        scored = [pair for pair in pairs if not _is_empty(pair.reference)]
        unscored = len(pairs) - len(scored)
        empty = sum(_is_empty(pair.prediction) for pair in scored)
        lines = []
        if empty:
            does = (
                "predictions is empty and scores"
                if empty == 1
                else "predictions are empty and score"
            )
            lines.append(f"{empty} of {len(scored)} {does} 0")
        if unscored:
            does = (
                "references is empty; its row is"
                if unscored == 1
                else "references are empty; their rows are"
            )
            lines.append(f"{unscored} of {len(pairs)} {does} not scored")
        return lines


def _is_empty(text: str | None) -> bool:
    return text is None or not text.strip()
