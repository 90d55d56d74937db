"""From turns, a row each, to conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ptkit import BadRow, Origin

Speaker = Literal["user", "assistant"]


class Turn(NamedTuple):
    """What one speaker says in one row.

    ``order``: turns of a conversation are sorted by it. ``problem``: why the turn can't
    be used; empty if it can.
    """

    origin: Origin
    conversation: str
    order: int
    speaker: Speaker
    text: str
    problem: str = ""


class Hole(NamedTuple):
    """Where something is missing in a conversation, because of the row at ``line``."""

    order: int
    line: int


@dataclass
class Conversation:
    """The turns of one conversation, in the order of the file, and its holes."""

    key: str
    origin: Origin
    last: int
    """The line of its latest row."""
    entries: list[Turn | Hole] = field(default_factory=list)
    orders: dict[int, int] = field(default_factory=dict)
    """The line of each turn that can be used, by its order."""

    def add(self, turn: Turn) -> BadRow | None:
        """Take the turn, or leave a hole where it should be."""
        problem = turn.problem
        if not problem and turn.order in self.orders:
            problem = (
                f"conversation {self.key!r} has the turn {turn.order} on line "
                f"{self.orders[turn.order]} too; number its turns, or set "
                "dataset.turn_column"
            )
        self.last = turn.origin.line
        if problem:
            self.entries.append(Hole(turn.order, turn.origin.line))
            return BadRow(turn.origin, problem)
        self.orders[turn.order] = turn.origin.line
        self.entries.append(turn)
        return None


@dataclass
class Batch:
    """Conversations whose rows may stand between each other's, and what is no turn."""

    conversations: list[Conversation] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)


def batches(
    rows: Iterable[Turn | BadRow], *, interleaved: bool, numbered: bool
) -> Iterator[Batch]:
    """The conversations of a file: one a batch, or with ``interleaved`` all in one.

    A `BadRow` among ``rows`` is one whose conversation isn't known. It leaves a hole in
    every conversation that it may belong to: those that began before it and go on
    behind it, and the one that begins right behind it. Where turns are ``numbered``
    nobody knows the place of the hole, so it is put in front.
    """
    batch = Batch()
    open_: dict[str, Conversation] = {}
    ended: dict[str, int] = {}  # without interleaved: the last line of a conversation
    lost = 0  # the line of the latest row whose conversation isn't known
    just_lost = False
    for row in rows:
        if isinstance(row, BadRow):
            batch.bad.append(row)
            lost, just_lost = row.origin.line, True
            continue
        found = open_.get(row.conversation)
        if found is None:
            if open_ and not interleaved:
                yield batch
                ended.update((key, one.last) for key, one in open_.items())
                batch, open_ = Batch(), {}
            found = Conversation(row.conversation, row.origin, row.origin.line)
            open_[row.conversation] = found
            batch.conversations.append(found)
            if just_lost:
                found.entries.append(Hole(-1, lost))
            if row.conversation in ended:
                row = row._replace(
                    order=-1,
                    problem=f"conversation {row.conversation!r} goes on here, but rows "
                    f"of others stand between this and line {ended[row.conversation]}; "
                    "sort the file, or set dataset.interleaved = true",
                )
        elif found.last < lost:
            found.entries.append(Hole(-1 if numbered else lost, lost))
        just_lost = False
        problem = found.add(row)
        if problem:
            batch.bad.append(problem)
    yield batch
