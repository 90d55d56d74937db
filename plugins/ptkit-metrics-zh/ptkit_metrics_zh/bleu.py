"""BLEU of Chinese text, over characters."""

from __future__ import annotations

from typing import ClassVar

from ptkit_metrics_zh.texts import TextMetric


class BleuChar(TextMetric):
    """Sentence BLEU-4 of nltk over characters, smoothed by its method3, x 100; the mean over rows.

    Method3 counts n-grams of a length without any match as 1/2, 1/4, … of a match; without a single
    common character the score is 0.
    """

    name = "bleu-char"
    names: ClassVar[tuple[str, ...]] = ("bleu-4",)

    def compare(self, prediction: str, reference: str) -> dict[str, float]:
        from nltk.translate.bleu_score import (  # type: ignore[import-untyped]
            SmoothingFunction,
            sentence_bleu,
        )

        smoothed = SmoothingFunction().method3
        score = sentence_bleu([list(reference)], list(prediction), smoothing_function=smoothed)
        return {"bleu-4": 100.0 * score}
