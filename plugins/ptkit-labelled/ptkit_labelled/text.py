"""The format ``labelled-text``: one text, or two, and a label a row, in JSON, CSV, TSV or lines."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self

from pydantic import Field, model_validator

from ptkit import (
    BadRow,
    BadValueError,
    DataError,
    Encoding,
    JsonRowsFormat,
    LabelledRecord,
    Origin,
    Record,
    row_text,
    row_value,
    shown_value,
)
from ptkit_labelled.tables import Layout, read_table

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
BY_SUFFIX = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "tsv",
}
Label = str | tuple[str, ...] | float


class LabelledTextFormat(JsonRowsFormat):
    """A text, or a pair of texts, and its label: a name, names, or a number.

    Worked example, for a file with a header row and ``second_column = "hypothesis"``::

        text,hypothesis,label
        "It rains, again.",It is wet.,entailment
        LabelledRecord(text="It rains, again.", second="It is wet.", label="entailment")

    Texts are taken as they are; names of labels lose the white space around them. A JSON label that
    is a whole number, true or false is the name that JSON writes for it: "1", "true".
    """

    name = "labelled-text"
    record: ClassVar[type[Record]] = LabelledRecord

    class Settings(JsonRowsFormat.Settings):
        text_column: str = "text"
        """The column of the text."""
        second_column: str | None = None
        """The column of a second text, such as a hypothesis; without it there is one text."""
        label_column: str = "label"
        """The column of the label."""
        label_type: Literal["name", "names", "number"] = "name"
        """What a label is: one name, any number of names, or a number to predict."""
        label_separator: str = Field(",", min_length=1)
        """What stands between names where a label is text; JSON has a list instead."""
        file_type: Literal["auto", "json", "csv", "tsv", "lines"] = "auto"
        """How the file is laid out: JSON objects, a table, or lines of a label and a text. "auto"
        goes by the suffix: .jsonl, .json, .csv, .tsv, each also with .gz behind it."""
        columns: tuple[str, ...] | None = Field(None, min_length=1)
        """The names of the columns of a file without a header row, in order. Lines have "label",
        "text" unless this says otherwise; their last column takes the rest of the line."""
        separator: str | None = Field(None, min_length=1)
        """What stands between columns: "," in csv, a tab in tsv and blanks in lines unless set."""
        quoting: bool | None = None
        """Whether fields may stand in double quotes, with separators and line breaks inside; true
        for csv and false for tsv unless set."""
        encoding: Encoding = "utf-8"
        """The encoding of tables and lines, such as "latin-1"; JSON is always UTF-8."""

        @model_validator(mode="after")
        def _check_columns(self) -> Self:
            used = [self.text_column, self.label_column]
            used += [] if self.second_column is None else [self.second_column]
            twice = [column for column, count in Counter(used).items() if count > 1]
            if twice:
                raise ValueError(
                    f"text_column, second_column and label_column must differ, got {twice[0]!r} "
                    "twice"
                )
            return self

    settings: Settings

    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        return self._read(path, name, answered=True)

    def read_unanswered(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        """As `read`; a table may lack the column of the label."""
        return self._read(path, name, answered=False)

    def _read(self, path: Path, name: str, *, answered: bool) -> Iterator[Record | BadRow]:
        kind = self._file_type(path, name)
        layout = self._layout(kind, name)
        if layout is None:
            yield from super().read(path, name) if answered else super().read_unanswered(path, name)
            return
        settings = self.settings
        wanted = {"text_column": settings.text_column}
        if settings.second_column is not None:
            wanted["second_column"] = settings.second_column
        if answered:
            wanted["label_column"] = settings.label_column
        elif kind == "lines" and settings.columns is None:
            # lines that are only to be answered are texts
            layout = Layout(None, (settings.text_column,), False, True, settings.encoding)
        for row in read_table(path, name, layout, wanted):
            if isinstance(row, BadRow):
                yield row
                continue
            origin, values = row
            try:
                yield self._from_table(origin, values, answered=answered)
            except BadValueError as error:
                yield BadRow(origin, str(error))

    def _file_type(self, path: Path, name: str) -> str:
        if self.settings.file_type != "auto":
            return self.settings.file_type
        suffixes = [suffix.lower() for suffix in path.suffixes]
        suffixes = suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes
        found = BY_SUFFIX.get(suffixes[-1]) if suffixes else None
        if found is None:
            ends = f"its suffix {suffixes[-1]!r}" if suffixes else "its name, which has no suffix,"
            raise DataError(
                f"{name}: {ends} doesn't tell how the file is laid out; set dataset.file_type to "
                "json, csv, tsv or lines"
            )
        return found

    def _layout(self, kind: str, name: str) -> Layout | None:
        """How a table is divided; None for JSON."""
        settings = self.settings
        if kind == "json":
            self._refuse("is JSON", name, "columns", "separator", "quoting", "encoding")
            return None
        if kind == "lines":
            self._refuse("consists of lines", name, "quoting")
            columns = settings.columns or ("label", "text")
            return Layout(settings.separator, columns, False, True, settings.encoding)
        quoted = kind == "csv" if settings.quoting is None else settings.quoting
        separator = settings.separator or ("," if kind == "csv" else "\t")
        if quoted and (len(separator) != 1 or separator in '"\r\n'):
            raise DataError(
                f"{name}: dataset.separator = {separator!r} can't divide quoted fields; use one "
                "character that is no quote, or set dataset.quoting = false"
            )
        return Layout(separator, settings.columns or (), quoted, False, settings.encoding)

    def _refuse(self, what: str, name: str, *unused: str) -> None:
        """Settings that would change nothing here are mistakes."""
        for key in unused:
            value, default = getattr(self.settings, key), type(self.settings).model_fields[key]
            if value != default.default:
                raise DataError(
                    f"{name}: {what}, for which dataset.{key} = {value!r} means nothing; "
                    "remove it, or set dataset.file_type"
                )

    # ------------------------------------------------------------------------------------ records

    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> LabelledRecord:
        settings = self.settings
        return LabelledRecord(
            origin=origin,
            text=row_text(row, "text_column", settings.text_column),
            second=(
                None
                if settings.second_column is None
                else row_text(row, "second_column", settings.second_column)
            ),
            label=self._json_label(row) if answered else None,
        )

    def _from_table(
        self, origin: Origin, values: Mapping[str, str], *, answered: bool
    ) -> LabelledRecord:
        settings = self.settings
        return LabelledRecord(
            origin=origin,
            text=_filled(values, settings.text_column),
            second=(
                None if settings.second_column is None else _filled(values, settings.second_column)
            ),
            label=self._text_label(values[settings.label_column]) if answered else None,
        )

    def _json_label(self, row: Mapping[str, Any]) -> Label:
        column = self.settings.label_column
        found = row_value(row, "label_column", column)
        match self.settings.label_type:
            case "number":
                if isinstance(found, bool) or not isinstance(found, int | float):
                    self._refuse_label("must be a number", found)
                return self._finite(found)
            case "names":
                if not isinstance(found, list):
                    self._refuse_label("must be a list of names", found)
                return self._distinct([self._json_name(name) for name in found])
            case _:
                return self._json_name(found)

    def _json_name(self, found: object) -> str:
        if isinstance(found, bool | int):
            return json.dumps(found)
        if not isinstance(found, str):
            self._refuse_label("must be a name (a string, a whole number, true or false)", found)
        return self._name(found)

    def _text_label(self, found: str) -> Label:
        match self.settings.label_type:
            case "number":
                try:
                    if "_" in found:  # which float() takes
                        raise ValueError
                    return self._finite(float(found))
                except ValueError:
                    self._refuse_label("must be a number", found)
            case "names":
                if not found.strip():
                    return ()
                names = found.split(self.settings.label_separator)
                return self._distinct([self._name(name) for name in names])
            case _:
                return self._name(found)

    def _name(self, found: str) -> str:
        if not found.strip():
            raise BadValueError(
                f"column {self.settings.label_column!r} has an empty label; name it, {SKIP}"
            )
        return found.strip()

    def _distinct(self, names: list[str]) -> tuple[str, ...]:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise BadValueError(
                f"column {self.settings.label_column!r} has the label {twice[0]!r} twice; name it "
                f"once, {SKIP}"
            )
        return tuple(names)

    def _finite(self, number: float) -> float:
        try:
            found = float(number)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            self._refuse_label("must be a finite number", number)
        return found

    def _refuse_label(self, must: str, found: object) -> NoReturn:
        raise BadValueError(
            f"column {self.settings.label_column!r} {must}, got {shown_value(found)}; mend the "
            "row, or set dataset.label_type or dataset.label_column"
        )


def _filled(values: Mapping[str, str], column: str) -> str:
    if not values[column].strip():
        raise BadValueError(f"column {column!r} is empty; give it a text, {SKIP}")
    return values[column]
