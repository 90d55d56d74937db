"""From files to encoded rows: reading, splitting, transforming, encoding."""

from __future__ import annotations

import gc
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from ptkit.components import DatasetFormat, Limit, TaskHead, Transform
from ptkit.errors import DataError, PtkitError
from ptkit.isolation import blamed, check_type, fault, one_line
from ptkit.models import Tokenizer
from ptkit.records import BadRow, Origin, Record, Row
from ptkit.rowstore import Origins, RowStore
from ptkit.settings import SourcePath

PARTS = ("train", "validation", "test")


ENCODED_AT_ONCE = 1000  # records
BETWEEN_COLLECTIONS = 10_000  # objects; several of each of the records that are encoded at once
SAME_SHOWN = 3  # bad rows with one message
SAMPLE = 2000  # records of a streamed part that stay in memory, for the constant control


@dataclass
class Part:
    """A part of the data: what it is made of, and, once encoded, its rows.

    ``records`` holds them all for the parts that are scored or transformed; a training file that
    isn't transformed is streamed, and ``records`` is then None. ``sample``: up to 2,000 of them,
    picked by the seed.
    """

    name: str
    source: SourcePath
    stream: Callable[[], Iterator[Record]]
    records: list[Record] | None = None
    skipped: list[BadRow] = field(default_factory=list)
    rows: RowStore = field(default_factory=RowStore)
    origins: Origins = field(default_factory=Origins)
    sample: list[Record] = field(default_factory=list)
    sha256: str = ""

    @classmethod
    def of(cls, name: str, source: SourcePath, records: list[Record], **kwargs: Any) -> Part:
        """A part with its records in memory."""
        return cls(name, source, lambda: iter(records), records, **kwargs)

    @property
    def count(self) -> int:
        """The number of records, known once the part is encoded."""
        return len(self.origins)


def read_rows(
    form: DatasetFormat, source: SourcePath, *, answered: bool = True
) -> Iterator[Record | BadRow]:
    """The rows of a file as its format gives them.

    Raises `PluginError` for what the format itself does wrong, with the row that it got to.
    """
    read, what = (form.read, "read()") if answered else (form.read_unanswered, "read_unanswered()")
    wanted = f"{form.record.__name__} objects or ptkit.BadRow"
    last: object = source.name
    with blamed(form, what, lambda: last):
        rows = read(source.path, source.name)
        check_type(form, what, rows, Iterable, f"an iterator of {wanted}", last)
        for row in rows:
            if not isinstance(row, form.record | BadRow):
                problem = f"{what} must give {wanted}, got {type(row).__name__} behind this row"
                raise fault(form, problem, last)
            check_type(form, f"{what} of a row", row.origin, Origin, "a ptkit.Origin", last)
            last = row.origin
            yield row


def collect_labels(head: TaskHead, train: Part) -> list[str]:
    """The labels of the training records. Raises `PluginError` for what the head does wrong."""
    seen: object = ""

    def records() -> Iterator[Record]:
        nonlocal seen
        for record in train.stream():
            seen = record.origin
            yield record

    with blamed(head, "collect_labels()", lambda: seen):
        found = head.collect_labels(records())
        check_type(head, "collect_labels()", found, Sequence, "a list of strings")
        for label in found:
            check_type(head, "collect_labels()", label, str, "a list of strings")
    return list(found)


def _told(bad: Sequence[BadRow], *, stopped: bool) -> list[str]:
    """A line a row, of those with one and the same message the first three, and what is left out.

    ``stopped``: whether the rows behind the last one were not read.
    """
    seen: Counter[str] = Counter()
    lines: list[str] = []
    for row in bad:
        seen[row.message] += 1
        if seen[row.message] <= SAME_SHOWN:
            lines.append(str(row))
    if more := len(bad) - len(lines):
        rows = f"{more:,} more row{'' if more == 1 else 's'} with the same mistake"
        end = f"; reading stopped at line {bad[-1].origin.line:,}" if stopped else ""
        lines.append(f"{bad[-1].origin.file}: {rows}{end}")
    return lines


class _Reader:
    """Reads one file: keeps bad rows, and stops as ``on_bad_row`` and ``limit`` say."""

    def __init__(
        self, form: DatasetFormat, key: str, source: SourcePath, limit: int | None
    ) -> None:
        self.form, self.key, self.source, self.limit = form, key, source, limit
        self.skipped: list[BadRow] = []

    def __call__(self) -> Iterator[Record]:
        self.skipped.clear()
        strict = self.form.settings.on_bad_row == "error"
        found, stopped = 0, False
        for item in read_rows(self.form, self.source):
            if isinstance(item, BadRow):
                self.skipped.append(item)
                if strict and len(self.skipped) >= DataError.SHOWN_AT_ONCE:
                    stopped = True
                    break
                continue
            found += 1
            if not (strict and self.skipped):
                yield item
            if found == self.limit:
                break
        if self.skipped and strict:
            raise DataError(*_told(self.skipped, stopped=stopped), bad_rows=self.skipped)
        if not found:
            bad = f" ({len(self.skipped)} bad rows were skipped)" if self.skipped else ""
            raise DataError(f"{self.source.name}: has no rows{bad}; {self.key} needs at least one")


def open_part(
    form: DatasetFormat, name: str, source: SourcePath, limit: int | None, key: str
) -> Part:
    """A part that reads ``source`` when it is streamed; ``key``: the setting that named the
    file."""
    reader = _Reader(form, key, source, limit)
    return Part(name, source, reader, skipped=reader.skipped, sha256=sha256(source))


def _limit(settings: DatasetFormat.Settings, name: str) -> int | None:
    limit = settings.limit
    if isinstance(limit, Limit):
        found: int | None = getattr(limit, name)
        return found
    return limit


def read_parts(
    form: DatasetFormat, transforms: Sequence[Transform], *, seed: int
) -> dict[str, Part]:
    """Every part that the recipe names, split off and transformed, but not yet encoded.

    Raises `DataError` with up to 20 bad rows at once, unless they are to be skipped.
    """
    settings = form.settings
    parts: dict[str, Part] = {}
    splits = settings.split is not None and settings.validation is None
    for name in PARTS:
        source = getattr(settings, name)
        if source is None:
            continue
        parts[name] = open_part(form, name, source, _limit(settings, name), f"dataset.{name}")
        changed = any(name in transform.on for transform in transforms)
        if name != "train" or (changed and not splits):
            keep(parts[name], list(parts[name].stream()))
    if splits:
        assert settings.split is not None
        parts = _split(parts["train"], settings.split, _limit(settings, "validation"), seed) | {
            name: part for name, part in parts.items() if name != "train"
        }
    for transform in transforms:
        for name in transform.on:
            if name in parts:
                before = parts[name].records
                before = list(parts[name].stream()) if before is None else before
                with blamed(transform, "apply()"):
                    records = list(transform.apply(before, seed=seed))
                for record in records:
                    check_type(transform, "apply()", record, Record, "ptkit.Record objects")
                if not records:
                    raise DataError(f"transform {transform.name!r} left no rows of dataset.{name}")
                keep(parts[name], records)
    return {name: parts[name] for name in PARTS if name in parts}


def keep(part: Part, records: list[Record]) -> None:
    """Make ``records`` those of the part, in memory."""
    part.records = records
    part.stream = lambda: iter(records)


def _split(train: Part, share: float, limit: int | None, seed: int) -> dict[str, Part]:
    """Hold a share of the training rows out; train is read again and again, and stays streamed."""
    count = sum(1 for _ in train.stream())
    held = max(1, round(share * count))
    if held >= count:
        raise DataError(
            f"{train.source.name}: dataset.split = {share} of {count} rows leaves none to train on"
        )
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[:held]] = True
    picked = (record for record, out in zip(train.stream(), chosen, strict=False) if out)
    validation = list(islice(picked, limit))
    whole = train.stream
    train.stream = lambda: (r for r, out in zip(whole(), chosen, strict=False) if not out)
    return {
        "train": train,
        "validation": Part.of("validation", train.source, validation, sha256=train.sha256),
    }


def encode_record(
    record: Record, head: TaskHead, tokenizer: Tokenizer, max_tokens: int
) -> Sequence[Row]:
    """The rows of a record. Raises `DataError` for none, or for more tokens than the backbone
    takes."""
    with blamed(head, "encode()", record.origin):
        rows = head.encode(record, tokenizer)
    return checked_rows(record, rows, head, max_tokens)


def checked_rows(
    record: Record, rows: Sequence[Row], head: TaskHead, max_tokens: int
) -> Sequence[Row]:
    """``rows``, if the backbone takes them. Raises `DataError` as `encode_record` does."""
    check_type(head, "encode()", rows, list | tuple, "a list of ptkit.Row", record.origin)
    for row in rows:
        check_type(head, "encode()", row, Row, "a list of ptkit.Row", record.origin)
    lengths = [len(row.tokens) for row in rows]
    if not lengths or not min(lengths):
        raise DataError(f"{record.origin}: task {head.name!r} made no tokens of it")
    longest = max(lengths)
    if longest > max_tokens:
        raise DataError(
            f"{record.origin}: has {longest} tokens, but the backbone takes {max_tokens}; "
            f"shorten it with the settings of task {head.name!r}"
        )
    return rows


@contextmanager
def rare_collections() -> Iterator[None]:
    """Have the garbage collector look every 10,000 new objects, not every 700.

    Rows make many and hardly a cycle; with torch's objects around that is a third of the time.
    """
    first, *others = gc.get_threshold()
    if 0 < first < BETWEEN_COLLECTIONS:
        gc.set_threshold(BETWEEN_COLLECTIONS, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


@rare_collections()
def encode_part(
    part: Part,
    head: TaskHead,
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[Record, Sequence[Row]], None] | None = None,
) -> None:
    """Fill ``part.rows``, ``origins`` and ``sample``.

    ``progress`` gets the number of records so far, ``watch`` every record with its rows.

    Raises `DataError` for a record that gives no row, or one that the backbone can't take.
    """
    draw = random.Random(seed)
    part.rows.origins = part.origins
    for index, (record, rows) in enumerate(_encoded(part.stream(), head, tokenizer)):
        checked_rows(record, rows, head, max_tokens)
        try:
            part.rows.append(rows, record.weight)
        except (TypeError, OverflowError) as error:
            problem = "encode() must give tuples of whole numbers of 32 bits"
            raise fault(head, f"{problem} ({one_line(error)})", record.origin) from error
        part.origins.append(record.origin)
        if watch is not None:
            watch(record, rows)
        if index < SAMPLE:
            part.sample.append(record)
        elif (place := draw.randrange(index + 1)) < SAMPLE:
            part.sample[place] = record
        if progress is not None and index % 1000 == 999:
            progress(index + 1)
    if progress is not None:
        progress(part.count)


def _encoded(
    records: Iterator[Record], head: TaskHead, tokenizer: Tokenizer
) -> Iterator[tuple[Record, Sequence[Row]]]:
    """Every record with its rows; many are encoded at once."""
    while batch := list(islice(records, ENCODED_AT_ONCE)):
        try:
            found = head.encode_batch(batch, tokenizer)
        except PtkitError:
            raise
        except (Exception, SystemExit):
            for record in batch:  # each alone: the first that fails is named
                with blamed(head, "encode()", record.origin):
                    head.encode(record, tokenizer)
            with blamed(head, "encode_batch()", f"{batch[0].origin} and behind"):
                raise
        wanted = f"a list of rows for each of {len(batch)} records"
        check_type(head, "encode_batch()", found, list | tuple, wanted, batch[0].origin)
        if len(found) != len(batch):
            problem = f"encode_batch() must return {wanted}, got {len(found)}"
            raise fault(head, problem, batch[0].origin)
        yield from zip(batch, found, strict=True)


def sha256(source: SourcePath) -> str:
    """The hash of a file's bytes. Raises `DataError` if it can't be read."""
    try:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{source.name}: can't be read: {error.strerror}") from None
