"""lengths.json: histograms that a reader can count."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from ptkit_tasks.generation import Generation

from ptkit import IGNORE, EncodedRow, HeadLimits, Row, SourcePath
from ptkit.data import Part
from ptkit.engine import lengths

GENERATED = Row((8, 9, 5, 6, 7, 2), (IGNORE, IGNORE, IGNORE, IGNORE, 7, 2), cut=3, cut_targets=1)


def part_of(rows: list[Row]) -> Part:
    part = Part.of("train", SourcePath("a", Path("a")), [])
    for row in rows:
        part.rows.append([row])
    return part


def test_prompt_and_target_or_input() -> None:
    def kinds(tokens: tuple[int, ...], labels: tuple[int, ...]) -> dict[str, int]:
        return lengths.row_lengths(EncodedRow(Row(tokens, labels), 0))

    assert lengths.row_lengths(EncodedRow(GENERATED, 0)) == {"prompt": 4, "target": 2}
    assert kinds((1, 5, 6, 2), (IGNORE, 0, 1, IGNORE)) == {"input": 4}  # tagging
    assert kinds((1, 5, 6, 2), (3,)) == {"input": 4}  # one label a row
    assert kinds((1, 5), (IGNORE, IGNORE)) == {"input": 2}  # nothing to learn


def test_a_histogram_by_hand() -> None:
    found = lengths.histogram(Counter({3: 2, 4: 1, 9: 1}))
    counts = [0, 0, 0, 2, 1, 0, 0, 0, 0, 1]
    assert found == {"width": 1, "counts": counts, "mean": 19 / 4, "median": 3.5, "max": 9}
    wide = lengths.histogram(Counter({0: 1, 19: 1, 20: 5, 799: 1}))
    assert wide["width"] == 20
    assert wide["counts"] == [2, 5, *[0] * 37, 1]


@pytest.mark.parametrize("longest", [1, 39, 40, 79, 80, 199, 200, 1000, 32768])
def test_bins_are_few_and_hold_every_row(longest: int) -> None:
    found = lengths.histogram(Counter(range(longest + 1)))
    assert len(found["counts"]) <= lengths.BINS
    assert sum(found["counts"]) == longest + 1


def test_parts_with_limits_and_cuts() -> None:
    head = Generation(Generation.Settings(max_source_tokens=4, max_target_tokens=7))
    found = lengths.describe_lengths(head, [part_of([GENERATED, GENERATED])])
    assert found["limits"] == {"prompt": 4, "target": 7, "input": 4}
    train = found["parts"]["train"]
    assert (train["rows"], train["cut_rows"], train["cut_tokens"], train["cut_targets"]) == (
        2,
        2,
        6,
        2,
    )
    assert train["series"]["prompt"]["counts"] == [0, 0, 0, 0, 2]


def test_a_head_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generation, "limits", lambda self: HeadLimits())
    assert lengths.describe_lengths(Generation(Generation.Settings()), [])["limits"] == {}


def test_of_very_many_rows_some_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "LOOKED_AT", 10)
    part = part_of([Row((1,) * (1 + i % 3)) for i in range(25)])
    train = lengths.describe_lengths(Generation(Generation.Settings()), [part])["parts"]["train"]
    assert (train["rows"], train["counted_every"]) == (25, 3)
    assert sum(train["series"]["input"]["counts"]) == 9  # rows 0, 3, … 24
