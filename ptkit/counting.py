"""What a check counts while the rows of a data part go by, in a few flat numbers a row."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from ptkit.data import Part
from ptkit.records import IGNORE, Record, Row

BINS = 12  # at most, in a histogram
EXAMPLES = 3  # of equal rows
_NOT_CONTENT = ("origin", "weight")
LOOKED_AT = 100  # rows, to find out what a head's labels are

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """``rows`` have from ``first`` to ``last`` tokens, both included."""

    first: int
    last: int
    rows: int


@dataclass(frozen=True)
class Lengths:
    """How many tokens rows have, before anything was cut off, and what was.

    ``what``: "prompt", "target", or "input" for heads that don't train on tokens of the row.
    ``percent``: the smallest length that is enough for so many per cent of the rows. ``cut``: rows
    that lost tokens.
    """

    what: str
    total: int
    percent: dict[int, int]
    histogram: list[Bin]
    cut: int


@dataclass(frozen=True)
class Equal:
    """``count`` records equal another; ``examples`` holds the places of both, the other first."""

    count: int
    examples: list[tuple[str, str]]


def content_hash(record: Record) -> int:
    """64 bits of what a record says: its type and fields, but neither origin nor weight."""
    kind: type = type(record)
    said = f"{kind.__qualname__}\0{_content(kind)(record)!r}"
    digest = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


@lru_cache
def _content(kind: type[Any]) -> Callable[[Record], object]:
    """A function that gives the values of a record's fields but for those that don't count."""
    names = [f.name for f in fields(kind) if f.name not in _NOT_CONTENT]
    return attrgetter(*names) if names else lambda _: ()


def label_kind(rows: Sequence[Row]) -> str:
    """What labels are: "text" (the row's own tokens), "tags" (one a token), or "plain"."""
    labelled = [row for row in rows if any(label != IGNORE for label in row.labels)]
    if not labelled or any(len(row.labels) != len(row.tokens) for row in labelled):
        return "plain"
    own = all(
        label in (IGNORE, token)
        for row in labelled
        for token, label in zip(row.tokens, row.labels, strict=True)
    )
    return "text" if own else "tags"


class Tally:
    """Sees the rows of one part; keeps the first ones whole, and a few numbers of each."""

    def __init__(self, part: Part, shown: int) -> None:
        self.part = part
        self.first: list[tuple[Record, list[Row]]] = []
        self._shown = shown
        self._rows: list[Row] = []
        self._kind: str | None = None
        self._trained = array("i")
        self._hashes = array("Q")

    def add(self, record: Record, rows: Sequence[Row]) -> None:
        if len(self.first) < self._shown:
            self.first.append((record, list(rows)))
        if len(self._rows) < LOOKED_AT:
            self._rows += rows
        self._hashes.append(content_hash(record))
        for row in rows:
            self._trained.append(len(row.labels) - row.labels.count(IGNORE))

    @property
    def kind(self) -> str:
        if self._kind is None:
            self._kind = label_kind(self._rows)
        return self._kind

    def trained(self, row: int) -> int:
        """Tokens of a row that the LM head is trained on."""
        return self._trained[row] if self.kind == "text" else 0

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._hashes, dtype=np.uint64)

    def sides(self) -> dict[str, tuple[Ints, Ints]]:
        """Of prompt and target, or of the input: how many tokens each row has left, and lost."""
        store = self.part.rows
        left, cut = store.lengths, store.cuts
        if self.kind != "text":
            return {"input": (left, cut)}
        trained = np.frombuffer(self._trained, dtype=np.int32).astype(np.int64)
        cut_targets = store.target_cuts
        return {
            "prompt": (left - trained, cut - cut_targets),
            "target": (trained, cut_targets),
        }


def lengths(what: str, left: Ints, cut: Ints) -> Lengths:
    """The lengths of rows that have ``left`` tokens and lost ``cut``."""
    whole = left + cut
    return Lengths(
        what,
        int(whole.sum()),
        {p: percentile(whole, p) for p in (50, 90, 99, 100)},
        histogram(whole),
        int((cut > 0).sum()),
    )


def percentile(values: Ints, percent: int) -> int:
    """The smallest of the values that at least so many per cent of them don't exceed."""
    return int(np.percentile(values, percent, method="inverted_cdf"))


def histogram(values: Ints) -> list[Bin]:
    """Bins of a round width from the first that isn't empty to the last."""
    low, high = int(values.min()), int(values.max())
    width = next(
        digit * 10**power
        for power in range(12)
        for digit in (1, 2, 5)
        if high // (digit * 10**power) - low // (digit * 10**power) < BINS
    )
    start = low // width
    counts = np.bincount(values // width - start).tolist()
    return [
        Bin(i * width, (i + 1) * width - 1, count) for i, count in enumerate(counts, start=start)
    ]


def repeats(tally: Tally) -> Equal:
    """The records of a part that equal an earlier one of it."""
    hashes = tally.hashes
    order = np.argsort(hashes, kind="stable")
    ranked = hashes[order]
    later = np.sort(order[1:][ranked[1:] == ranked[:-1]])
    return _equal(later, tally, tally)


def shared(tally: Tally, train: Tally) -> Equal:
    """The records of a part that are training records, too."""
    return _equal(np.flatnonzero(np.isin(tally.hashes, train.hashes)), tally, train)


def _equal(found: npt.NDArray[Any], tally: Tally, others: Tally) -> Equal:
    examples = []
    for index in found[:EXAMPLES].tolist():
        other = int(np.argmax(others.hashes == tally.hashes[index]))
        examples.append((str(others.part.origins[other]), str(tally.part.origins[index])))
    return Equal(len(found), examples)
