"""The contract check for metrics."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from ptkit.components import Metric, RowMetric
from ptkit.records import Pair
from ptkit.testing.faults import Subject, same

_BY_TYPE = object()
_TOLERANCE = 1e-9  # sums in another order


def check_metric(
    metric: Metric, pairs: Sequence[Pair], *, empty: Any = _BY_TYPE
) -> dict[str, float]:
    """Check that ``metric`` keeps the contract of `ptkit.Metric` on ``pairs``.

    Returns their scores. Give it a handful of pairs whose predictions differ in quality.
    ``empty``: a prediction that says nothing, which every model gives sooner or later; by default
    "" for texts and an empty list, tuple or dictionary for those. Raises `AssertionError` naming
    the metric, the fault and what to do.
    """
    subject = Subject(metric, Metric)
    subject.check_component()
    pairs = list(pairs)
    if not pairs:
        raise subject.fault("check_metric() needs at least one pair")
    if isinstance(metric, RowMetric):
        _check_rows(subject, metric, pairs)
    scores = _scores(subject, metric, pairs, "score()")
    if not scores:
        raise subject.fault("score() gave no scores; check it with pairs that it applies to")
    orders = {"in another order": pairs[::-1], "with the last first": pairs[-1:] + pairs[:-1]}
    for what, order in {"again": pairs, **orders, "once more": pairs}.items():
        other = _scores(subject, metric, order, f"score() of the pairs {what}")
        if not same(scores, other, _TOLERANCE):
            advice = "depend on no order" if what in orders else "keep nothing between calls"
            raise subject.fault(
                f"the pairs {what} score {other}, not {scores}; a metric must {advice}"
            )
    _check_empty(subject, metric, pairs, empty)
    for number, pair in enumerate(pairs, start=1):
        _scores(subject, metric, [pair], f"score() of pair {number} alone")
    _scores(subject, metric, [], "score() of no pairs")
    for some in (pairs, []):
        texts = subject.call(f"warnings() of {len(some)} pairs", partial(metric.warnings, some))
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise subject.fault(f"warnings() must return a list of strings, got {texts!r}")
    subject.check_import()
    return scores


def _scores(subject: Subject, metric: Metric, pairs: list[Pair], what: str) -> dict[str, float]:
    """What ``score`` gives, checked: plain finite numbers by name, and pairs left as they were."""
    given = copy.deepcopy(pairs)
    scores = subject.call(
        what, lambda: metric.score(given), "; score 0 or leave out what can't be scored"
    )
    if not same(given, pairs):
        raise subject.fault(f"{what} changed its pairs; other metrics score them too")
    if not isinstance(scores, dict) or not all(isinstance(name, str) for name in scores):
        raise subject.fault(f"{what} must return a dict of name to score, got {scores!r}")
    percent = metric.unit == Metric.unit
    for name, value in scores.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise subject.fault(
                f"{what}: {name} is a {type(value).__name__}, {value!r}; return plain floats"
            )
        if not math.isfinite(value):
            raise subject.fault(f"{what}: {name} is {value}; return finite numbers")
        if percent and not -_TOLERANCE <= value <= 100 + _TOLERANCE:
            raise subject.fault(
                f"{what}: {name} is {value}, but its unit is {metric.unit!r}; scale it, or set unit"
            )
    return scores


def _check_empty(subject: Subject, metric: Metric, pairs: list[Pair], empty: Any) -> None:
    if empty is _BY_TYPE:
        kind = type(pairs[0].prediction)
        if kind not in (str, list, tuple, dict):
            return
        empty = kind()
    for index, pair in enumerate(pairs):
        blank = dataclasses.replace(pair, prediction=empty)
        some = [*pairs[:index], blank, *pairs[index + 1 :]]
        _scores(subject, metric, some, f"score() with the empty prediction {empty!r}")
    blanks = [dataclasses.replace(pair, prediction=empty) for pair in pairs]
    _scores(subject, metric, blanks, f"score() with nothing but the empty prediction {empty!r}")


def _check_rows(subject: Subject, metric: RowMetric, pairs: list[Pair]) -> None:
    names: set[str] | None = None
    for pair in copy.deepcopy(pairs):
        row = subject.call("score_row()", partial(metric.score_row, pair))
        if row is None:
            continue
        if not isinstance(row, dict):
            raise subject.fault(f"score_row() must return a dict or None, got {row!r}")
        if names is not None and set(row) != names:
            raise subject.fault(
                f"score_row() gives {sorted(names)} for one pair and {sorted(row)} for another; "
                "give the same names for every pair, or None where the metric doesn't apply"
            )
        names = set(row)
