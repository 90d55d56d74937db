"""The contract check for dataset formats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ptkit.components import DatasetFormat
from ptkit.records import BadRow, Origin, Record
from ptkit.testing.faults import Subject, one_line, same


def check_dataset_format(
    form: DatasetFormat, files: Path | str | Sequence[Path | str], *, bad_rows: int | None = None
) -> list[Record]:
    """Check that ``form`` keeps the contract of `ptkit.DatasetFormat` on ``files``.

    Returns their records. Give it files as users have them, and one with rows that can't be used:
    not the right type, a field missing, cut off. ``bad_rows``: how many such rows the files hold;
    None: not counted.
    Raises `AssertionError` naming the format, the fault and what to do.
    """
    subject = Subject(form, DatasetFormat)
    subject.check_component()
    paths = [Path(files)] if isinstance(files, Path | str) else [Path(file) for file in files]
    items = [item for path in paths for item in _check_file(subject, form, path)]
    records = [item for item in items if isinstance(item, Record)]
    if not records:
        raise subject.fault(f"read() found no records in {', '.join(p.name for p in paths)}")
    bad = [item for item in items if isinstance(item, BadRow)]
    if bad_rows is not None and len(bad) != bad_rows:
        found = "; ".join(map(str, bad)) or "none"
        raise subject.fault(
            f"the files hold {bad_rows} bad rows, but read() gave {len(bad)} ({found}); yield a "
            "ptkit.BadRow for every row that can't be used, and drop none"
        )
    subject.check_import()
    return records


def _check_file(subject: Subject, form: DatasetFormat, path: Path) -> list[Record | BadRow]:
    name = f"named/{path.name}"  # not the path, so that a format which uses the path is found out
    items = list(_read(subject, form, path, name))
    line = 1
    for item in items:
        _check_item(subject, form, item, name)
        if item.origin.line < line:
            raise subject.fault(
                f"line {item.origin.line} of {path.name} comes behind line {line}; read() must "
                "give the rows in the file's order"
            )
        line = item.origin.line
    # twice at once, so that a position or a list kept on self shows
    readers = (_read(subject, form, path, name), _read(subject, form, path, name))
    pairs = list(zip_longest(*readers))
    for again in ([first for first, _ in pairs], [second for _, second in pairs]):
        if not same(items, again):
            raise subject.fault(
                f"reading {path.name} again gives other rows; keep nothing on self while reading"
            )
    return items


def _read(subject: Subject, form: DatasetFormat, path: Path, name: str) -> Iterator[Any]:
    done = 0
    rows = subject.call("read()", lambda: form.read(path, name))
    if not isinstance(rows, Iterator):
        raise subject.fault(
            f"read() returned a {type(rows).__name__}; make it a generator, so that large files "
            "are streamed"
        )
    try:
        for row in rows:
            done += 1
            yield row
    except Exception as error:
        raise subject.fault(
            f"read() raised {one_line(error)} behind row {done} of {path.name}; yield a "
            "ptkit.BadRow for a row that can't be used and go on behind it"
        ) from error


def _check_item(subject: Subject, form: DatasetFormat, item: object, name: str) -> None:
    if not isinstance(item, form.record | BadRow):
        raise subject.fault(
            f"read() gave a {type(item).__name__}, but record = {form.record.__name__}; yield "
            f"{form.record.__name__} objects, or ptkit.BadRow for rows that can't be used"
        )
    origin, what = item.origin, type(item).__name__
    if not isinstance(origin, Origin) or type(origin.line) is not int or origin.line < 1:
        raise subject.fault(
            f"a {what} has no line: its origin is {origin!r}; give it "
            "ptkit.Origin(name, line) with the line counted from 1"
        )
    if origin.file != name:
        raise subject.fault(
            f"a {what} says that it is from {origin.file!r}, but read() was told to name the file "
            f"{name!r}; use its argument `name`"
        )
    if isinstance(item, BadRow):
        if not isinstance(item.message, str) or not item.message.strip() or "\n" in item.message:
            raise subject.fault(
                f"the BadRow of {origin} has the message {item.message!r}; say in one line what is "
                "wrong, what was found and what to do"
            )
    elif not (math.isfinite(item.weight) and item.weight >= 0):
        raise subject.fault(f"the record of {origin} has the weight {item.weight}; use 0 or more")
