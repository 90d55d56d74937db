"""The format ``span-jsonl``: texts with spans of characters and their types."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

from ptkit import (
    BadValueError,
    JsonRowsFormat,
    Origin,
    Record,
    Span,
    TaggedRecord,
    bio_tags,
    row_text,
    row_value,
    shown_keys,
    shown_value,
)

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'

# kana, Chinese characters with their extensions A to H and compatibility forms
_ALONE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORDS = {
    "characters": re.compile(r"\S"),
    "words": re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]"),
}


class _Given(NamedTuple):
    """A span as the row has it, half-open; ``surface``: what it says that it covers."""

    start: int
    end: int
    type: str
    surface: str | None


class SpanJsonFormat(JsonRowsFormat):
    """JSON lines or an array of objects with entities in one of two layouts, to `TaggedRecord`.

    Worked example. By type and surface, as CLUENER has it, both ends included::

        {"text": "她在南京。", "label": {"address": {"南京": [[2, 3]]}}}
        TaggedRecord(text="她在南京。", words=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)),
                     tags=("O", "O", "B-address", "I-address", "O"))

    As a list, the end excluded; "text" may be missing, and [2, 4, "address"] is as good::

        {"text": "她在南京。", "label": [{"start": 2, "end": 4, "type": "address", "text": "南京"}]}

    A span begins where a word begins and ends where one ends, so that an entity comes back with the
    same characters; white space belongs to no word.
    """

    name = "span-jsonl"
    record: ClassVar[type[Record]] = TaggedRecord

    class Settings(JsonRowsFormat.Settings):
        text_column: str = "text"
        """The key of the text."""
        entities_column: str = "label"
        """The key of the entities: an object by type and surface, or a list."""
        end: Literal["auto", "inclusive", "exclusive"] = "auto"
        """Whether a span's end is its last character or the one behind it; "auto": the last one in
        an object by type and surface, the one behind in a list."""
        start_key: str = "start"
        """In a list: the key of a span's first character, counted from 0."""
        end_key: str = "end"
        """In a list: the key of a span's end."""
        type_key: str = "type"
        """In a list: the key of a span's type."""
        surface_key: str = "text"
        """In a list: the key of what a span covers, which is checked; a span may lack it."""
        words: Literal["characters", "words"] = "characters"
        """What gets a tag: every character, or every word, Chinese character and punctuation
        mark."""

    settings: Settings

    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> TaggedRecord:
        text = row_text(row, "text_column", self.settings.text_column)
        words = tuple(found.span() for found in WORDS[self.settings.words].finditer(text))
        tags = None
        if answered:
            spans = sorted(self._spans(row), key=lambda given: given[:2])
            for given in spans:
                self._check(given, text)
            for first, second in pairwise(spans):
                if second.start < first.end:
                    raise BadValueError(
                        f"{_shown(first, text)} and {_shown(second, text)} overlap, which tags "
                        f"can't say; leave one out, {SKIP}"
                    )
            tags = bio_tags(len(words), [self._in_words(given, text, words) for given in spans])
        return TaggedRecord(origin=origin, text=text, words=words, tags=tags)

    def _check(self, given: _Given, text: str) -> None:
        if not 0 <= given.start < given.end <= len(text):
            raise BadValueError(
                f"the {given.type!r} at {given.start}–{given.end} does not lie in the text, which "
                f"has {len(text)} characters; mend the row, or set dataset.end"
            )
        covered = text[given.start : given.end]
        if given.surface is not None and given.surface != covered:
            raise BadValueError(
                f"the {given.type!r} at {given.start}–{given.end} must cover {given.surface!r}, "
                f"got {covered!r}; mend the row, or set dataset.end"
            )

    def _in_words(self, given: _Given, text: str, words: tuple[tuple[int, int], ...]) -> Span:
        first = bisect_right(words, given.start, key=lambda word: word[1])
        behind = bisect_left(words, given.end, key=lambda word: word[0])
        if first < behind and (words[first][0], words[behind - 1][1]) == (given.start, given.end):
            return Span(first, behind, given.type)
        inside = first < len(words) and (words[first][0] < given.start)
        place = "begins" if inside or text[given.start].isspace() else "ends"
        raise BadValueError(
            f"{_shown(given, text)} {place} inside a word or at white space; mend the row, or set "
            'dataset.words = "characters"'
        )

    # ------------------------------------------------------------------------------------ layouts

    def _spans(self, row: Mapping[str, Any]) -> Iterator[_Given]:
        key, end = self.settings.entities_column, self.settings.end
        found = row_value(row, "entities_column", key)
        if isinstance(found, dict):
            yield from self._by_type(found, 0 if end == "exclusive" else 1)
        elif isinstance(found, list):
            more = 1 if end == "inclusive" else 0
            for number, entity in enumerate(found, start=1):
                yield self._listed(f"key {key!r}, entity {number}", entity, more)
        else:
            raise BadValueError(
                f"key {key!r} must be an object of entities by type, or a list of them, got "
                f"{shown_value(found)}; mend the row, or set dataset.entities_column"
            )

    def _by_type(self, found: dict[str, Any], more: int) -> Iterator[_Given]:
        column = self.settings.entities_column
        for kind, surfaces in found.items():
            where = f"key {column!r}, type {kind!r}"
            if not kind or not isinstance(surfaces, dict):
                raise BadValueError(
                    f"{where} must be an object of lists by surface, got {shown_value(surfaces)}; "
                    "mend the row"
                )
            for surface, places in surfaces.items():
                if not isinstance(places, list):
                    raise BadValueError(
                        f"{where}, {surface!r} must be a list of [start, end], got "
                        f"{shown_value(places)}; mend the row"
                    )
                for place in places:
                    if not (isinstance(place, list) and len(place) == 2):
                        raise BadValueError(
                            f"{where}, {surface!r} must be a list of [start, end], got an item "
                            f"{shown_value(place)}; mend the row"
                        )
                    start, end = (_index(f"{where}, {surface!r}", number) for number in place)
                    yield _Given(start, end + more, kind, surface)

    def _listed(self, where: str, entity: Any, more: int) -> _Given:
        settings = self.settings
        keys = (settings.start_key, settings.end_key, settings.type_key)
        surface = None
        if isinstance(entity, dict):
            for setting, key in zip(("start_key", "end_key", "type_key"), keys, strict=True):
                if key not in entity:
                    raise BadValueError(
                        f"{where} has no {key!r}, but: {shown_keys(entity)}; set dataset.{setting}"
                    )
            values = [entity[key] for key in keys]
            surface = entity.get(settings.surface_key)
        elif isinstance(entity, list) and len(entity) == 3:
            values = entity
        else:
            raise BadValueError(
                f"{where} must be an object or [start, end, type], got {shown_value(entity)}; mend "
                "the row"
            )
        start, end, kind = values
        if not isinstance(kind, str) or not kind:
            raise BadValueError(
                f"{where} must have a type, got {shown_value(kind)}; mend the row, or set "
                "dataset.type_key"
            )
        if surface is not None and not isinstance(surface, str):
            raise BadValueError(
                f"{where}, {settings.surface_key!r} must be a text, got {shown_value(surface)}; "
                "mend the row, or set dataset.surface_key"
            )
        return _Given(_index(where, start), _index(where, end) + more, kind, surface)


def _index(where: str, number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise BadValueError(
            f"{where} must have whole numbers as start and end, got {shown_value(number)}; mend "
            "the row"
        )
    return number


def _shown(given: _Given, text: str) -> str:
    return f"the {given.type!r} {text[given.start : given.end]!r} at {given.start}–{given.end}"
