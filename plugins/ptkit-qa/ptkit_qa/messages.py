"""The format ``messages``: chats as lists of messages, each with a role and its content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import model_validator

from ptkit import (
    BadValueError,
    GenerationRecord,
    JsonRowsFormat,
    Origin,
    Record,
    row_value,
    shown_keys,
    shown_value,
    suggestion,
)

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'


class _Message(NamedTuple):
    role: str
    content: str


class MessagesFormat(JsonRowsFormat):
    """The last answer is the response, its question the prompt, the turns before them the history.

    Worked example, with the default names::

        {"messages": [{"role": "system", "content": "答得短些"},
                      {"role": "user", "content": "几点开门？"},
                      {"role": "assistant", "content": "九点。"},
                      {"role": "user", "content": "周日呢？"},
                      {"role": "assistant", "content": "十点。"}]}
        GenerationRecord(prompt="周日呢？", response="十点。",
                         history=(("答得短些\\n几点开门？", "九点。"),))

    A record has no place for a system message, so its text goes in front of the first question, on
    a line of its own. Further keys of a message are ignored.
    """

    name = "messages"
    record: ClassVar[type[Record]] = GenerationRecord

    class Settings(JsonRowsFormat.Settings):
        messages_column: str = "messages"
        """The key of the list of messages."""
        role_key: str = "role"
        """The key of a message's role."""
        content_key: str = "content"
        """The key of a message's text."""
        user_role: str = "user"
        """The role of who asks."""
        assistant_role: str = "assistant"
        """The role of who answers: the model."""
        system_role: str = "system"
        """The role of a first message that says how to answer."""

        @model_validator(mode="after")
        def _check_roles(self) -> Self:
            if len({self.user_role, self.assistant_role, self.system_role}) < 3:
                raise ValueError(
                    "user_role, assistant_role and system_role must be three names, got "
                    f"{self.user_role!r}, {self.assistant_role!r}, {self.system_role!r}"
                )
            return self

    settings: Settings

    def make(self, origin: Origin, row: Mapping[str, Any], *, answered: bool) -> GenerationRecord:
        """With ``answered=False``, a last message of the model is left out."""
        messages = self._messages(row)
        user, assistant = self.settings.user_role, self.settings.assistant_role
        system = ""
        if messages[0].role == self.settings.system_role:
            system = f"{messages[0].content}\n"
        turns = messages[1:] if system else messages
        for index, (message, expected) in enumerate(
            zip(turns, [user, assistant] * len(turns), strict=False)
        ):
            if message.role != expected:
                raise BadValueError(
                    f"{self._where(index + bool(system))} is of {message.role!r}, but {user!r} and "
                    f"{assistant!r} must take turns, beginning with {user!r}; mend the row, {SKIP}"
                )
        if not turns:
            raise BadValueError(
                f"key {self.settings.messages_column!r} has no message of {user!r}; add one, {SKIP}"
            )
        if len(turns) % 2 and answered:
            raise BadValueError(
                f"key {self.settings.messages_column!r} has no message of {assistant!r} at its "
                f"end; add the answer, {SKIP}"
            )
        response = turns[-1].content if answered else None
        if len(turns) % 2 == 0:
            turns = turns[:-1]
        texts = [system + turns[0].content, *(turn.content for turn in turns[1:])]
        return GenerationRecord(
            origin=origin,
            prompt=texts[-1],
            response=response,
            history=tuple(zip(texts[:-1:2], texts[1::2], strict=True)),
        )

    def _where(self, index: int) -> str:
        return f"key {self.settings.messages_column!r}, message {index + 1}"

    def _messages(self, row: Mapping[str, Any]) -> list[_Message]:
        key = self.settings.messages_column
        found = row_value(row, "messages_column", key)
        if not isinstance(found, list):
            raise BadValueError(
                f"key {key!r} must be a list of messages, got {shown_value(found)}; "
                "mend the row, or set dataset.messages_column"
            )
        if not found:
            raise BadValueError(f"key {key!r} is an empty list; give it messages, {SKIP}")
        return [self._message(message, index) for index, message in enumerate(found)]

    def _message(self, message: Any, index: int) -> _Message:
        settings = self.settings
        where = self._where(index)
        if not isinstance(message, dict):
            raise BadValueError(
                f"{where} must be an object with {settings.role_key!r} and "
                f"{settings.content_key!r}, got {shown_value(message)}; mend the row"
            )
        texts = []
        for setting, key in (
            ("role_key", settings.role_key),
            ("content_key", settings.content_key),
        ):
            if key not in message:
                raise BadValueError(
                    f"{where}: key {key!r} is missing (it has: {shown_keys(message)}); "
                    f"set dataset.{setting}"
                )
            if not isinstance(message[key], str):
                raise BadValueError(
                    f"{where}: key {key!r} must be a string, got {shown_value(message[key])}; "
                    f"mend the row, or set dataset.{setting}"
                )
            texts.append(message[key])
        found = _Message(*texts)
        roles = {
            settings.user_role: "user_role",
            settings.assistant_role: "assistant_role",
            settings.system_role: "system_role",
        }
        if found.role not in roles:
            raise BadValueError(
                f"{where}: unknown role {found.role!r}{suggestion(found.role, roles)}; known: "
                f"{', '.join(roles)}; set dataset.{', dataset.'.join(roles.values())}"
            )
        if roles[found.role] == "system_role" and index:
            raise BadValueError(
                f"{where} is of {found.role!r}, which only the first message may be; mend the row, "
                f"{SKIP}"
            )
        if not found.content.strip():
            raise BadValueError(
                f"{where}: key {settings.content_key!r} is empty; give it a text, {SKIP}"
            )
        return found
