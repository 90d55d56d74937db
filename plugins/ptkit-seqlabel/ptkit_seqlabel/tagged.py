"""The format ``tagged-jsonl``: JSON objects with a list of words and a list of their tags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from ptkit import (
    BadValueError,
    JsonRowsFormat,
    Origin,
    Record,
    TaggedRecord,
    row_value,
    shown_value,
)
from ptkit_seqlabel.schemes import Scheme, TagError, check_strict, to_bio
from ptkit_seqlabel.words import Joiner, joined

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'


class TaggedJsonFormat(JsonRowsFormat):
    """JSON lines or an array of objects, to `TaggedRecord`.

    Worked example, with the default settings::

        {"tokens": ["New", "York", "waits"], "tags": ["B-LOC", "I-LOC", "O"]}
        TaggedRecord(text="New York waits", words=((0, 3), (4, 8), (9, 14)),
                     tags=("B-LOC", "I-LOC", "O"))
    """

    name = "tagged-jsonl"
    record: ClassVar[type[Record]] = TaggedRecord

    class Settings(JsonRowsFormat.Settings):
        tokens_column: str = "tokens"
        """The key of the list of words."""
        tags_column: str = "tags"
        """The key of the list of tags, one a word."""
        scheme: Scheme = "bio"
        """How tags write entities: "bio" (IOB2), "iob1", "bioes", "bmes", or "none" for tags that
        are no entities, such as parts of speech."""
        strict: bool = False
        """Whether an I-x of the scheme "bio" that continues nothing is an error; otherwise it
        begins an entity, as conlleval and seqeval read it."""
        joiner: Joiner = " "
        """What stands between words in the text: a blank, or "" for Chinese characters."""

        @model_validator(mode="after")
        def _check_strict(self) -> Self:
            check_strict(self.scheme, strict=self.strict)
            return self

    settings: Settings

    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> TaggedRecord:
        settings = self.settings
        words = _texts(row, "tokens_column", settings.tokens_column)
        if not words:
            raise BadValueError(f"key {settings.tokens_column!r} has no words; add some, {SKIP}")
        text, spans = joined(words, settings.joiner)
        tags = None
        if answered:
            given = _texts(row, "tags_column", settings.tags_column)
            if len(given) != len(words):
                raise BadValueError(
                    f"key {settings.tags_column!r} must have one tag a word, got {len(given)} for "
                    f"{len(words)} words; mend the row, {SKIP}"
                )
            try:
                tags = to_bio(given, settings.scheme, strict=settings.strict)
            except TagError as error:
                raise BadValueError(
                    f"key {settings.tags_column!r}, tag {error.index + 1}: {error}"
                ) from None
        return TaggedRecord(origin=origin, text=text, words=spans, tags=tags)


def _texts(row: Mapping[str, Any], setting: str, key: str) -> list[str]:
    found = row_value(row, setting, key)
    if not isinstance(found, list):
        raise BadValueError(
            f"key {key!r} must be a list of texts, got {shown_value(found)}; mend the row, or set "
            f"dataset.{setting}"
        )
    for number, text in enumerate(found, start=1):
        if not isinstance(text, str) or not text:
            got = "an empty one" if text == "" else shown_value(text)
            raise BadValueError(
                f"key {key!r}, item {number} must be a text, got {got}; mend the row, or set "
                f"dataset.{setting}"
            )
    return found
