"""The format ``choices-jsonl``: a question, its possible answers and which of them is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ptkit import (
    BadValueError,
    ChoiceRecord,
    JsonRowsFormat,
    Origin,
    Record,
    row_text,
    row_value,
    shown_value,
    suggestion,
)

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ChoicesFormat(JsonRowsFormat):
    """JSON lines or an array of objects, to `ChoiceRecord`.

    Worked example, with ``question_columns = ["premise", "question"]``, ``choice_columns =
    ["choice1", "choice2"]``, ``answer_column = "label"`` and ``question_words.question.cause =
    "What was the cause?"``::

        {"premise": "It was wet.", "question": "cause",
         "choice1": "It rained.", "choice2": "It was noon.", "label": 0}
        ChoiceRecord(question="It was wet. What was the cause?",
                     choices=("It rained.", "It was noon."), answer=0)
    """

    name = "choices-jsonl"
    record: ClassVar[type[Record]] = ChoiceRecord

    class Settings(JsonRowsFormat.Settings):
        question_columns: tuple[str, ...] = Field(("question",), min_length=1)
        """The keys of what is asked; texts of several are joined with a blank."""
        question_words: Mapping[str, Mapping[str, str]] = {}
        """A table a question column: what to read for each of its values, such as a whole question
        for COPA's "cause"."""
        choices_column: str | None = None
        """The key of the list of choices; "choices" unless `choice_columns` is set."""
        choice_columns: tuple[str, ...] | None = Field(None, min_length=2)
        """The keys of the choices, where each has its own."""
        answer_column: str = "answer"
        """The key of the right answer."""
        answer_type: Literal["index", "letter", "text"] = "index"
        """How the answer is given: its index, its letter ("A" is the first), or its text."""
        answer_base: Literal[0, 1] = 0
        """The index of the first choice."""

        @model_validator(mode="after")
        def _check_columns(self) -> Self:
            if self.choices_column is not None and self.choice_columns is not None:
                raise ValueError("set choices_column or choice_columns, not both")
            for column in self.question_words:
                if column not in self.question_columns:
                    raise ValueError(
                        f"question_words.{column} is no question column"
                        f"{suggestion(column, self.question_columns)}; question_columns has: "
                        f"{', '.join(self.question_columns)}"
                    )
            if self.answer_base and self.answer_type != "index":
                raise ValueError(
                    f'answer_base = 1 is for answer_type = "index", got {self.answer_type!r}; '
                    "remove one of them"
                )
            return self

    settings: Settings

    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> ChoiceRecord:
        choices = self._choices(row)
        return ChoiceRecord(
            origin=origin,
            question=" ".join(
                self._question(row, column) for column in self.settings.question_columns
            ),
            choices=choices,
            answer=self._answer(row, choices) if answered else None,
        )

    def _question(self, row: Mapping[str, Any], column: str) -> str:
        text = row_text(row, "question_columns", column)
        words = self.settings.question_words.get(column)
        if words is None:
            return text
        if text not in words:
            raise BadValueError(
                f"key {column!r} has {shown_value(text)}, for which there are no words"
                f"{suggestion(text, words)}; known: {', '.join(words)}; add it to "
                f"dataset.question_words.{column}"
            )
        return words[text]

    def _choices(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        settings = self.settings
        if settings.choice_columns is not None:
            found = [row_text(row, "choice_columns", key) for key in settings.choice_columns]
            names = [f"key {key!r}" for key in settings.choice_columns]
        else:
            column = settings.choices_column or "choices"
            found = row_value(row, "choices_column", column)
            if not isinstance(found, list):
                raise BadValueError(
                    f"key {column!r} must be a list of texts, got {shown_value(found)}; set "
                    "dataset.choices_column, or dataset.choice_columns for choices with keys of "
                    "their own"
                )
            if len(found) < 2:
                raise BadValueError(
                    f"key {column!r} must have at least two choices, got {len(found)}; add "
                    f"some, {SKIP}"
                )
            names = [f"key {column!r}, choice {number}" for number in range(1, len(found) + 1)]
        seen: dict[str, str] = {}
        for name, choice in zip(names, found, strict=True):
            if not isinstance(choice, str) or not choice.strip():
                got = shown_value(choice) if not isinstance(choice, str) else "an empty one"
                raise BadValueError(f"{name} must be a text, got {got}; mend the row, {SKIP}")
            if choice in seen:
                raise BadValueError(
                    f"{name} is the same text as {seen[choice]} ({shown_value(choice)}); make them "
                    f"differ, {SKIP}"
                )
            seen[choice] = name
        return tuple(seen)

    def _answer(self, row: Mapping[str, Any], choices: tuple[str, ...]) -> int:
        settings = self.settings
        column = settings.answer_column
        found = row_value(row, "answer_column", column)
        match settings.answer_type:
            case "text":
                if found not in choices:
                    raise BadValueError(
                        f"key {column!r} must be the text of one of the {len(choices)} choices, "
                        f"got {shown_value(found)}; mend the row, or set dataset.answer_type"
                    )
                return choices.index(found)
            case "letter":
                known = LETTERS[: len(choices)]
                if not isinstance(found, str) or len(found) != 1 or found.upper() not in known:
                    raise BadValueError(
                        f"key {column!r} must be a letter from A to {known[-1]}, got "
                        f"{shown_value(found)}; mend the row, or set dataset.answer_type"
                    )
                return known.index(found.upper())
            case _:
                index = found
                if isinstance(found, str) and found.isascii() and found.isdigit():
                    index = int(found)
                if isinstance(index, bool) or not isinstance(index, int):
                    raise BadValueError(
                        f"key {column!r} must be the index of a choice, got {shown_value(found)}; "
                        "mend the row, or set dataset.answer_type"
                    )
                first, last = settings.answer_base, settings.answer_base + len(choices) - 1
                if not first <= index <= last:
                    raise BadValueError(
                        f"key {column!r} must be an index from {first} to {last}, got {index}; "
                        "mend the row, or set dataset.answer_base"
                    )
                return index - first
