"""A record and its rows as a person reads them: text, ids, and what is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from ptkit.components import TaskHead
from ptkit.models import Tokenizer
from ptkit.records import IGNORE, Record, Row

DECODED_BEFORE = 8  # tokens that are enough to see what one more adds


@dataclass(frozen=True)
class Run:
    """Adjacent tokens, all trained on or all only read; ``labels``: tags, one a piece."""

    trained: bool
    pieces: list[str]
    labels: list[str]


@dataclass(frozen=True)
class SampleRow:
    """An encoded sequence. ``runs`` covers it; ``labels`` holds those that belong to no token."""

    ids: list[int]
    runs: list[Run]
    labels: list[str]
    trained: int
    cut: int


@dataclass(frozen=True)
class Sample:
    """A record: where it is, what it says field by field, and the rows that it became."""

    origin: str
    fields: dict[str, Any]
    rows: list[SampleRow]


def sample_of(
    record: Record, rows: Sequence[Row], kind: str, head: TaskHead, tokenizer: Tokenizer
) -> Sample:
    """``kind``: what the labels are, see `ptkit.counting.label_kind`."""
    said = {f.name: getattr(record, f.name) for f in fields(record) if f.name != "origin"}
    shown = {
        name: value
        for name, value in said.items()
        if value not in (None, (), [], "") and not (name == "weight" and value == 1.0)
    }
    return Sample(str(record.origin), shown, [_row(row, kind, head, tokenizer) for row in rows])


def _row(row: Row, kind: str, head: TaskHead, tokenizer: Tokenizer) -> SampleRow:
    pieces = token_texts(row.tokens, tokenizer)
    aligned = kind != "plain" and len(row.labels) == len(row.tokens)
    labels = row.labels if aligned else (IGNORE,) * len(row.tokens)
    runs = []
    for trained, group in groupby(
        zip(pieces, labels, strict=True), key=lambda pair: pair[1] != IGNORE
    ):
        members = list(group)
        runs.append(
            Run(
                trained,
                [piece for piece, _ in members],
                [head.label_text(label) for _, label in members]
                if trained and kind == "tags"
                else [],
            )
        )
    return SampleRow(
        list(row.tokens),
        runs,
        [] if aligned else [head.label_text(label) for label in row.labels],
        sum(label != IGNORE for label in row.labels),
        row.cut,
    )


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text; specials, which add nothing, as ⟨eos⟩ or ⟨their id⟩.

    A character that several tokens share shows as � in each.
    """
    found = []
    for index, token in enumerate(ids):
        start = max(0, index - DECODED_BEFORE)
        before = tokenizer.decode(ids[start:index])
        whole = tokenizer.decode(ids[start : index + 1])
        added = whole.removeprefix(before) if whole.startswith(before) else ""
        text = added or tokenizer.decode([token])
        special = "⟨eos⟩" if token == tokenizer.eos_id else f"⟨{token}⟩"
        found.append(text or special)
    return found
