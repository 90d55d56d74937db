"""Rows of named columns from text files: CSV with quotes, TSV without, or a label and a text a
line."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ptkit import BadRow, DataError, Origin, read_lines, shown_keys, suggestion, text_problem

QUOTE = '"'


@dataclass(frozen=True)
class Layout:
    """How a file is divided.

    ``separator``: what stands between columns; None is any run of blanks and tabs.
    ``columns``: their names; empty if the first row has them. ``quoted``: whether fields may stand
    in double quotes, with separators and line breaks inside. ``rest``: whether the last column
    takes the rest of the line, separators included.
    """

    separator: str | None
    columns: tuple[str, ...]
    quoted: bool
    rest: bool
    encoding: str


def read_table(
    path: Path, name: str, layout: Layout, wanted: Mapping[str, str]
) -> Iterator[tuple[Origin, dict[str, str]] | BadRow]:
    """The rows of a file with their values by column, in order, streamed; blank lines are skipped.

    ``wanted``: the column that each setting names. The origin of a row is the line that it begins
    on. Raises `DataError` for a file that can't be read, and for a column that it doesn't have.
    """
    columns = layout.columns
    if columns:
        _check_columns(columns, f"{name}: dataset.columns", wanted)
    for origin, values in _rows(path, name, layout):
        if isinstance(values, str):
            yield BadRow(origin, values)
        elif not columns:
            columns = tuple(value.strip() for value in values)
            _check_columns(columns, f"{origin}: the header", wanted)
        elif len(values) != len(columns):
            yield BadRow(origin, _wrong_number(values, columns, layout))
        else:
            yield origin, dict(zip(columns, values, strict=True))


def _check_columns(columns: tuple[str, ...], where: str, wanted: Mapping[str, str]) -> None:
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{where} has the column {twice[0]!r} twice; rename one of them")
    for setting, column in wanted.items():
        if column not in columns:
            raise DataError(
                f"{where} has no column {column!r}{suggestion(column, columns)}, but: "
                f"{shown_keys(columns)}; set dataset.{setting}, or name the columns of a file "
                "without a header in dataset.columns"
            )


def _wrong_number(values: list[str], columns: tuple[str, ...], layout: Layout) -> str:
    separator = "white space" if layout.separator is None else repr(layout.separator)
    return (
        f"must have {len(columns)} columns ({shown_keys(columns)}), got {len(values)}; mend the "
        f"row, or set what separates columns (now {separator}) in dataset.separator"
    )


def _rows(path: Path, name: str, layout: Layout) -> Iterator[tuple[Origin, list[str] | str]]:
    """Where each row begins, and its values, or what is wrong with it."""
    lines = read_lines(path, name, layout.encoding)
    if layout.quoted:
        yield from _quoted_rows(lines, layout)
        return
    most = len(layout.columns) - 1 if layout.rest else -1
    for origin, line in lines:
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        problem = text_problem(text, layout.encoding)
        yield origin, problem or _split(text, layout.separator, most)


def _split(text: str, separator: str | None, most: int) -> list[str]:
    if separator is not None:
        return text.split(separator, most)
    # not str.split(), which would also split at U+3000 and U+00A0
    found: list[str] = []
    rest = text.strip(" \t")
    while rest and len(found) != most:
        end = next((i for i, character in enumerate(rest) if character in " \t"), len(rest))
        found.append(rest[:end])
        rest = rest[end:].lstrip(" \t")
    return [*found, rest] if rest else found


class _Feed:
    """The lines that a CSV reader takes, which of them it took for a row, and what they hold."""

    def __init__(self, lines: Iterator[tuple[Origin, str]]) -> None:
        self._lines = lines
        self.first: Origin | None = None
        self.last: Origin | None = None
        self.taken: list[str] = []

    def begin(self) -> None:
        self.first = None
        self.taken.clear()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last, line = next(self._lines)
        self.first = self.first or self.last
        self.taken.append(line)
        return line


def _quoted_rows(
    lines: Iterator[tuple[Origin, str]], layout: Layout
) -> Iterator[tuple[Origin, list[str] | str]]:
    feed = _Feed(lines)
    assert layout.separator is not None
    # strict: text behind a closing quote, or a quote that is never closed, is an error
    reader = csv.reader(feed, delimiter=layout.separator, quotechar=QUOTE, strict=True)
    while True:
        feed.begin()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            assert feed.first is not None
            assert feed.last is not None
            yield feed.first, _quote_problem(str(error), feed.first.line, feed.last.line)
            continue
        assert feed.first is not None
        text = "".join(feed.taken)
        if text.strip():
            yield feed.first, text_problem(text, layout.encoding) or values


def _quote_problem(said: str, first: int, last: int) -> str:
    lines = "on this line" if first == last else f"on lines {first} to {last}"
    what = said
    if said == "unexpected end of data":
        what = "a quote is opened and not closed"
    elif said.startswith("new-line character"):
        what = "a carriage return stands outside quotes"
    return (
        f"not CSV: {what} ({lines}); double the quotes inside a text, or set "
        "dataset.quoting = false"
    )
