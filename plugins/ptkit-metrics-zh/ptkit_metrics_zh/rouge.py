"""ROUGE of Chinese text, over words."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from ptkit import Settings
from ptkit_metrics_zh.texts import TextMetric
from ptkit_metrics_zh.words import Words


class RougeZh(TextMetric):
    """F1 of rouge_chinese over jieba's words joined by blanks, x 100.

    Texts are cut with jieba's default mode and dictionary. rouge_chinese counts each different
    n-gram once, and ``rouge-l`` is the longest common subsequence of the whole texts; a text of one
    word has no 2-grams, so that its ``rouge-2`` is 0, even for a perfect match.
    """

    name = "rouge-zh"
    names: ClassVar[tuple[str, ...]] = ("rouge-1", "rouge-2", "rouge-l")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._words = Words()
        self._rouge: Any = None

    def compare(self, prediction: str, reference: str) -> dict[str, float]:
        if self._rouge is None:
            self._rouge = _rouge()
        spaced = self._words.spaced
        (scores,) = self._rouge.get_scores(spaced(prediction), spaced(reference))
        return {name: 100 * scores[name]["f"] for name in self.names}


def _rouge() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # escapes in its source that Python 3.12 warns of
        from rouge_chinese import Rouge  # type: ignore[import-untyped]

    return Rouge()
