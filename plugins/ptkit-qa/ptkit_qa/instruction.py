"""The format ``instruction``: rows of an instruction, perhaps an input for it, and the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ptkit import (
    BadValueError,
    GenerationRecord,
    JsonRowsFormat,
    Origin,
    Record,
    row_text,
    shown_value,
)


class InstructionFormat(JsonRowsFormat):
    """The prompt is the instruction; an input goes behind it, on a line of its own.

    Worked example, with the default columns::

        {"instruction": "翻译成中文", "input": "a red dress", "output": "红裙"}
        GenerationRecord(prompt="翻译成中文\\na red dress", response="红裙")

    Texts are taken as they are; an input that is missing, null or nothing but white space is none.
    """

    name = "instruction"
    record: ClassVar[type[Record]] = GenerationRecord

    class Settings(JsonRowsFormat.Settings):
        instruction_column: str = "instruction"
        """The key of what is to be done."""
        input_column: str = "input"
        """The key of what it is to be done with; a row may lack it."""
        output_column: str = "output"
        """The key of the text that the model should answer."""

    settings: Settings

    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> GenerationRecord:
        settings = self.settings
        prompt = row_text(row, "instruction_column", settings.instruction_column)
        given = row.get(settings.input_column)
        if given is not None and not isinstance(given, str):
            raise BadValueError(
                f"key {settings.input_column!r} must be a string, got {shown_value(given)}; "
                "mend the row, or set dataset.input_column to a column of texts"
            )
        if given is not None and given.strip():
            prompt = f"{prompt}\n{given}"
        response = row_text(row, "output_column", settings.output_column) if answered else None
        return GenerationRecord(origin=origin, prompt=prompt, response=response)
