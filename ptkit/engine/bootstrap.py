"""How far scores could be off by the choice of rows: bootstrap intervals (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95

Column = Sequence[Mapping[str, float]]
"""Scores by name, a mapping a row; a name is missing where a row has no such score."""
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Interval(NamedTuple):
    """A score, and its 2.5th and 97.5th percentile over resampled rows, in the score's unit."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Resampled means of columns that score the same rows, the same rows drawn for all of them.

    Rows are drawn with replacement, as many as there are, 2,000 times, by numpy's PCG64 with seed
    0, so that intervals can be made again. Percentile intervals (Efron, 1979); a difference is
    paired: it is taken within each resample. A mean is over the drawn rows that have the score.
    """

    def __init__(
        self, columns: Mapping[str, Column], *, resamples: int = RESAMPLES, seed: int = SEED
    ) -> None:
        """``columns``: such as "before" and "after", all of the same length."""
        self.rows = len(next(iter(columns.values()), ()))
        keys = [
            (name, metric)
            for name, rows in columns.items()
            for metric in dict.fromkeys(metric for row in rows for metric in row)
        ]
        self._place = {key: place for place, key in enumerate(keys)}
        values = np.full((self.rows, len(keys)), np.nan)
        for (name, metric), place in self._place.items():
            values[:, place] = [row.get(metric, np.nan) for row in columns[name]]
        known = np.isfinite(values)
        self._known = known.sum(axis=0)
        table = np.hstack([np.where(known, values, 0.0), known])
        self._means = _means(np.ones(self.rows), table)
        self._drawn = np.empty((resamples, len(keys)))  # the means of each resample
        if keys and self.rows > 1:
            generator = np.random.default_rng(seed)
            for index in range(resamples):
                picked = generator.integers(self.rows, size=self.rows)
                counts = np.bincount(picked, minlength=self.rows)
                self._drawn[index] = _means(counts.astype(float), table)

    def mean(self, name: str, metric: str) -> Interval | None:
        """A column's mean score; None without two rows that have it: nothing to estimate from."""
        place = self._place.get((name, metric))
        if place is None or self._known[place] < 2:
            return None
        return _interval(self._means[place], self._drawn[:, place])

    def difference(self, name: str, other: str, metric: str) -> Interval | None:
        """The mean of column ``name`` less that of ``other``, paired; None as for `mean`."""
        if self.mean(name, metric) is None or self.mean(other, metric) is None:
            return None
        here, there = self._place[name, metric], self._place[other, metric]
        return _interval(
            self._means[here] - self._means[there], self._drawn[:, here] - self._drawn[:, there]
        )


def _means(counts: Floats, table: Floats) -> Floats:
    """[k]: the means of k columns with row i counted counts[i] times; NaN where none is known.

    ``table`` [rows, 2k]: the scores, 0 where unknown, and beside them 1 where known, else 0.
    """
    sums, known = np.split(counts @ table, 2)
    with np.errstate(invalid="ignore"):
        means: Floats = sums / known
    return means


def _interval(value: float, drawn: Floats) -> Interval:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Interval(float(value), float(low), float(high))
