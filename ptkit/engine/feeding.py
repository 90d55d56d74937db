"""The micro-batches of one step after another, made ahead of the device that works on them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptkit.batching import micro_batches
from ptkit.engine.rowdropout import identities
from ptkit.engine.stem import Laid, begin_with, share
from ptkit.records import EncodedRow
from ptkit.rowstore import RowStore


class Rows(list[EncodedRow]):
    """The rows of a micro-batch, and their numbers one behind another, each made once: t tokens.

    ``pinned``: whether a GPU may copy them from where they are.
    """

    def __init__(self, rows: Iterable[EncodedRow], *, pinned: bool = False) -> None:
        super().__init__(rows)
        self._pinned = pinned
        self._laid: dict[tuple[int, ...], Laid] = {}

    @classmethod
    def of(cls, rows: Sequence[EncodedRow]) -> Rows:
        """``rows`` themselves, if they are `Rows`."""
        return rows if isinstance(rows, Rows) else cls(rows)

    @cached_property
    def lengths(self) -> list[int]:
        return [len(row.tokens) for row in self]

    @cached_property
    def ids(self) -> Tensor:
        """[t]: token ids."""
        return self._flat(row.tokens for row in self)

    @cached_property
    def positions(self) -> Tensor:
        """[t]: 0, 1, 2, … in each row."""
        return self._flat(range(length) for length in self.lengths)

    @cached_property
    def token_types(self) -> Tensor | None:
        """[t]; 0 for rows without any, None if no row has some."""
        if not any(row.row.token_types for row in self):
            return None
        return self._flat(row.row.token_types or (0,) * len(row.tokens) for row in self)

    @cached_property
    def identities(self) -> Tensor:
        """[t]: as `ptkit.engine.rowdropout.identities` makes them, on the host."""
        return identities(self, self.lengths, self.positions)

    def _flat(self, parts: Iterable[Iterable[int]]) -> Tensor:
        values = np.fromiter(chain.from_iterable(parts), np.int64, sum(self.lengths))
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._pinned else tensor

    def laid(self, stem: tuple[int, ...] = ()) -> Laid:
        """As a pass gets them: what all begin with once, if that is ``stem``."""
        if stem not in self._laid:
            if begin_with(self, stem):
                made = share(self, stem)
                self._laid[stem] = made.pinned() if self._pinned else made
            else:
                self._laid[stem] = Laid(self.lengths, self.ids, self.positions)
        return self._laid[stem]

    def prepare(self, *, stem: tuple[int, ...] = (), identities: bool = False) -> None:
        """Make all of it now, as `laid` for ``stem``; ``identities`` only if they are needed."""
        _ = self.laid(stem), self.token_types
        if identities:
            _ = self.identities


class Batch(NamedTuple):
    """A micro-batch: its rows, the record weight of each of its loss groups, and its tokens as the
    budget counts them, padding included."""

    rows: Rows
    weights: Tensor
    tokens: int


def split(
    store: RowStore,
    groups: Sequence[Sequence[int]],
    budget: int,
    layout: Literal["packed", "padded"],
    *,
    pinned: bool = False,
) -> Iterator[Batch]:
    """``groups`` in order as micro-batches of up to ``budget`` tokens, made one by one."""
    measure = sum if layout == "packed" else max
    lengths = [measure(store.length(i) for i in group) for group in groups]
    for batch in micro_batches(groups, lengths, budget, layout):
        rows = Rows((store[i] for group in batch for i in groups[group]), pinned=pinned)
        weights = torch.tensor([store.weight(groups[group][0]) for group in batch])
        own = [lengths[group] for group in batch]
        tokens = sum(own) if layout == "packed" else len(rows) * max(own)
        yield Batch(rows, weights.pin_memory() if pinned else weights, tokens)


@dataclass(frozen=True)
class StepData:
    """What an optimiser step works on; its micro-batches were made for ``budget``."""

    step: int
    groups: list[list[int]]
    budget: int
    batches: list[Batch]


class Feeder:
    """Gives the data of step ``first`` up to, not including, ``last``, in order.

    A thread makes it up to two steps ahead, so that a GPU never waits for it; on a CPU, which would
    have to share its cores, ``ahead`` is False and each step's is made when it is asked for. What
    ``make`` raises is raised by `next`. Leaving the with block ends the thread.
    """

    AHEAD = 2  # steps

    def __init__(
        self, make: Callable[[int], StepData], first: int, last: int, *, ahead: bool
    ) -> None:
        self._make = make
        self._steps = range(first, last)
        self._asked = iter(self._steps)
        self._ahead = ahead
        self._ready: queue.Queue[StepData | BaseException] = queue.Queue(self.AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ptkit-feeder", daemon=True)
        self.waited = 0.0
        """Seconds that the last `next` took."""

    def __enter__(self) -> Feeder:
        if self._ahead:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        if not self._ahead:
            return
        while not self._ready.empty():  # makes room for what the thread is about to put
            self._ready.get_nowait()
        self._thread.join()

    def _work(self) -> None:
        for step in self._steps:
            try:
                made: StepData | BaseException = self._make(step)
            except BaseException as error:  # whatever it is, the loop is to raise it
                made = error
            self._ready.put(made)
            if self._stopped.is_set() or isinstance(made, BaseException):
                return

    def next(self) -> StepData:
        started = time.perf_counter()
        step = next(self._asked)
        made = self._ready.get() if self._ahead else self._make(step)
        if isinstance(made, BaseException):
            raise made
        self.waited = time.perf_counter() - started
        return made
