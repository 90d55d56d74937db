"""JSON rows with a prompt, a response and perhaps a history, under keys of the user's choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ptkit import (
    BadValueError,
    GenerationRecord,
    JsonRowsFormat,
    Metric,
    Origin,
    Record,
    row_text,
    row_value,
    shown_value,
)
from ptkit_adgen.attributes import AttributeShare


class AdgenFormat(JsonRowsFormat):
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

    class Settings(JsonRowsFormat.Settings):
        prompt_column: str = "content"
        """The key of the text that the model gets."""
        response_column: str = "summary"
        """The key of the text that it should answer."""
        history_column: str | None = None
        """The key of the earlier turns, oldest first: a list of [prompt, response]."""

    settings: Settings

    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> GenerationRecord:
        settings = self.settings
        return GenerationRecord(
            origin=origin,
            prompt=row_text(row, "prompt_column", settings.prompt_column),
            response=row_text(row, "response_column", settings.response_column)
            if answered
            else None,
            history=()
            if settings.history_column is None
            else _history(row, settings.history_column),
        )


def _history(row: Mapping[str, Any], key: str) -> tuple[tuple[str, str], ...]:
    turns = row_value(row, "history_column", key)
    if not isinstance(turns, list):
        raise BadValueError(
            f"key {key!r} must be a list of [prompt, response] pairs, got {shown_value(turns)}; "
            "write [] for none, or set dataset.history_column"
        )
    return tuple(_turn(turn, key, number) for number, turn in enumerate(turns, 1))


def _turn(turn: Any, key: str, number: int) -> tuple[str, str]:
    if not isinstance(turn, list) or len(turn) != 2:
        got = f"a list of {len(turn)}" if isinstance(turn, list) else shown_value(turn)
        raise BadValueError(
            f"key {key!r}, turn {number} must be a list [prompt, response], got {got}; mend the row"
        )
    for part, text in zip(("prompt", "response"), turn, strict=True):
        if not isinstance(text, str):
            raise BadValueError(
                f"key {key!r}, turn {number}: the {part} must be a string, "
                f"got {shown_value(text)}; mend the row"
            )
    prompt, response = turn
    return prompt, response
