"""The format ``conll``: a word a line with its tag in a column, blank lines between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from ptkit import (
    BadRow,
    DatasetFormat,
    Encoding,
    Origin,
    Record,
    TaggedRecord,
    read_lines,
    text_problem,
)
from ptkit_seqlabel.schemes import Scheme, TagError, check_strict, to_bio
from ptkit_seqlabel.words import Joiner, joined

DOCUMENT = "-DOCSTART-"
BLANKS = re.compile(r"[ \t]+")  # not str.split(), which also splits at U+3000


class _Line(NamedTuple):
    origin: Origin
    columns: list[str]


class _BadLineError(Exception):
    def __init__(self, origin: Origin, message: str) -> None:
        super().__init__(message)
        self.origin = origin


class ConllFormat(DatasetFormat):
    """Sentences of words and tags; one record a sentence, its origin the line of its first word.

    Worked example, with ``tag_column = -1`` and ``scheme = "iob1"``::

        -DOCSTART- -X- O O

        EU NNP I-NP I-ORG
        rejects VBZ I-VP O
        TaggedRecord(text="EU rejects", words=((0, 2), (3, 10)), tags=("B-ORG", "O"))

    A sentence with a line that can't be used is one bad row, which names that line.
    """

    name = "conll"
    record: ClassVar[type[Record]] = TaggedRecord

    class Settings(DatasetFormat.Settings):
        word_column: int = 0
        """Which column has the word, counted from 0; -1 is the last."""
        tag_column: int = -1
        """Which column has the tag, counted from 0; -1 is the last."""
        separator: str | None = Field(None, min_length=1)
        """What stands between columns; any run of blanks and tabs unless set."""
        scheme: Scheme = "bio"
        """How tags write entities: "bio" (IOB2), "iob1", "bioes", "bmes", or "none" for tags that
        are no entities, such as parts of speech."""
        strict: bool = False
        """Whether an I-x of the scheme "bio" that continues nothing is an error; otherwise it
        begins an entity, as conlleval and seqeval read it."""
        joiner: Joiner = " "
        """What stands between words in the text: a blank, or "" for Chinese characters."""
        word_pattern: str | None = None
        """A regular expression that the whole word column must match; its group is the word."""
        comment: str | None = Field(None, min_length=1)
        """Lines that begin with this are left out."""
        encoding: Encoding = "utf-8"
        """The encoding of the file."""

        @field_validator("word_pattern")
        @classmethod
        def _check_pattern(cls, pattern: str | None) -> str | None:
            if pattern is not None:
                try:
                    groups = re.compile(pattern).groups
                except re.error as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
                if groups != 1:
                    raise ValueError(f"{pattern!r} must have one group, the word, got {groups}")
            return pattern

        @model_validator(mode="after")
        def _check_strict(self) -> Self:
            check_strict(self.scheme, strict=self.strict)
            return self

    settings: Settings

    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        return self._read(path, name, answered=True)

    def read_unanswered(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        """As `read`; the column of the tags may be missing."""
        return self._read(path, name, answered=False)

    def _read(self, path: Path, name: str, *, answered: bool) -> Iterator[Record | BadRow]:
        columns: int | None = None  # of every line, as the first one has it
        for sentence in self._sentences(path, name):
            try:
                columns = self._check(sentence, columns, answered=answered)
                yield self._record(sentence, answered=answered)
            except _BadLineError as error:
                yield BadRow(error.origin, str(error))

    def _sentences(self, path: Path, name: str) -> Iterator[list[_Line]]:
        separator, comment = self.settings.separator, self.settings.comment
        sentence: list[_Line] = []
        for origin, line in read_lines(path, name, self.settings.encoding):
            text = line.rstrip("\r\n")
            if comment is not None and text.startswith(comment):
                continue
            bare = text.strip(" \t")
            columns = BLANKS.split(bare) if separator is None else text.split(separator)
            if bare and columns[0] != DOCUMENT:
                sentence.append(_Line(origin, columns))
            elif sentence:
                yield sentence
                sentence = []
        if sentence:
            yield sentence

    def _check(self, sentence: list[_Line], columns: int | None, *, answered: bool) -> int:
        """That every line has the same columns, with those that the settings name among them."""
        settings = self.settings
        needed = {"word_column": settings.word_column}
        if answered:
            needed["tag_column"] = settings.tag_column
        for origin, found in sentence:
            problem = text_problem("\t".join(found), settings.encoding)
            if problem:
                raise _BadLineError(origin, problem)
            count = len(found)
            for setting, index in needed.items():
                if not -count <= index < count:
                    raise _BadLineError(
                        origin,
                        f"has {_columns(count)}, but dataset.{setting} = {index}; mend the line, "
                        "or set it or dataset.separator",
                    )
            if answered and settings.word_column % count == settings.tag_column % count:
                raise _BadLineError(
                    origin,
                    f"has {_columns(count)}, so that word and tag are the same one; mend the line, "
                    "or set dataset.word_column, dataset.tag_column or dataset.separator",
                )
            if columns is not None and count != columns:
                raise _BadLineError(
                    origin,
                    f"has {_columns(count)}, but lines above have {columns}; mend the line, or set "
                    "dataset.separator",
                )
            columns = count
        assert columns is not None
        return columns

    def _record(self, sentence: list[_Line], *, answered: bool) -> TaggedRecord:
        settings = self.settings
        text, spans = joined([self._word(line) for line in sentence], settings.joiner)
        tags = None
        if answered:
            given = [line.columns[settings.tag_column] for line in sentence]
            try:
                tags = to_bio(given, settings.scheme, strict=settings.strict)
            except TagError as error:
                raise _BadLineError(sentence[error.index].origin, str(error)) from None
        return TaggedRecord(origin=sentence[0].origin, text=text, words=spans, tags=tags)

    def _word(self, line: _Line) -> str:
        word = line.columns[self.settings.word_column]
        if self.settings.word_pattern is not None:
            found = re.fullmatch(self.settings.word_pattern, word)
            if found is None:
                raise _BadLineError(
                    line.origin,
                    f"the word {word!r} does not match dataset.word_pattern "
                    f"{self.settings.word_pattern!r}; mend the line, or set it",
                )
            word = found[1] or ""
        if not word:
            raise _BadLineError(line.origin, "the word is empty; mend the line")
        return word


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"
