"""A record type that the contract tests share."""

from __future__ import annotations

import dataclasses

import ptkit


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoodRecord(ptkit.Record):
    """A text and its mood."""

    text: str
    mood: str | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
