"""Rows of named columns from a CSV file, each with the line that it begins on."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from ptkit import (
    BadRow,
    DataError,
    Origin,
    read_lines,
    shown_keys,
    suggestion,
    text_problem,
)


def read_table(
    path: Path, name: str, *, separator: str, encoding: str, wanted: Mapping[str, str]
) -> Iterator[tuple[Origin, dict[str, str]] | BadRow]:
    """The rows below the header with their values by column, in order, streamed.

    ``wanted``: the column that each setting names. Blank lines and rows of nothing but
    empty fields, which spreadsheets leave behind, are no rows. A line break inside
    quotes is a ``\\n``, whatever the file has.

    Yields a `BadRow` for a row that can't be read. Raises `DataError` for a file that
    can't be read, has no header, or lacks a wanted column.
    """
    columns: list[str] = []
    for origin, values in _rows(path, name, separator, encoding):
        if isinstance(values, str):
            if not columns:
                raise DataError(f"{origin}: the header can't be read: {values}")
            yield BadRow(origin, values)
        elif not columns:
            columns = [value.strip() for value in values]
            _check_header(columns, origin, wanted, separator)
        elif len(values) != len(columns):
            yield BadRow(
                origin,
                f"must have {len(columns)} columns ({shown_keys(columns)}), got "
                f"{len(values)}; quote texts that hold a {separator!r}, or set "
                "dataset.separator",
            )
        else:
            yield origin, dict(zip(columns, values, strict=True))
    if not columns:
        raise DataError(
            f"{name}: is empty; its first row must name the columns, such as "
            f"{separator.join(wanted.values())}"
        )


def _check_header(
    columns: list[str], origin: Origin, wanted: Mapping[str, str], separator: str
) -> None:
    for column, count in Counter(columns).items():
        if count > 1 and column in wanted.values():
            raise DataError(
                f"{origin}: the header has the column {column!r} {count} times; "
                "rename all but one"
            )
    for setting, column in wanted.items():
        if column not in columns:
            # a single column is rather a header that another character divides
            close = suggestion(column, columns) if len(columns) > 1 else ""
            raise DataError(
                f"{origin}: the header has no column {column!r}"
                f"{close}, but: {shown_keys(columns)}; set "
                f"dataset.{setting}, or dataset.separator (now {separator!r})"
            )


class _Feed:
    """The lines that a CSV reader takes, and which of them it took for a row."""

    def __init__(self, lines: Iterator[tuple[Origin, str]]) -> None:
        self._lines = lines
        self.taken: list[tuple[Origin, str]] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.taken.append(next(self._lines))
        line = self.taken[-1][1]
        return f"{line[:-2]}\n" if line.endswith("\r\n") else line


def _rows(
    path: Path, name: str, separator: str, encoding: str
) -> Iterator[tuple[Origin, list[str] | str]]:
    """Where each row begins, and its values, or what is wrong with it."""
    feed = _Feed(read_lines(path, name, encoding))
    # strict: a quote that is never closed, or text behind one, is an error
    reader = csv.reader(feed, delimiter=separator, strict=True)
    while True:
        feed.taken.clear()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            first, last = feed.taken[0][0], feed.taken[-1][0]
            yield first, _quote_problem(str(error), first.line, last.line)
            continue
        if any(value.strip() for value in values):
            text = "".join(line for _, line in feed.taken)
            yield feed.taken[0][0], text_problem(text, encoding) or values


def _quote_problem(said: str, first: int, last: int) -> str:
    lines = f"line {first}" if first == last else f"lines {first} to {last}"
    what, do = said, "write a quote inside a quoted text twice"
    if said == "unexpected end of data":
        what = "a quote is opened and not closed"
    elif said.startswith("new-line character"):
        what, do = "a carriage return stands outside quotes", "quote the text"
    elif said.startswith("field larger"):
        what, do = said.replace("larger", "is larger", 1), "is a quote not closed?"
    return f"not CSV ({lines}): {what}; {do}"
