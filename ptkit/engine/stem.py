"""The tokens that all rows of a pass begin with, such as those of a prompt's template.

In a causal model a token's states depend on what comes before it alone, and that is the same in
every row: the pass gets such tokens once, as a row of their own, and all rows get their states.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptkit.records import EncodedRow


class Laid(NamedTuple):
    """Rows as a pass gets them, one behind another: t tokens, on the host.

    ``stem``: the length of the first row, whose tokens all others begin with, and which they come
    without; 0 if nothing is shared.
    """

    lengths: list[int]
    ids: Tensor
    """[t]"""
    positions: Tensor
    """[t]: 0, 1, 2, … in each row."""
    stem: int = 0
    places: Tensor | None = None
    """[2, T] for rows of T tokens in all: where the states of each token are among the t; and where
    among the T those are that come once, after the first ``stem`` of every row, one row after
    another."""

    def pinned(self) -> Laid:
        """Where a GPU may copy it from."""
        moved: dict[str, Any] = {"ids": self.ids, "positions": self.positions}
        if self.places is not None:
            moved["places"] = self.places
        return self._replace(**{name: tensor.pin_memory() for name, tensor in moved.items()})


def begin_with(rows: Sequence[EncodedRow], stem: tuple[int, ...]) -> bool:
    """Whether ``stem`` comes first in every row, and something behind it."""
    count = len(stem)
    return count > 0 and all(
        len(row.tokens) > count and tuple(row.tokens[:count]) == stem for row in rows
    )


def share(rows: Sequence[EncodedRow], stem: tuple[int, ...]) -> Laid:
    """``rows``, which `begin_with` the stem, laid behind it.

    >>> from ptkit import Row
    >>> laid = share([EncodedRow(Row((7, 8, 1)), 0), EncodedRow(Row((7, 8, 2, 3)), 1)], (7, 8))
    >>> laid.lengths, laid.ids.tolist(), laid.positions.tolist()
    ([2, 1, 2], [7, 8, 1, 2, 3], [0, 1, 2, 2, 3])
    >>> laid.places.tolist()
    [[0, 1, 2, 0, 1, 3, 4], [0, 1, 3, 4, 2, 5, 6]]
    """
    count = len(stem)
    full = np.array([len(row.tokens) for row in rows])
    starts = full.cumsum() - full
    positions = np.arange(full.sum()) - starts.repeat(full)
    own = positions >= count
    places = np.where(own, count - 1 + own.cumsum(), positions)
    once = np.concatenate(((starts[:, None] + np.arange(count)).ravel(), np.flatnonzero(own)))
    tokens = chain(stem, *(row.tokens[count:] for row in rows))
    return Laid(
        [count, *(full - count).tolist()],
        torch.from_numpy(np.fromiter(tokens, np.int64, count + int(own.sum()))),
        torch.from_numpy(np.concatenate((np.arange(count), positions[own]))),
        count,
        torch.from_numpy(np.stack((places, once))),
    )


class _Spread(torch.autograd.Function):
    """An index whose gradient is summed in float32 and in a fixed order; torch's adds in the
    states' own type, on a GPU in any order."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Tensor, stem: int) -> Tensor:
        ctx.save_for_backward(places)
        ctx.stem, ctx.tokens = stem, len(states)
        return states.index_select(0, places[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,), (gradient,) = ctx.saved_tensors, gradients
        stem, own = ctx.stem, ctx.tokens - ctx.stem
        once = places[1]
        made = gradient.new_empty(ctx.tokens, gradient.shape[1])
        torch.index_select(gradient, 0, once[len(once) - own :], out=made[stem:])
        shared = gradient.index_select(0, once[: len(once) - own]).unflatten(0, (-1, stem))
        made[:stem] = shared.float().sum(0)
        return made, None, None


def spread(states: Tensor, laid: Laid, places: Tensor) -> Tensor:
    """[T, h]: the states of all tokens of all rows, of those [t, h] that a pass gives.

    ``places``: those of ``laid``, on the device of the states.
    """
    apply: Any = _Spread.apply
    found: Tensor = apply(states, places, laid.stem)
    return found
