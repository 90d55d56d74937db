"""JSON rows with a prompt, a response and perhaps a history, under keys of the user's choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ptkit import BadRow, DatasetFormat, GenerationRecord, Metric, Origin, Record, read_json_rows
from ptkit_adgen.attributes import AttributeShare

_KEYS_SHOWN = 12
_CHARACTERS_SHOWN = 20


class AdgenFormat(DatasetFormat):
    """JSON lines or an array of objects, as `read_json_rows` reads them, to `GenerationRecord`.

    Worked example, with the default columns::

        {"content": "类型#裤*版型#宽松", "summary": "宽松的裤子……"}
        GenerationRecord(prompt="类型#裤*版型#宽松", response="宽松的裤子……")

    Texts are taken as they are, white space included; a prompt or response of nothing but white
    space is a bad row. Further keys of a row are ignored.
    """

    name = "adgen"
    record: ClassVar[type[Record]] = GenerationRecord
    controls: ClassVar[tuple[type[Metric], ...]] = (AttributeShare,)

    class Settings(DatasetFormat.Settings):
        prompt_column: str = "content"
        """The key of the text that the model gets."""
        response_column: str = "summary"
        """The key of the text that it should answer."""
        history_column: str | None = None
        """The key of the earlier turns, oldest first: a list of [prompt, response]."""

    settings: Settings

    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        for row in read_json_rows(path, name):
            yield row if isinstance(row, BadRow) else self.make_record(*row)

    def read_unanswered(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        for row in read_json_rows(path, name):
            yield row if isinstance(row, BadRow) else self.make_record(*row, answered=False)

    def make_record(
        self, origin: Origin, row: Mapping[str, Any], *, answered: bool = True
    ) -> GenerationRecord | BadRow:
        """The record of one JSON object.

        With ``answered=False`` the response is not looked at and stays None: rows to be predicted.
        """
        settings = self.settings
        try:
            return GenerationRecord(
                origin=origin,
                prompt=_text(row, "prompt_column", settings.prompt_column),
                response=_text(row, "response_column", settings.response_column)
                if answered
                else None,
                history=()
                if settings.history_column is None
                else _history(row, settings.history_column),
            )
        except _BadValueError as error:
            return BadRow(origin, str(error))


class _BadValueError(Exception):
    pass


def _value(row: Mapping[str, Any], setting: str, key: str) -> Any:
    if key in row:
        return row[key]
    raise _BadValueError(
        f"key {key!r} is missing (the row has: {_listed(row)}); set dataset.{setting}"
    )


def _text(row: Mapping[str, Any], setting: str, key: str) -> str:
    text = _value(row, setting, key)
    if not isinstance(text, str):
        raise _BadValueError(
            f"key {key!r} must be a string, got {_got(text)}; "
            f"mend the row, or set dataset.{setting} to a column of texts"
        )
    if not text.strip():
        raise _BadValueError(
            f"key {key!r} is empty; give it a text, or drop such rows with "
            'dataset.on_bad_row = "skip"'
        )
    return text


def _history(row: Mapping[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    turns = _value(row, "history_column", key)
    if not isinstance(turns, list):
        raise _BadValueError(
            f"key {key!r} must be a list of [prompt, response] pairs, got {_got(turns)}; "
            "write [] for none, or set dataset.history_column"
        )
    return tuple(_turn(turn, key, number) for number, turn in enumerate(turns, 1))


def _turn(turn: Any, key: str, number: int) -> tuple[str, str]:
    if not isinstance(turn, list) or len(turn) != 2:
        got = f"a list of {len(turn)}" if isinstance(turn, list) else _got(turn)
        raise _BadValueError(
            f"key {key!r}, turn {number} must be a list [prompt, response], got {got}; mend the row"
        )
    for part, text in zip(("prompt", "response"), turn, strict=True):
        if not isinstance(text, str):
            raise _BadValueError(
                f"key {key!r}, turn {number}: the {part} must be a string, got {_got(text)}; "
                "mend the row"
            )
    prompt, response = turn
    return prompt, response


def _listed(keys: Iterable[str]) -> str:
    shown = [key if key.isprintable() and key else repr(key) for key in keys]
    more = len(shown) - _KEYS_SHOWN
    listed = ", ".join(shown[:_KEYS_SHOWN])
    return f"{listed} and {more} more" if more > 0 else listed or "no keys"


def _got(value: object) -> str:
    """A JSON value as messages name it: its kind and, cut short, what it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    shown = repr(value)
    if len(shown) > _CHARACTERS_SHOWN:
        shown = f"{shown[:_CHARACTERS_SHOWN]}…"
    return f"the {'string' if isinstance(value, str) else 'number'} {shown}"
