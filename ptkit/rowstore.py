"""Encoded rows as flat integer arrays, and where their records come from."""

from __future__ import annotations

import struct
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ptkit.errors import DataError
from ptkit.records import EncodedRow, Origin, Row


@lru_cache(maxsize=4096)
def _packer(count: int) -> struct.Struct:
    return struct.Struct(f"{count}i")


def packed(values: Sequence[int]) -> bytes:
    """int32 in the machine's byte order. Raises TypeError or OverflowError for anything else."""
    try:
        return _packer(len(values)).pack(*values)  # a seventh of the time of array.extend
    except struct.error:
        return array("i", values).tobytes()  # says what is wrong, and of which type


class FlatInts:
    """A growing array of int32 that moves to an unnamed temporary file once it is large."""

    IN_MEMORY = 2**22  # numbers; 16 MiB

    def __init__(self) -> None:
        self._buffer = array("i")
        self._file: IO[bytes] | None = None
        self._filed = 0
        self._mapped: np.ndarray[Any, np.dtype[np.int32]] | None = None

    def __len__(self) -> int:
        return self._filed + len(self._buffer)

    def extend(self, values: bytes) -> None:
        """``values``: see `packed`."""
        self._buffer.frombytes(values)
        if len(self._buffer) >= self.IN_MEMORY:
            self._spill()

    def _spill(self) -> None:
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="ptkit-rows-")  # noqa: SIM115
            self._buffer.tofile(self._file)
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{tempfile.gettempdir()}: encoded rows can't be written: {error.strerror}; "
                "make room, or set TMPDIR to a folder with more"
            ) from error
        self._filed += len(self._buffer)
        self._buffer = array("i")
        self._mapped = None

    def slice(self, start: int, stop: int) -> tuple[int, ...]:
        if stop <= start:
            return ()
        if start >= self._filed:
            return tuple(self._buffer[start - self._filed : stop - self._filed])
        if stop > self._filed:
            return self.slice(start, self._filed) + self.slice(self._filed, stop)
        if self._mapped is None:
            assert self._file is not None
            self._mapped = np.memmap(self._file, dtype=np.int32, mode="r", shape=(self._filed,))
        return tuple(self._mapped[start:stop].tolist())


FLAT = ("tokens", "labels", "token_types", "places")  # of a Row, those of any length
SHORTEST_STEM = 4  # tokens; a shorter one saves less than it costs


class RowStore:
    """Encoded rows of records 0, 1, 2, … as flat int32 arrays with offsets; large ones lie on disk.

    ``keep=False`` forgets the rows and knows their lengths only.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self._keep = keep
        self._flat = {name: FlatInts() for name in FLAT}
        self._ends = {name: array("q", [0]) for name in FLAT}
        self._record = array("i")
        self._part = array("i")
        self._cut = array("i")
        self._cut_targets = array("i")
        self._weight = array("d")
        self.origins: Origins | None = None  # of the records, where they are known
        self._first_row = array("q", [0])
        self._stem: tuple[int, ...] | None = None

    def append(self, rows: Sequence[Row], weight: float = 1.0) -> None:
        """The rows of the next record.

        Raises TypeError or OverflowError for a number that is no int32, kept or not.
        """
        record = len(self._first_row) - 1
        for part, row in enumerate(rows):
            self._stem = _common(self._stem, row.tokens)
            for name, ends in self._ends.items():
                values = getattr(row, name)
                count = len(values)
                if count:
                    flat = packed(values)
                    if self._keep:
                        self._flat[name].extend(flat)
                ends.append(ends[-1] + count)
            self._record.append(record)
            self._part.append(part)
            self._cut.append(row.cut)
            self._cut_targets.append(row.cut_targets)
            self._weight.append(weight)
        self._first_row.append(len(self._record))

    def __len__(self) -> int:
        return len(self._record)

    @property
    def stem(self) -> tuple[int, ...]:
        """The tokens that all rows begin with, fewer than the shortest has; none if they are too
        few to gain anything."""
        stem = self._stem or ()
        return stem if len(stem) >= SHORTEST_STEM else ()

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

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """`length` of every row."""
        ends = np.array(self._ends["tokens"], np.int64)
        return ends[1:] - ends[:-1]

    @property
    def cuts(self) -> npt.NDArray[np.int64]:
        """Of every row, the number of tokens of its record that were left out."""
        return np.array(self._cut, np.int64)

    @property
    def target_cuts(self) -> npt.NDArray[np.int64]:
        """How many of those were to be trained on."""
        return np.array(self._cut_targets, np.int64)

    def labels(self, index: int) -> tuple[int, ...]:
        ends = self._ends["labels"]
        return self._flat["labels"].slice(ends[index], ends[index + 1])

    def weight(self, index: int) -> float:
        return self._weight[index]

    def __getitem__(self, index: int) -> EncodedRow:
        def part(name: str) -> tuple[int, ...]:
            ends = self._ends[name]
            return self._flat[name].slice(ends[index], ends[index + 1])

        if not self._keep:
            raise ValueError("this RowStore keeps lengths only")
        row = Row(
            part("tokens"),
            part("labels"),
            part("token_types"),
            self._cut[index],
            self._cut_targets[index],
            part("places"),
        )
        return EncodedRow(row, self._record[index], self._part[index], self._weight[index])

    def __iter__(self) -> Iterator[EncodedRow]:
        return (self[index] for index in range(len(self)))

    def groups(self, records: Iterable[int], *, share_loss: bool) -> list[list[int]]:
        """Row indices of ``records`` by loss group: one group a record, or one a row."""
        if share_loss:
            return [list(self.rows_of(record)) for record in records]
        return [[index] for record in records for index in self.rows_of(record)]


def _common(stem: tuple[int, ...] | None, tokens: Sequence[int]) -> tuple[int, ...]:
    """What ``stem`` and ``tokens`` begin with, without their last; None stands for anything."""
    some = tokens[:-1] if stem is None else tokens[: min(len(stem), max(0, len(tokens) - 1))]
    some = tuple(some)
    if stem is None or stem == some:
        return some
    pairs = enumerate(zip(stem, some, strict=False))
    return some[: next((place for place, (one, other) in pairs if one != other), len(some))]


class Origins:
    """The origin of every record of a part, in twelve bytes each."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._file = array("i")
        self._line = array("q")

    def append(self, origin: Origin) -> None:
        self._file.append(self._files.setdefault(origin.file, len(self._files)))
        self._line.append(origin.line)

    def __len__(self) -> int:
        return len(self._line)

    def __getitem__(self, record: int) -> Origin:
        return Origin(list(self._files)[self._file[record]], self._line[record])
