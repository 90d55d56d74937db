"""What a head sees of a forward pass: the hidden states of its rows, however they were laid out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptkit.engine.loss import token_loss
from ptkit.engine.transfer import to_device
from ptkit.records import IGNORE


class States:
    """Hidden states [t, h] of b rows, one row after another.

    ``lengths`` are the rows' token counts. Don't change the tensors in place.
    """

    def __init__(
        self, hidden: Tensor, lengths: Sequence[int], lm_head: nn.Module | None, *, causal: bool
    ) -> None:
        self.hidden = hidden
        self.lengths = tuple(lengths)
        self.causal = causal
        self._lm_head = lm_head
        self._starts = [0, *accumulate(self.lengths)][:-1]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def at(self, positions: Sequence[Sequence[int]]) -> Tensor:
        """[n, h]: the states at the given positions of each row, row after row.

        Example: ``at([[0], [1, 2]])`` gives three states: row 0's first, row 1's second and third.
        """
        every = range(len(self))
        counts = [len(positions[row]) for row in every]
        wanted = np.array([p for row in every for p in positions[row]], dtype=np.int64)
        owner = np.repeat(np.arange(len(self)), counts)
        starts, lengths = np.array(self._starts)[owner], np.array(self.lengths)[owner]
        beyond = np.flatnonzero((wanted < 0) | (wanted >= lengths))
        if len(beyond):
            row = owner[beyond[0]]
            raise IndexError(
                f"position {wanted[beyond[0]]} of row {row}, which has {self.lengths[row]} tokens"
            )
        return self.hidden[to_device(torch.from_numpy(starts + wanted), self.device)]

    @property
    def first(self) -> Tensor:
        """[b, h]: each row's first state (CLS on encoders)."""
        return self.at([[0]] * len(self))

    @property
    def last(self) -> Tensor:
        """[b, h]: each row's last state (what a causal model pools)."""
        return self.at([[length - 1] for length in self.lengths])

    @cached_property
    def mean(self) -> Tensor:
        """[b, h]: the mean over each row's tokens."""
        return torch.stack([row.mean(0) for row in self.hidden.split(self.lengths)])

    def padded(self) -> tuple[Tensor, Tensor]:
        """[b, s, h] states, zero behind each row's end, and [b, s] of bool, True on real tokens."""
        longest = max(self.lengths)
        real = np.arange(longest) < np.array(self.lengths)[:, None]
        place = to_device(torch.from_numpy(np.flatnonzero(real)), self.device)  # of each token
        states = self.hidden.new_zeros(len(self) * longest, self.hidden.shape[-1])
        states = states.index_copy(0, place, self.hidden)
        return states.view(len(self), longest, -1), to_device(torch.from_numpy(real), self.device)

    def token_loss(self, labels: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The LM head's loss on token labels: [n] nats a labelled token, and [n] the row of each.

        ``labels``: one a token, `IGNORE` where there is none. On a causal model the state before a
        token predicts it, so a row's first token can't be labelled.
        """
        if self._lm_head is None:
            raise ValueError("this backbone has no LM head, so no token loss")
        shift = 1 if self.causal else 0
        index: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        targets, owners = list(index), list(index)
        for row, (start, length) in enumerate(zip(self._starts, self.lengths, strict=True)):
            if len(labels[row]) != length:
                raise ValueError(f"row {row} has {length} tokens, but {len(labels[row])} labels")
            every = np.array(labels[row], dtype=np.int64)
            places = np.flatnonzero(every != IGNORE)
            if len(places) and places[0] < shift:
                raise ValueError(f"row {row}: nothing comes before its first token to predict it")
            index.append(start + places - shift)
            targets.append(every[places])
            owners.append(np.full(len(places), row))
        found = np.stack([np.concatenate(values) for values in (index, targets, owners)])
        where, target, owner = to_device(torch.from_numpy(found), self.device)
        # no token is picked twice, so that adding up in any order gives the same gradient
        losses = token_loss(self.hidden.index_select(0, where), target, self._lm_head)
        return losses, owner
