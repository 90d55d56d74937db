"""The base of formats whose rows are JSON objects, and what they say of a value that is wrong."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ptkit.components import DatasetFormat
from ptkit.reading import read_json_rows
from ptkit.records import BadRow, Origin, Record

_KEYS_SHOWN = 12
_CHARACTERS_SHOWN = 20


class BadValueError(Exception):
    """Why a row can't be used: what, got, and what to do, as the message of its `BadRow`."""


class JsonRowsFormat(DatasetFormat):
    """JSON lines or an array of objects, as `read_json_rows` reads them; a subclass makes records.

    >>> class Titles(ptkit.JsonRowsFormat):  # doctest: +SKIP
    ...     name, record = "titles", ptkit.GenerationRecord
    ...     def make(self, origin, row, *, answered):
    ...         title = ptkit.row_text(row, "title_column", "title")
    ...         return ptkit.GenerationRecord(origin=origin, prompt=title)
    """

    @abstractmethod
    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> Record:
        """The record of one JSON object; raises `BadValueError` for one that can't be used.

        With ``answered=False`` the row may lack its answer, and the record has none.
        """

    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        return self._rows(path, name, answered=True)

    def read_unanswered(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        return self._rows(path, name, answered=False)

    def _rows(self, path: Path, name: str, *, answered: bool) -> Iterator[Record | BadRow]:
        for row in read_json_rows(path, name):
            if isinstance(row, BadRow):
                yield row
                continue
            origin, values = row
            try:
                yield self.make(origin, values, answered=answered)
            except BadValueError as error:
                yield BadRow(origin, str(error))


def row_value(row: Mapping[str, Any], setting: str, key: str) -> Any:
    """The value of a column that must be there; ``setting``: what names it in ``[dataset]``.

    Raises `BadValueError`.
    """
    if key in row:
        return row[key]
    raise BadValueError(
        f"key {key!r} is missing (the row has: {shown_keys(row)}); set dataset.{setting}"
    )


def row_text(row: Mapping[str, Any], setting: str, key: str) -> str:
    """The text of a column that must be there and hold more than white space.

    Raises `BadValueError`.
    """
    found = row_value(row, setting, key)
    if not isinstance(found, str):
        raise BadValueError(
            f"key {key!r} must be a string, got {shown_value(found)}; "
            f"mend the row, or set dataset.{setting} to a column of texts"
        )
    if not found.strip():
        raise BadValueError(
            f"key {key!r} is empty; give it a text, "
            'or drop such rows with dataset.on_bad_row = "skip"'
        )
    return found


def shown_keys(keys: Iterable[str]) -> str:
    """The keys of a row as messages list them, the first dozen of them."""
    shown = [key if key.isprintable() and key else repr(key) for key in keys]
    more = len(shown) - _KEYS_SHOWN
    first = ", ".join(shown[:_KEYS_SHOWN])
    return f"{first} and {more} more" if more > 0 else first or "no keys"


def shown_value(found: object) -> str:
    """A JSON value as messages name it: its kind and, cut short, what it is."""
    if found is None:
        return "null"
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, list):
        return "a list"
    if isinstance(found, dict):
        return "an object"
    shown = repr(found)
    if len(shown) > _CHARACTERS_SHOWN:
        shown = f"{shown[:_CHARACTERS_SHOWN]}…"
    return f"the {'string' if isinstance(found, str) else 'number'} {shown}"
