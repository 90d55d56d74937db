"""Shares of what is right: labels, choices, tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ptkit import Pair
from ptkit_metrics_nlu.checked import (
    CheckedMetric,
    CheckedRowMetric,
    counted,
    is_index,
    is_names,
    ratio,
)


class Accuracy(CheckedRowMetric):
    """The share of rows whose label is the reference, letter for letter."""

    name = "accuracy"
    scores: ClassVar[str] = "label"
    wants: ClassVar[str] = "a label (str)"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str)

    def compare(self, pair: Pair) -> dict[str, float]:
        return {"accuracy": 100.0 * (pair.prediction == pair.reference)}


class ChoiceAccuracy(CheckedRowMetric):
    """The share of rows whose choice is the right one; choices are indices from 0."""

    name = "choice-accuracy"
    scores: ClassVar[str] = "choice"
    wants: ClassVar[str] = "the index of a choice (int)"

    def fits(self, value: Any) -> bool:
        return is_index(value)

    def compare(self, pair: Pair) -> dict[str, float]:
        return {"choice-accuracy": 100.0 * (pair.prediction == pair.reference)}


class TagAccuracy(CheckedMetric):
    """The share of words, of all rows together, whose tag is right.

    The words are the reference's: a prediction that is too short misses the rest of them, and what
    it has too much is ignored. `warnings` counts both.
    """

    name = "tag-accuracy"
    scores: ClassVar[str] = "tags"
    wants: ClassVar[str] = "a tag (str) for every word, in a tuple or list"

    def fits(self, value: Any) -> bool:
        return is_names(value)

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        scored = self.scored(pairs)
        words = sum(len(pair.reference) for pair in scored)
        if not words:
            return {}
        right = sum(
            given == wanted
            for pair in scored
            for given, wanted in zip(pair.prediction, pair.reference, strict=False)
        )
        return {"tag-accuracy": ratio(right, words)}

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        scored = self.scored(pairs)
        odd = sum(len(pair.prediction) != len(pair.reference) for pair in scored)
        if odd:
            does = "prediction has" if odd == 1 else "predictions have"
            lines.append(
                f"{odd} {does} more or fewer tags than words (of {counted(len(scored), 'row')}): "
                "a missing tag counts as wrong, further ones are ignored"
            )
        return lines
