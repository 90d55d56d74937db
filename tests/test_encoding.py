"""Encoding a part: many records at once, with the result of one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from ptkit_tasks.generation import Generation

import ptkit
from ptkit.data import Part, encode_part
from ptkit.settings import SourcePath
from ptkit.testing import WordTokenizer


class Counting(Generation):
    """Keeps the sizes of the batches that it was given."""

    def __init__(self) -> None:
        super().__init__(Generation.Settings(max_source_tokens=8, max_target_tokens=4))
        self.batches: list[int] = []

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        self.batches.append(len(records))
        return super().encode_batch(records, tokenizer)


def part_of(count: int) -> Part:
    records: list[ptkit.Record] = [
        ptkit.GenerationRecord(
            origin=ptkit.Origin("rows", line),
            prompt="red " * (line % 13),
            response=None if line % 5 == 0 else "shoe " * (line % 7),
        )
        for line in range(1, count + 1)
    ]
    return Part.of("train", SourcePath("rows", Path("rows")), records)


def test_many_at_once_are_the_same_rows() -> None:
    head, tokenizer, part = Counting(), WordTokenizer(["red", "shoe"]), part_of(2100)
    seen: list[int] = []
    encode_part(part, head, tokenizer, 64, progress=seen.append)
    assert head.batches == [1000, 1000, 100]
    assert seen == [1000, 2000, 2100]
    assert part.count == len(part.rows) == 2100
    for index in (0, 4, 999, 1000, 2099):
        record = (part.records or [])[index]
        assert [part.rows[index].row] == head.encode(record, tokenizer)
        assert part.origins[index] == record.origin


def test_a_row_that_is_too_long_is_named_by_its_own_record() -> None:
    with pytest.raises(ptkit.DataError, match="^rows:11: has 13 tokens, but the backbone takes"):
        encode_part(part_of(40), Counting(), WordTokenizer(["red", "shoe"]), 12)


def test_the_default_goes_through_texts_and_records_one_by_one() -> None:
    tokenizer = WordTokenizer(["red", "shoe"])
    assert tokenizer.encode_batch(["red", "red shoe"]) == [[3], [3, 4]]
    parts = [tokenizer.prompt(query) for query in ("red", "shoe red")]
    assert tokenizer.encode_prompts(parts) == [
        [*tokenizer.start_ids, *tokenizer.encode(part.text)] for part in parts
    ]
