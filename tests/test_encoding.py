"""Encoding a part: many records at once, with the result of one after the other."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from ptkit_tasks.generation import Generation

import ptkit
from ptkit.data import BETWEEN_COLLECTIONS, Part, encode_part
from ptkit.rowstore import RowStore
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


class Failing(Counting):
    """Fails at the row of line 1,500; one by one, and so many at once."""

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return self.encode_batch([record], tokenizer)[0]

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        if any(record.origin.line == 1500 for record in records):
            raise KeyError("shoe")
        return super().encode_batch(records, tokenizer)


def test_a_head_that_fails_in_the_middle_names_the_row() -> None:
    part, seen = part_of(2100), list[int]()
    with pytest.raises(
        ptkit.PluginError, match=r"^rows:1500: .*encode\(\) raised KeyError: 'shoe'"
    ):
        encode_part(part, Failing(), WordTokenizer(["red", "shoe"]), 64, progress=seen.append)
    assert seen == [1000]  # the rows before those that were encoded at once


def test_a_file_that_breaks_in_the_middle_says_what_the_format_says() -> None:
    def broken() -> Iterator[ptkit.Record]:
        yield from (part_of(1500).records or [])
        raise ptkit.DataError("rows:1501: is damaged")

    part = Part("train", SourcePath("rows", Path("rows")), broken)
    with pytest.raises(ptkit.DataError, match="^rows:1501: is damaged$"):
        encode_part(part, Counting(), WordTokenizer(["red", "shoe"]), 64)


def test_a_check_refuses_the_numbers_that_a_run_would() -> None:
    class Halves(Counting):
        def encode_batch(
            self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
        ) -> list[list[ptkit.Row]]:
            return [[ptkit.Row((1,), (0.5,))] for _ in records]  # type: ignore[arg-type]

    part = part_of(3)
    part.rows = RowStore(keep=False)
    with pytest.raises(
        ptkit.PluginError, match=r"^rows:1: .* whole numbers of 32 bits \(TypeError"
    ):
        encode_part(part, Halves(), WordTokenizer(["red", "shoe"]), 64)


@pytest.mark.parametrize("before", [(700, 10, 10), (50_000, 5, 5), (0, 10, 10)])
def test_the_garbage_collector_is_left_as_it_was(before: tuple[int, int, int]) -> None:
    during: list[int] = []

    class Asking(Counting):
        def encode_batch(
            self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
        ) -> list[list[ptkit.Row]]:
            during.append(gc.get_threshold()[0])
            return super().encode_batch(records, tokenizer)

    kept = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        encode_part(part_of(3), Asking(), WordTokenizer(["red", "shoe"]), 64)
        assert gc.get_threshold() == before
        with pytest.raises(ptkit.DataError):
            encode_part(part_of(3), Asking(), WordTokenizer(["red", "shoe"]), 1)
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*kept)
    # 0 is for never
    assert during == [max(before[0], BETWEEN_COLLECTIONS) if before[0] else 0] * 2


def test_the_default_goes_through_texts_and_records_one_by_one() -> None:
    tokenizer = WordTokenizer(["red", "shoe"])
    assert tokenizer.encode_batch(["red", "red shoe"]) == [[3], [3, 4]]
    parts = [tokenizer.prompt(query) for query in ("red", "shoe red")]
    assert tokenizer.encode_prompts(parts) == [
        [*tokenizer.start_ids, *tokenizer.encode(part.text)] for part in parts
    ]
