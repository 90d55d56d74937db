"""From files to encoded rows: reading, splitting, transforming, encoding; rows are flat integer arrays."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ptkit.components import DatasetFormat, Limit, TaskHead, Tokenizer, Transform
from ptkit.errors import DataError
from ptkit.records import BadRow, EncodedRow, Record, Row
from ptkit.settings import SourcePath

PARTS = ("train", "validation", "test")


class RowStore:
    """Encoded rows of records 0, 1, 2, … as flat int32 arrays with offsets."""

    def __init__(self) -> None:
        self._flat = {name: array("i") for name in ("tokens", "labels", "token_types")}
        self._ends = {name: array("q", [0]) for name in self._flat}
        self._record = array("i")
        self._part = array("i")
        self._cut = array("i")
        self._weight = array("d")
        self._first_row = array("q", [0])

    def append(self, rows: Sequence[Row], weight: float = 1.0) -> None:
        """The rows of the next record."""
        record = len(self._first_row) - 1
        for part, row in enumerate(rows):
            for name, flat in self._flat.items():
                flat.extend(getattr(row, name))
                self._ends[name].append(len(flat))
            self._record.append(record)
            self._part.append(part)
            self._cut.append(row.cut)
            self._weight.append(weight)
        self._first_row.append(len(self._record))

    def __len__(self) -> int:
        return len(self._record)

    @property
    def records(self) -> int:
        return len(self._first_row) - 1

    def rows_of(self, record: int) -> range:
        """The indices of a record's rows."""
        return range(self._first_row[record], self._first_row[record + 1])

    def length(self, index: int) -> int:
        """The number of tokens of a row."""
        ends = self._ends["tokens"]
        return ends[index + 1] - ends[index]

    def __getitem__(self, index: int) -> EncodedRow:
        def part(name: str) -> tuple[int, ...]:
            ends = self._ends[name]
            return tuple(self._flat[name][ends[index] : ends[index + 1]])

        row = Row(part("tokens"), part("labels"), part("token_types"), self._cut[index])
        return EncodedRow(row, self._record[index], self._part[index], self._weight[index])

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[index] for index in range(len(self)))

    def groups(self, records: Iterable[int], *, share_loss: bool) -> list[list[int]]:
        """Row indices of ``records`` by loss group: one group a record, or one a row."""
        if share_loss:
            return [list(self.rows_of(record)) for record in records]
        return [[index] for record in records for index in self.rows_of(record)]


@dataclass
class Part:
    """A part of the data, read and encoded."""

    name: str
    source: SourcePath
    records: list[Record]
    skipped: list[BadRow] = field(default_factory=list)
    rows: RowStore = field(default_factory=RowStore)
    sha256: str = ""


def read_part(form: DatasetFormat, name: str, source: SourcePath, limit: int | None) -> Part:
    """The records of one file. Raises `DataError` with up to 20 bad rows at once."""
    part = Part(name, source, [], sha256=sha256(source))
    for item in form.read(source.path, source.name):
        if not isinstance(item, BadRow):
            part.records.append(item)
            if limit is not None and len(part.records) >= limit:
                break
            continue
        part.skipped.append(item)
        if form.settings.on_bad_row == "error" and len(part.skipped) >= DataError.SHOWN_AT_ONCE:
            break
    if part.skipped and form.settings.on_bad_row == "error":
        raise DataError(*map(str, part.skipped), bad_rows=part.skipped)
    if not part.records:
        bad = f" ({len(part.skipped)} bad rows were skipped)" if part.skipped else ""
        raise DataError(f"{source.name}: has no rows{bad}; dataset.{name} needs at least one")
    return part


def _limit(settings: DatasetFormat.Settings, name: str) -> int | None:
    limit = settings.limit
    if isinstance(limit, Limit):
        found: int | None = getattr(limit, name)
        return found
    return limit


def read_parts(
    form: DatasetFormat, transforms: Sequence[Transform], *, seed: int
) -> dict[str, Part]:
    """Every part that the recipe names, split off and transformed, but not yet encoded."""
    settings = form.settings
    parts: dict[str, Part] = {}
    for name in PARTS:
        source = getattr(settings, name)
        if source is not None:
            parts[name] = read_part(form, name, source, _limit(settings, name))
    if settings.split is not None and "validation" not in parts:
        parts |= _split(parts["train"], settings.split, _limit(settings, "validation"), seed)
    for transform in transforms:
        for name in transform.on:
            if name in parts:
                records = list(transform.apply(parts[name].records, seed=seed))
                if not records:
                    raise DataError(f"transform {transform.name!r} left no rows of dataset.{name}")
                parts[name].records = records
    return parts


def _split(train: Part, share: float, limit: int | None, seed: int) -> dict[str, Part]:
    count = len(train.records)
    held = max(1, round(share * count))
    if held >= count:
        raise DataError(
            f"{train.source.name}: dataset.split = {share} of {count} rows leaves none to train on"
        )
    chosen = set(np.random.default_rng(seed).permutation(count)[:held].tolist())
    validation = [r for i, r in enumerate(train.records) if i in chosen]
    return {
        "train": Part(
            "train",
            train.source,
            [r for i, r in enumerate(train.records) if i not in chosen],
            train.skipped,
            sha256=train.sha256,
        ),
        "validation": Part(
            "validation", train.source, list(islice(validation, limit)), sha256=train.sha256
        ),
    }


def encode_part(
    part: Part,
    head: TaskHead,
    tokenizer: Tokenizer,
    max_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill ``part.rows``. Raises `DataError` for a record that gives no row or one that doesn't fit."""
    for done, record in enumerate(part.records, start=1):
        rows = head.encode(record, tokenizer)
        if not rows or any(not row.tokens for row in rows):
            raise DataError(f"{record.origin}: task {head.name!r} made no tokens of it")
        longest = max(len(row.tokens) for row in rows)
        if longest > max_tokens:
            raise DataError(
                f"{record.origin}: has {longest} tokens, but the backbone takes {max_tokens}; "
                f"shorten it with the settings of task {head.name!r}"
            )
        part.rows.append(rows, record.weight)
        if progress is not None and (done % 1000 == 0 or done == len(part.records)):
            progress(done, len(part.records))


def sha256(source: SourcePath) -> str:
    """The hash of a file's bytes. Raises `DataError` if it can't be read."""
    try:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{source.name}: can't be read: {error.strerror}") from None
