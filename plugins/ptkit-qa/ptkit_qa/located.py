"""JSON documents with the place at which each item of some nested lists stands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class Item(NamedTuple):
    """An item of a list, and the index of its first character in the document."""

    at: int
    value: Any


def located(text: str, levels: Sequence[str]) -> Any:
    """The document, in which the lists under the keys ``levels``, each within the one before, have
    `Item` objects; a document that is a list itself has them too.

    Raises `json.JSONDecodeError` and, for values that are nested too deeply, RecursionError.

    >>> located('{"a": [7, {"b": [8]}], "b": [9]}', ["a", "b"])
    {'a': [Item(at=7, value=7), Item(at=10, value={'b': [Item(at=17, value=8)]})], 'b': [9]}
    """
    at = _skip(text, 0)
    if text.startswith("[", at):
        value, end = _list(text, at, levels)
    else:
        value, end = _value(text, at, levels)
    end = _skip(text, end)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _skip(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None
    return found.end()


def _value(text: str, at: int, levels: Sequence[str]) -> tuple[Any, int]:
    """The value that begins at ``at``, and where it ends."""
    if not levels or not text.startswith("{", at):
        return _DECODER.raw_decode(text, at)
    found: dict[str, Any] = {}
    at = _skip(text, at + 1)
    while not text.startswith("}", at):
        if found:
            at = _skip(text, _expect(text, at, ","))
        if not text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name", text, at)
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _expect(text, _skip(text, at), ":"))
        if key == levels[0] and text.startswith("[", at):
            found[key], at = _list(text, at, levels[1:])
        else:
            found[key], at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
    return found, at + 1


def _list(text: str, at: int, levels: Sequence[str]) -> tuple[list[Item], int]:
    found: list[Item] = []
    at = _skip(text, at + 1)
    while not text.startswith("]", at):
        if found:
            at = _skip(text, _expect(text, at, ","))
        value, end = _value(text, at, levels)
        found.append(Item(at, value))
        at = _skip(text, end)
    return found, at + 1


def _expect(text: str, at: int, mark: str) -> int:
    if not text.startswith(mark, at):
        raise json.JSONDecodeError(f"Expecting {mark!r}", text, at)
    return at + 1
