"""The metric ``distinct``: scores worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from ptkit import GenerationRecord, Origin, Pair
from ptkit.testing import check_metric

from ptkit_dialogues.distinct import Distinct


def pairs(*predictions: str) -> list[Pair]:
    record = GenerationRecord(origin=Origin("x.csv", 1), prompt="")
    return [Pair(record, prediction, "r") for prediction in predictions]


def scores(*predictions: str, **settings: Any) -> tuple[float, float]:
    found = Distinct(Distinct.Settings(**settings)).score(pairs(*predictions))
    assert list(found) == ["distinct-1", "distinct-2"]
    return found["distinct-1"], found["distinct-2"]


def test_it_keeps_the_contract() -> None:
    for tokens in ("characters", "words"):
        metric = Distinct(Distinct.Settings(tokens=tokens))
        check_metric(metric, pairs("a b a", "好的。", "a b", ""))


@pytest.mark.parametrize(
    ("predictions", "settings", "expected"),
    [
        # 好 的 好 的; 好的 的好 好的: none reaches into the next prediction
        (("好的好", "的"), {}, (2 / 4, 2 / 2)),
        (("好的好的",), {}, (2 / 4, 2 / 3)),
        # white space is left out: a b a b; ab ba ab
        (("a b\nab",), {}, (2 / 4, 2 / 3)),
        # I am I; am; "I am" "am I"
        (("I am I", "am"), {"tokens": "words"}, (2 / 4, 2 / 2)),
        # I i: case counts
        (("I i",), {"tokens": "words"}, (2 / 2, 1 / 1)),
        # "ab" "c" is another bigram than "a" "bc"
        (("ab c", "a bc"), {"tokens": "words"}, (4 / 4, 2 / 2)),
        # the same answer to ten prompts
        (("好的",) * 10, {}, (2 / 20, 1 / 10)),
        # no bigram, and no n-gram at all
        (("好", "的"), {}, (2 / 2, 0)),
        (("", " \u3000"), {}, (0, 0)),
        # empty predictions change nothing
        (("好的好的", ""), {}, (2 / 4, 2 / 3)),
    ],
)
def test_scores(
    predictions: tuple[str, ...], settings: Any, expected: tuple[float, float]
) -> None:
    assert scores(*predictions, **settings) == pytest.approx(
        tuple(100 * share for share in expected)
    )


def test_it_is_no_mean_over_rows() -> None:
    assert scores("好", "好") == pytest.approx((50, 0))
    assert scores("好") == pytest.approx((100, 0))


def test_what_a_reader_must_know() -> None:
    metric = Distinct(Distinct.Settings())
    assert metric.unit == "percent, 0–100"
    assert metric.score([]) == {}
    assert metric.warnings(pairs("好", "", " ")) == [
        "2 of 3 predictions are empty and don't count"
    ]
    assert metric.warnings(pairs("好")) == []
