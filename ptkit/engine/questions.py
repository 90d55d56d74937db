"""What a head asks a model to answer, and answers whose lengths are known before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ptkit.components import TaskHead
from ptkit.engine.model import Model
from ptkit.errors import PtkitError
from ptkit.isolation import blamed
from ptkit.records import EncodedRow, Sampling

NO_TOKEN = -1


@dataclass(frozen=True)
class Questions:
    """Prompts, and how many tokens the answer of each is to have."""

    prompts: list[list[int]]
    lengths: list[int]

    def first(self, count: int, most: int) -> Questions:
        """So many of them, with answers of ``most`` tokens at most."""
        return Questions(self.prompts[:count], [min(n, most) for n in self.lengths[:count]])


class Asked:
    """Stands in for a `Model` and keeps the prompts that a head has answered."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, **_: Any
    ) -> list[list[int]]:
        self.prompts += map(list, prompts)
        return [[] for _ in prompts]


@contextmanager
def endless(model: Model) -> Iterator[None]:
    """No token ends an answer inside a with block."""
    before = model.eos_id, model.stop_ids
    model.eos_id, model.stop_ids = NO_TOKEN, ()
    try:
        yield
    finally:
        model.eos_id, model.stop_ids = before


def questions_of(head: TaskHead, rows: Sequence[EncodedRow]) -> Questions:
    """What ``head`` has a model answer of ``rows``, each with as many tokens as the row has behind
    its prompt, or as the head allows where there are none.

    Raises `PtkitError` for a head that doesn't generate one answer a row.
    """
    asked, limit = Asked(), head.limits().answer
    if limit:
        with blamed(head, "predict()"):
            head.predict(asked, None, rows)  # type: ignore[arg-type]
    if len(asked.prompts) != len(rows):
        raise PtkitError(
            f"--generate: task.kind {head.name!r} generates no answers; leave the option out"
        )
    behind = [len(row.tokens) - len(p) for row, p in zip(rows, asked.prompts, strict=True)]
    return Questions(asked.prompts, [min(n, limit) if n > 0 else limit for n in behind])
