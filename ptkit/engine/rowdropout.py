"""Dropout inside the frozen model that follows from the seed, the step and the row alone.

A row loses the same numbers however its step is split into micro-batches, packed or padded, in a
layer that is computed again, after a resume, in any process and on any device. So nothing is drawn:
whether a number is dropped is a hash of the seed, the step, the row's record and part, the token's
position in the row, the layer's `nn.Dropout` and the column. All that differs between rows and
steps is in a number a token, made on the host; the rest is a few integer operations a number.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptkit.records import EncodedRow

_COLUMNS = 2**20  # that a module can have before they are those of the next one
_TOKENS_AT_ONCE = 128  # on a CPU, so that what is hashed stays in its cache: 3 times as fast
_USES = "ptkit_dropouts"


def _mixed64(values: Any) -> Any:
    """uint64 to uint64, one to one: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def identities(rows: Sequence[EncodedRow], lengths: Sequence[int], positions: Tensor) -> Tensor:
    """[t] of int64: a number for each token of ``rows``, by record, part and position."""
    records = np.array([row.record for row in rows], np.uint64)
    parts = np.array([row.part for row in rows], np.uint64)
    own = _mixed64(_mixed64(records + np.uint64(1)) ^ parts)
    found = _mixed64(np.repeat(own, lengths) + positions.numpy().astype(np.uint64))
    return torch.from_numpy(found.view(np.int64))


def step_keys(identities: Tensor, seed: int, step: int) -> Tensor:
    """[t] of int64 within the range of int32: what a token's dropout hashes in this step."""
    digest = hashlib.sha256(f"backbone dropout:{seed}:{step}".encode()).digest()
    salt = np.frombuffer(digest[:8], "<u8")
    mixed = _mixed64(identities.numpy().view(np.uint64) ^ salt)
    return torch.from_numpy((mixed >> np.uint64(32)).astype(np.uint32).view(np.int32)).long()


def _columns(count: int, salt: Tensor) -> Tensor:
    """[count] of int32: a hash a column, by the finaliser of MurmurHash3 (Appleby)."""
    x = torch.arange(count, dtype=torch.int32, device=salt.device) + salt
    x = (x ^ ((x >> 16) & 0xFFFF)) * (0x85EBCA6B - 2**32)  # int32 shifts its sign in
    x = (x ^ ((x >> 13) & 0x7FFFF)) * (0xC2B2AE35 - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def _kept(keys: Tensor, columns: Tensor, threshold: int) -> Tensor:
    """[…, h] of bool from keys […] and columns [h], both hashed before, so that one more round of
    multiplying does (the constants of Wellons' lowbias32)."""
    x = keys[..., None] ^ columns
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B - 2**32
    return x >= threshold


def kept(keys: Tensor, salt: Tensor, count: int, share: float) -> Tensor:
    """[…, count] of bool: which numbers of tokens with ``keys`` […] of int32 stay.

    ``salt``: of int32, tells modules apart. A number is dropped if its hash is among the lowest
    ``share`` of all 2³² ones.
    """
    threshold = min(round(share * 2**32) - 2**31, 2**31 - 1)
    columns = _columns(count, salt)
    if keys.device.type != "cpu" or keys.numel() <= _TOKENS_AT_ONCE:
        return _kept(keys, columns, threshold)
    pieces = [_kept(some, columns, threshold) for some in keys.flatten().split(_TOKENS_AT_ONCE)]
    return torch.cat(pieces).view(*keys.shape, count)


class RowDropout(nn.Module):
    """What stands in a `nn.Dropout`'s place, and does nothing while ``keys`` is None.

    ``keys``: int32, the shape of the input [b, s, h] but for its last dimension.
    """

    keys: Tensor | None = None
    share: float = 0.0

    def __init__(self, p: float, salt: Tensor) -> None:
        super().__init__()
        self.p = p  # the configured one, which attention modules read in training only
        self.salt = salt

    def forward(self, values: Tensor) -> Tensor:
        if self.keys is None:
            return values
        keep = kept(self.keys, self.salt, values.shape[-1], self.share)
        return torch.where(keep, values * (1 / (1 - self.share)), 0)


def enter(layer: nn.Module) -> None:
    """Tell the dropouts that ``layer`` shares with other layers that this use of them is its own.

    Part of the layer's forward pass, so that one that is computed again does the same.
    """
    for dropout, salt in getattr(layer, _USES, ()):
        dropout.salt = salt


def _dropouts(layer: nn.Module) -> Iterator[RowDropout]:
    return (module for module in layer.modules() if isinstance(module, RowDropout))


class RowDropouts:
    """All of a body's dropouts, replaced by `RowDropout`.

    ``layers``: the repeated ones; those that share a module (ALBERT's) get masks of their own.
    """

    def __init__(self, body: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
        places = [
            (parent, name, child)
            for parent in body.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.Dropout)
        ]
        self._made = 0
        self._device = device
        self.modules: list[RowDropout] = []
        for parent, name, child in places:
            made = RowDropout(child.p, self._salt())
            setattr(parent, name, made)
            self.modules.append(made)
        inside = [(layer, list(_dropouts(layer))) for layer in layers]
        uses = Counter(module for _, own in inside for module in own)
        for layer, own in inside:
            shared = [(module, self._salt()) for module in own if uses[module] > 1]
            if shared:
                setattr(layer, _USES, shared)

    def _salt(self) -> Tensor:
        self._made += 1
        return torch.tensor(self._made * _COLUMNS, dtype=torch.int32, device=self._device)

    def set_keys(self, keys: Tensor | None, share: float = 0.0) -> None:
        """Drop ``share`` from now on by ``keys`` [b, s]; None: nothing."""
        if keys is not None:
            keys = keys.to(torch.int32)
        for module in self.modules:
            module.keys, module.share = keys, share
