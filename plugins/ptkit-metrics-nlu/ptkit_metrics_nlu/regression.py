"""Correlation and mean errors of numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ptkit import Pair
from ptkit_metrics_nlu.checked import CheckedMetric, counted


class _NumberMetric(CheckedMetric):
    """Compares numbers; a pair with one that is not finite, or too far apart, is left out."""

    scores: ClassVar[str] = "number"
    wants: ClassVar[str] = "a number (float)"

    def fits(self, value: Any) -> bool:
        return isinstance(value, float | int) and not isinstance(value, bool)

    def columns(self, pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
        """Predictions and references whose difference is a finite float."""
        numbers = [(_float(p.prediction), _float(p.reference)) for p in self.scored(pairs)]
        finite = [(x, y) for x, y in numbers if math.isfinite(x - y)]
        return [x for x, _ in finite], [y for _, y in finite]

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        scored = len(self.scored(pairs))
        odd = scored - len(self.columns(pairs)[0])
        if odd:
            does = "has a number that is" if odd == 1 else "have a number that is"
            lines.append(f"{odd} of {counted(scored, 'row')} {does} not finite and left out")
        return lines


class PearsonSpearman(_NumberMetric):
    """Pearson's r and Spearman's rho (ties get their mean rank) x 100; scipy's.

    Both are undefined for fewer than two pairs, and where all predictions or all references are
    equal; they are given as 0 then.
    """

    name = "pearson-spearman"
    unit = "correlation × 100, -100–100"

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        given, wanted = self.columns(pairs)
        if not self.scored(pairs):
            return {}
        if _undefined(given, wanted) is not None:
            return {"pearson": 0.0, "spearman": 0.0}
        from scipy.stats import pearsonr, spearmanr  # type: ignore[import-untyped]

        return {
            "pearson": _correlation(pearsonr, given, wanted),
            "spearman": _correlation(spearmanr, given, wanted),
        }

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        reason = _undefined(*self.columns(pairs))
        if self.scored(pairs) and reason is not None:
            lines.append(f"{reason}: pearson and spearman are undefined, given as 0")
        return lines


class MeanError(_NumberMetric):
    """Mean absolute error and root mean squared error, in the unit of the labels.

    Worked example: predictions 1, 2, 6 for 1, 4, 2 are off by 0, 2, 4; ``mae`` (0 + 2 + 4) / 3 = 2,
    ``rmse`` the root of (0 + 4 + 16) / 3, 2.582.
    """

    name = "mean-error"
    unit = "the labels' own unit (lower is better)"
    lower_is_better = True

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        errors = [abs(x - y) for x, y in zip(*self.columns(pairs), strict=True)]
        if not errors:
            return {}
        largest = max(errors) or 1.0  # squares of large errors would overflow
        squares = math.fsum((error / largest) ** 2 for error in errors)
        return {
            "mae": math.fsum(error / len(errors) for error in errors),
            "rmse": largest * math.sqrt(squares / len(errors)),
        }


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond floats
        return math.inf


def _undefined(given: Sequence[float], wanted: Sequence[float]) -> str | None:
    """Why two columns have no correlation, or None if they have one."""
    if len(given) < 2:
        return f"{counted(len(given), 'pair')} of numbers, at least 2 are needed"
    for what, column in (("predictions", given), ("references", wanted)):
        if min(column) == max(column):
            return f"all {what} are {column[0]:g}"
    return None


def _correlation(
    function: Callable[..., Any], given: Sequence[float], wanted: Sequence[float]
) -> float:
    # of numbers up to 1 in size: sums of large ones would overflow
    columns = [[x / max(map(abs, column)) for x in column] for column in (given, wanted)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that are nearly constant
        value = float(function(*columns).statistic)
    return 100.0 * value if math.isfinite(value) else 0.0
