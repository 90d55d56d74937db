"""Which records a step trains on, and how its rows are split by memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from ptkit.records import Geometry
    from ptkit.rowstore import RowStore
    from ptkit.sections import TrainSettings

WEIGHTS_AT_ONCE = 2**24  # numbers of a quantised weight that are made again at once
ON_A_GPU = 8  # times as many there: 256 MiB in half precision, a whole weight of most models
LOGITS_AT_ONCE = 2**25  # numbers that the LM head's loss makes at a time; 128 MiB in float32
WITHOUT_COPIES = 4  # times as many where a kernel makes the loss, which needs no copies of them


class Order:
    """The seeded order of records: one permutation an epoch, endlessly, cut into steps.

    It has no state, so that a resumed run goes on with exactly the records that were next.
    """

    def __init__(
        self, records: int, batch_size: int, *, seed: int, epochs: float | None = None
    ) -> None:
        self.records = records
        self.batch_size = batch_size
        self.seed = seed
        self.end = None if epochs is None else max(1, round(epochs * records))
        self._permutation = lru_cache(maxsize=2)(self._permute)

    @property
    def steps(self) -> int | None:
        """Optimiser steps of all epochs; the last may be shorter than the others."""
        return None if self.end is None else math.ceil(self.end / self.batch_size)

    def _permute(self, epoch: int) -> list[int]:
        generator = np.random.default_rng([self.seed, epoch])
        order: list[int] = generator.permutation(self.records).tolist()
        return order

    def step(self, step: int) -> list[int]:
        """The records of optimiser step ``step``, counted from 0."""
        start = step * self.batch_size
        stop = start + self.batch_size
        if self.end is not None:
            stop = min(stop, self.end)
        return [
            self._permutation(place // self.records)[place % self.records]
            for place in range(start, stop)
        ]


def shared_stem(store: RowStore, geometry: Geometry, settings: TrainSettings) -> tuple[int, ...]:
    """The tokens that all rows begin with and that go through the model once for all of them: none
    if it looks both ways, or drops different numbers in each row."""
    return store.stem if geometry.causal and not settings.backbone_dropout else ()


def micro_batches(
    groups: Sequence[Sequence[int]],
    lengths: Sequence[int],
    budget: int,
    layout: Literal["packed", "padded"] = "packed",
) -> list[list[int]]:
    """``groups`` in order, put together while their tokens fit the budget; none is ever split.

    ``lengths``: the tokens of each group's rows, summed; padded rows count as long as the longest
    (then ``lengths`` holds the longest row of each group). Returns indices of groups.

    >>> micro_batches([[0], [1], [2]], [3, 3, 3], budget=6)
    [[0, 1], [2]]
    """
    batches: list[list[int]] = []
    total = rows = longest = 0
    for index, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        rows += len(group)
        longest = max(longest, length)
        total = total + length if layout == "packed" else rows * longest
        if not batches or total > budget:
            batches.append([])
            rows, longest = len(group), length
            total = length if layout == "packed" else rows * longest
        batches[-1].append(index)
    return batches
