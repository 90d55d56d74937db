"""What both formats share: reading JSON rows, and saying what is wrong with a value in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ptkit import BadRow, DatasetFormat, GenerationRecord, Origin, Record, read_json_rows

_KEYS_SHOWN = 12
_CHARACTERS_SHOWN = 20
SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'


class BadValueError(Exception):
    """Why a row can't be used, as the message of its `ptkit.BadRow`."""


class RowsFormat(DatasetFormat):
    """JSON lines or an array of objects, as `read_json_rows` reads them, to `GenerationRecord`."""

    record: ClassVar[type[Record]] = GenerationRecord

    @abstractmethod
    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> GenerationRecord:
        """The record of one JSON object; raises `BadValueError`.

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


def value(row: Mapping[str, Any], setting: str, key: str) -> Any:
    """The value of a column that must be there; ``setting``: what names it in the recipe."""
    if key in row:
        return row[key]
    raise BadValueError(
        f"key {key!r} is missing (the row has: {listed(row)}); set dataset.{setting}"
    )


def text(row: Mapping[str, Any], setting: str, key: str) -> str:
    """The text of a column that must be there and hold one."""
    found = value(row, setting, key)
    if not isinstance(found, str):
        raise BadValueError(
            f"key {key!r} must be a string, got {got(found)}; "
            f"mend the row, or set dataset.{setting} to a column of texts"
        )
    if not found.strip():
        raise BadValueError(f"key {key!r} is empty; give it a text, {SKIP}")
    return found


def listed(keys: Iterable[str]) -> str:
    """The keys of a row, the first dozen of them."""
    shown = [key if key.isprintable() and key else repr(key) for key in keys]
    more = len(shown) - _KEYS_SHOWN
    first = ", ".join(shown[:_KEYS_SHOWN])
    return f"{first} and {more} more" if more > 0 else first or "no keys"


def got(found: object) -> str:
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
