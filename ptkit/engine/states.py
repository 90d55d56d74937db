"""What a head sees of a forward pass: the hidden states of its rows, however they were laid out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from ptkit.engine.loss import token_loss
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
        counts = torch.tensor([len(positions[row]) for row in every])
        wanted = torch.tensor([p for row in every for p in positions[row]], dtype=torch.long)
        starts, lengths = torch.tensor(self._starts), torch.tensor(self.lengths)
        beyond = (wanted < 0) | (wanted >= lengths.repeat_interleave(counts))
        if bool(beyond.any()):
            place = int(beyond.nonzero()[0])
            row = int(torch.arange(len(self)).repeat_interleave(counts)[place])
            raise IndexError(
                f"position {int(wanted[place])} of row {row}, which has {self.lengths[row]} tokens"
            )
        return self.hidden[(starts.repeat_interleave(counts) + wanted).to(self.device)]

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
        lengths = torch.tensor(self.lengths, device=self.device)
        mask = torch.arange(max(self.lengths), device=self.device) < lengths[:, None]
        states = self.hidden.new_zeros(*mask.shape, self.hidden.shape[-1])
        states = states.masked_scatter(mask[..., None], self.hidden)
        return states, mask

    def token_loss(self, labels: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The LM head's loss on token labels: [n] nats a labelled token, and [n] the row of each.

        ``labels``: one a token, `IGNORE` where there is none. On a causal model the state before a
        token predicts it, so a row's first token can't be labelled.
        """
        if self._lm_head is None:
            raise ValueError("this backbone has no LM head, so no token loss")
        shift = 1 if self.causal else 0
        index: list[int] = []
        targets: list[int] = []
        owners: list[int] = []
        for row, (start, length) in enumerate(zip(self._starts, self.lengths, strict=True)):
            if len(labels[row]) != length:
                raise ValueError(f"row {row} has {length} tokens, but {len(labels[row])} labels")
            for position, label in enumerate(labels[row]):
                if label == IGNORE:
                    continue
                if position < shift:
                    raise ValueError(
                        f"row {row}: nothing comes before its first token to predict it"
                    )
                index.append(start + position - shift)
                targets.append(label)
                owners.append(row)
        device = self.device
        hidden = self.hidden[torch.tensor(index, dtype=torch.long, device=device)]
        target = torch.tensor(targets, dtype=torch.long, device=device)
        losses = token_loss(hidden, target, self._lm_head)
        return losses, torch.tensor(owners, dtype=torch.long, device=device)
