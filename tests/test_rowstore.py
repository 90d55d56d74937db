"""Rows as flat int32 arrays: what goes in comes out, in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

import ptkit
from ptkit.rowstore import FlatInts, RowStore, packed

LARGEST, SMALLEST = 2**31 - 1, -(2**31)
RECORDS = [
    [ptkit.Row((5, 6, 7), (ptkit.IGNORE, 6, 7), cut=3, cut_targets=1)],
    [ptkit.Row((8,), (), (0,), places=(0, 0)), ptkit.Row((9, LARGEST), (SMALLEST, -1), (1, 1))],
    [ptkit.Row((4, 4), (2,), cut=5)],
]


def filled(*, keep: bool = True) -> RowStore:
    store = RowStore(keep=keep)
    for weight, rows in enumerate(RECORDS, start=1):
        store.append(rows, weight / 2)
    return store


@pytest.mark.parametrize("in_memory", [1, 4, 2**22])  # numbers; all on disk, some, none
def test_rows_come_back_as_they_were(in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlatInts, "IN_MEMORY", in_memory)
    store = filled()
    assert [(e.record, e.part, e.weight, e.row) for e in store] == [
        (0, 0, 0.5, RECORDS[0][0]),
        (1, 0, 1.0, RECORDS[1][0]),
        (1, 1, 1.0, RECORDS[1][1]),
        (2, 0, 1.5, RECORDS[2][0]),
    ]
    assert [store.labels(index) for index in range(4)] == [
        (ptkit.IGNORE, 6, 7),
        (),
        (SMALLEST, -1),
        (2,),
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_numbers_of_all_rows(*, keep: bool) -> None:
    store = filled(keep=keep)
    assert store.lengths.tolist() == [3, 1, 2, 2]
    assert store.cuts.tolist() == [3, 0, 0, 5]
    assert store.target_cuts.tolist() == [1, 0, 0, 0]
    assert [store.length(index) for index in range(4)] == store.lengths.tolist()


def test_a_store_without_rows_has_no_numbers() -> None:
    store = RowStore()
    assert (store.lengths.size, store.cuts.size, store.target_cuts.size) == (0, 0, 0)


def test_numbers_are_packed_in_four_bytes() -> None:
    assert packed((1, -1)) in (b"\1\0\0\0\xff\xff\xff\xff", b"\0\0\0\1\xff\xff\xff\xff")
    assert packed([True, False]) == packed((1, 0))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (1.5, TypeError, "'float' object cannot be interpreted as an integer"),
        ("7", TypeError, "'str' object cannot be interpreted as an integer"),
        (LARGEST + 1, OverflowError, "signed integer is greater than maximum"),
        (SMALLEST - 1, OverflowError, "signed integer is less than minimum"),
        (2**70, OverflowError, "too large to convert to C long"),
    ],
)
def test_what_is_no_int32_is_refused(
    wrong: object, error: type[Exception], message: str, *, keep: bool
) -> None:
    with pytest.raises(error, match=message):
        RowStore(keep=keep).append([ptkit.Row((1, wrong))])  # type: ignore[arg-type]


def test_a_full_disk_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlatInts, "IN_MEMORY", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(ptkit.DataError, match="gone: encoded rows can't be written: No such file"):
        filled()
