"""Scores of the whole and of rows agree, and a row is scored once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import ptkit
from ptkit import Origin, Pair, PluginError, Record
from ptkit.data import Part
from ptkit.engine.evaluate import best_constant, score, score_rows
from ptkit.settings import SourcePath


class Same(ptkit.RowMetric):
    name = "same"
    scores = "text"

    def __init__(self, settings: ptkit.Settings) -> None:
        super().__init__(settings)
        self.calls = 0

    def score_row(self, pair: Pair) -> dict[str, float] | None:
        self.calls += 1
        if pair.reference is None:
            return None
        return {"same": 100.0 * (pair.prediction == pair.reference)}


class Doubled(Same):
    """A row metric whose total is its own business."""

    name = "doubled"

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return {"doubled": 2.0}


class Count(ptkit.Metric):
    name = "count"
    scores = "text"
    unit = "pairs"

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return {"count": len(pairs)}


def pairs(*answers: tuple[str, str | None]) -> list[Pair]:
    record = Record(origin=Origin("a", 1))
    return [Pair(record, prediction, reference) for prediction, reference in answers]


def validation(count: int) -> tuple[list[Record], Part]:
    """Records of lines 1, 2, …, and the part that they are."""
    records = [Record(origin=Origin("a", line)) for line in range(1, count + 1)]
    part = Part.of("validation", SourcePath("a", Path("a")), records)
    for record in records:
        part.origins.append(record.origin)
    return records, part


PAIRS = pairs(("a", "a"), ("b", "a"), ("c", None), ("a", "a"))


def test_a_row_is_scored_once_and_the_mean_is_the_metrics_own() -> None:
    metric = Same(Same.Settings())
    found = score_rows([metric, Count(Count.Settings())], PAIRS)
    assert metric.calls == len(PAIRS)
    assert found.rows == [{"same": 100.0}, {"same": 0.0}, {}, {"same": 100.0}]
    assert found.total == {"same": metric.score(PAIRS)["same"], "count": 4.0}
    assert found.units == {"same": "percent, 0–100", "count": "pairs"}
    assert score([metric, Count(Count.Settings())], PAIRS) == found.total


def test_a_total_of_its_own_is_kept() -> None:
    found = score_rows([Doubled(Doubled.Settings())], PAIRS[:1])
    assert (found.total, found.rows) == ({"doubled": 2.0}, [{"same": 100.0}])


def test_nothing_to_score() -> None:
    assert score_rows([Same(Same.Settings())], [])[:3] == ({}, [], {})
    assert score_rows([Same(Same.Settings())], pairs(("a", None)))[:3] == ({}, [{}], {})


def test_two_metrics_with_one_name() -> None:
    with pytest.raises(PluginError, match="metric 'same': another metric already gives 'same'"):
        score_rows([Same(Same.Settings()), Same(Same.Settings())], PAIRS)


def test_the_best_constant_has_scores_of_rows() -> None:
    class Head:
        def constants(self, records: Sequence[Record], *, seed: int) -> list[str]:
            return ["b", "a"]

        def reference(self, record: Record) -> str:
            return "a"

    records, part = validation(2)
    best = best_constant(Head(), [Same(Same.Settings())], records, part, seed=0)  # type: ignore[arg-type]
    assert best is not None
    assert best[0] == "a"
    assert best[1].rows == [{"same": 100.0}, {"same": 100.0}]


def test_the_best_constant_of_an_error_is_the_smallest() -> None:
    class Far(Same):
        name = "far"
        lower_is_better = True

    class Head:
        def constants(self, records: Sequence[Record], *, seed: int) -> list[str]:
            return ["a", "b"]

        def reference(self, record: Record) -> str:
            return "a"

    records, part = validation(1)
    best = best_constant(Head(), [Far(Far.Settings())], records, part, seed=0)  # type: ignore[arg-type]
    assert best is not None
    assert best[0] == "b"  # "same" is 100 for "a", which is the worse error


def test_a_constant_may_depend_on_the_record() -> None:
    """One tag for every word, of which each text has another number."""

    class Head:
        name, owner = "lines", ""

        def constants(self, records: Sequence[Record], *, seed: int) -> list[object]:
            return [lambda record: "a" * record.origin.line]

        def reference(self, record: Record) -> str:
            return "aa"

    records, part = validation(2)
    best = best_constant(Head(), [Same(Same.Settings())], records, part, seed=0)  # type: ignore[arg-type]
    assert best is not None
    assert best[1].rows == [{"same": 0.0}, {"same": 100.0}]

    class Broken(Head):
        def constants(self, records: Sequence[Record], *, seed: int) -> list[object]:
            return [lambda record: 1 / 0]

    with pytest.raises(PluginError, match=r"constants\(\) raised ZeroDivisionError"):
        best_constant(Broken(), [Same(Same.Settings())], records, part, seed=0)  # type: ignore[arg-type]
