"""The format ``dialogue-csv``: dialogues as a CSV file, one turn a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import ClassVar, Literal, Self

from ptkit import (
    BadRow,
    DatasetFormat,
    Encoding,
    GenerationRecord,
    Origin,
    Record,
    suggestion,
)
from pydantic import Field, model_validator

from ptkit_dialogues.conversations import Conversation, Hole, Speaker, Turn, batches
from ptkit_dialogues.table import read_table

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'


@dataclass
class _Speech:
    """What one speaker says until the other does; ``origin``: where it begins."""

    origin: Origin
    speaker: Speaker
    text: str


@dataclass
class _Speeches:
    """The speeches of a conversation, by turns, up to its first hole."""

    speeches: list[_Speech] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    hole: int = 0
    """The line of what can't be used; 0 if there is nothing."""
    rest: list[Turn | _Speech] = field(default_factory=list)
    """What is said behind the hole, and what may go on in it."""

    def lost(self, *, answered: bool) -> Iterator[Origin]:
        """What would be a record if it were not for the hole."""
        for one in self.rest:
            if one.speaker == "assistant":
                yield one.origin
        said = self.rest or self.speeches
        if self.hole and not answered and said and said[-1].speaker == "user":
            yield said[-1].origin


class DialogueCsv(DatasetFormat):
    """Each reply of the assistant is a response, and what comes before it its prompt.

    Worked example, with the default names::

        conversation,role,text
        a,user,几点开门？
        a,assistant,九点。
        a,user,周日呢？
        a,assistant,十点。

        GenerationRecord(prompt="几点开门？", response="九点。")              # line 3
        GenerationRecord(prompt="周日呢？", response="十点。",                # line 5
                         history=(("几点开门？", "九点。"),))

    The origin of a record is the line on which its reply begins. What the user says
    behind the last reply is no record; `read_unanswered` makes one of it. White space
    around a text is left out, and further columns are ignored.

    A turn that can't be used is a `BadRow`, and so is every later reply of its
    conversation, since a part of its history is missing: each reply of a file is either
    a record or a bad row. A conversation without any reply is a bad row too.
    """

    name = "dialogue-csv"
    record: ClassVar[type[Record]] = GenerationRecord

    class Settings(DatasetFormat.Settings):
        conversation_column: str = "conversation"
        """The column that says which rows are of one conversation."""
        role_column: str = "role"
        """The column of who speaks."""
        text_column: str = "text"
        """The column of what is said."""
        turn_column: str | None = None
        """A column of whole numbers to sort the turns of a conversation by; without it
        they are taken in the file's order."""
        user_role: str = "user"
        """The role of who asks."""
        assistant_role: str = "assistant"
        """The role of who answers: the model."""
        opening: Literal["error", "keep", "drop"] = "error"
        """What the assistant says before the user says anything: stop at it, keep it in
        the history as the answer to an empty prompt, or leave it out. It is never a
        response, since nothing was asked."""
        consecutive: Literal["error", "join"] = "error"
        """Two turns of one speaker in a row: stop at the second, or join them as lines
        of one."""
        interleaved: bool = False
        """Whether rows of other conversations may stand between those of one. The whole
        file is then kept in memory, otherwise one conversation."""
        max_history: int | None = Field(None, ge=0)
        """At most so many earlier exchanges in a record, the latest; by default all."""
        separator: str = Field(",", min_length=1, max_length=1)
        """The character between columns: a comma, a semicolon, a tab …"""
        encoding: Encoding = "utf-8"
        """The encoding of the file; of UTF-8, a byte order mark is left out."""

        @model_validator(mode="after")
        def _check_names(self) -> Self:
            if self.user_role == self.assistant_role:
                raise ValueError(
                    "user_role and assistant_role must be two names, got "
                    f"{self.user_role!r} twice"
                )
            columns = [self.conversation_column, self.role_column, self.text_column]
            if self.turn_column is not None:
                columns.append(self.turn_column)
            for column in columns:
                if columns.count(column) > 1:
                    raise ValueError(
                        "conversation_column, role_column, text_column and turn_column "
                        f"must be different columns, got {column!r} twice"
                    )
            if self.separator in '"\r\n':
                raise ValueError(
                    "separator must be neither a quote nor a line break, got "
                    f"{self.separator!r}"
                )
            return self

    settings: Settings

    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        for _, items in self.conversations(path, name):
            yield from items

    def read_unanswered(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        """As `read`, without responses, and with a record for a last question."""
        for _, items in self.conversations(path, name, answered=False):
            yield from items

    def conversations(
        self, path: Path, name: str, *, answered: bool = True
    ) -> Iterator[tuple[int, list[Record | BadRow]]]:
        """The records and bad rows of each conversation, as `read` gives them in turn.

        With ``interleaved``, which makes one of all conversations, their number comes
        with them. Raises `DataError` if the file as a whole can't be read.
        """
        numbered = self.settings.turn_column is not None
        for batch in batches(
            self._turns(path, name),
            interleaved=self.settings.interleaved,
            numbered=numbered,
        ):
            items: list[Record | BadRow] = list(batch.bad)
            for conversation in batch.conversations:
                items += self._replies(conversation, answered=answered)
            items.sort(key=lambda item: item.origin.line)
            yield len(batch.conversations), items

    def _turns(self, path: Path, name: str) -> Iterator[Turn | BadRow]:
        settings = self.settings
        wanted = {
            "conversation_column": settings.conversation_column,
            "role_column": settings.role_column,
            "text_column": settings.text_column,
        }
        if settings.turn_column is not None:
            wanted["turn_column"] = settings.turn_column
        for row in read_table(
            path,
            name,
            separator=settings.separator,
            encoding=settings.encoding,
            wanted=wanted,
        ):
            yield row if isinstance(row, BadRow) else self._turn(*row)

    def _turn(self, origin: Origin, row: dict[str, str]) -> Turn | BadRow:
        settings = self.settings
        key = row[settings.conversation_column].strip()
        if not key:
            return BadRow(
                origin,
                f"column {settings.conversation_column!r} is empty; say which "
                f"conversation the row is of, {SKIP}",
            )
        order, problem = origin.line, ""
        if settings.turn_column is not None:
            number = row[settings.turn_column].strip()
            if number.isascii() and number.isdecimal() and len(number) < 19:
                order = int(number)
            else:
                order = -1  # nobody knows where, so it breaks the whole conversation
                problem = (
                    f"column {settings.turn_column!r} must be a whole number, got "
                    f"{number!r}; mend the row, or set dataset.turn_column"
                )
        role = row[settings.role_column].strip()
        roles: dict[str, Speaker] = {
            settings.user_role: "user",
            settings.assistant_role: "assistant",
        }
        if role not in roles and not problem:
            problem = (
                f"column {settings.role_column!r} has the unknown role {role!r}"
                f"{suggestion(role, roles)}; known: {', '.join(roles)}; set "
                "dataset.user_role and dataset.assistant_role"
            )
        text = row[settings.text_column].strip()
        if not text and not problem:
            problem = (
                f"column {settings.text_column!r} is empty; give it a text, {SKIP}"
            )
        return Turn(origin, key, order, roles.get(role, "user"), text, problem)

    def _replies(
        self, conversation: Conversation, *, answered: bool
    ) -> Iterator[Record | BadRow]:
        """The records of a conversation, and a bad row for each reply that is none."""
        settings = self.settings
        found = self._speeches(conversation)
        yield from found.bad
        speeches = found.speeches
        history: list[tuple[str, str]] = []
        if speeches and speeches[0].speaker == "assistant":
            opening = speeches.pop(0)
            if settings.opening == "keep":
                history.append(("", opening.text))
        open_question = len(speeches) % 2 == 1 and not answered and not found.hole
        for index in range(0, len(speeches) - 1 + open_question, 2):
            asked, reply = speeches[index], speeches[index + 1 : index + 2]
            most = (
                len(history) if settings.max_history is None else settings.max_history
            )
            yield GenerationRecord(
                origin=reply[0].origin if reply else asked.origin,
                prompt=asked.text,
                response=reply[0].text if answered else None,
                history=tuple(history[max(0, len(history) - most) :]),
            )
            history += [(asked.text, one.text) for one in reply]
        for origin in found.lost(answered=answered):
            yield BadRow(
                origin,
                f"can't be used, since line {found.hole} of conversation "
                f"{conversation.key!r} can't; mend that line first",
            )
        if len(speeches) < 2 and not open_question and not found.hole:
            yield BadRow(
                conversation.origin,
                f"conversation {conversation.key!r} has no reply of "
                f"{settings.assistant_role!r} to a turn of {settings.user_role!r}; add "
                f"one, {SKIP}",
            )

    def _speeches(self, conversation: Conversation) -> _Speeches:
        found = _Speeches()
        speeches = found.speeches
        join = self.settings.consecutive == "join"
        for entry in sorted(conversation.entries, key=attrgetter("order")):
            if isinstance(entry, Hole):
                found.hole = found.hole or entry.line
            elif found.hole:
                found.rest.append(entry)
            elif problem := self._out_of_turn(entry, speeches):
                found.bad.append(BadRow(entry.origin, problem))
                found.hole = entry.origin.line
            elif speeches and speeches[-1].speaker == entry.speaker:
                speeches[-1].text += f"\n{entry.text}"
            else:
                speeches.append(_Speech(entry.origin, entry.speaker, entry.text))
        if join and found.hole and speeches:
            last = speeches.pop()  # what is missing may be more of it
            if speeches or last.speaker == "user":
                found.rest.insert(0, last)
        return found

    def _out_of_turn(self, turn: Turn, speeches: list[_Speech]) -> str | None:
        """Why nobody may speak now who speaks in ``turn``; None if it's all right."""
        settings = self.settings
        roles = {"user": settings.user_role, "assistant": settings.assistant_role}
        role = roles[turn.speaker]
        if not speeches and turn.speaker == "assistant" and settings.opening == "error":
            return (
                f"conversation {turn.conversation!r} begins with {role!r}, who has "
                'nothing to answer; mend it, or set dataset.opening to "keep" or "drop"'
            )
        if (
            speeches
            and speeches[-1].speaker == turn.speaker
            and settings.consecutive == "error"
        ):
            return (
                f"is of {role!r} again, after line {speeches[-1].origin.line} of "
                f"conversation {turn.conversation!r}; mend it, or set "
                'dataset.consecutive = "join"'
            )
        return None
