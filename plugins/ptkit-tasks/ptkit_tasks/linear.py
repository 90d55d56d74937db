"""Linear heads on a pooled state: seeded layers, and dropout that does not depend on batches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

import ptkit

if TYPE_CHECKING:
    from torch import Tensor, nn

INITIALIZER_RANGE = 0.02  # standard deviation of weights, as in BERT and its kin

Pooling = Literal["auto", "first", "mean", "last"]


class PooledSettings(ptkit.Settings):
    """What all heads that score a whole row share."""

    max_tokens: int = Field(256, ge=1)
    """Longest row, specials included; a longer text is cut at its end."""
    pooling: Pooling = "auto"
    """Which state stands for the row: the first token's, the last one's, or the mean of all; auto:
    the first on encoders, the last on causal models."""
    hidden: Literal["none", "tanh"] = "tanh"
    """A trainable dense layer in front of the output, as wide as the backbone: none, or with
    tanh."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """The share of the pooled state's features that a training step leaves out."""


def pooling_of(pooling: Pooling, *, causal: bool) -> Literal["first", "mean", "last"]:
    """What "auto" stands for."""
    if pooling != "auto":
        return pooling
    return "last" if causal else "first"


def pooled(states: ptkit.States, pooling: Pooling) -> Tensor:
    """[b, h]: one state a row."""
    chosen = pooling_of(pooling, causal=states.causal)
    if chosen == "mean":
        return states.mean
    return states.first if chosen == "first" else states.last


def linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    """A linear layer in float32 whose weights follow from ``seed``; its bias is zero."""
    import torch

    layer = torch.nn.Linear(inputs, outputs, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.normal_(0, INITIALIZER_RANGE, generator=generator)
        layer.bias.zero_()
    return layer


def build(info: ptkit.HeadInfo, outputs: int, settings: PooledSettings) -> nn.ModuleDict:
    """The layer ``output``, behind ``dense`` if the settings ask for it.

    Raises `RecipeError` for the first token of a causal model, which has seen nothing of the text.
    """
    from torch import nn

    if info.causal and settings.pooling == "first":
        raise ptkit.RecipeError(
            'task.pooling = "first" takes the first token, which on a causal model has seen '
            'nothing of the text; use "last" or "mean"'
        )
    layers = {}
    if settings.hidden == "tanh":
        layers["dense"] = linear(info.hidden_size, info.hidden_size, info.seed)
    layers["output"] = linear(info.hidden_size, outputs, info.seed + len(layers))
    return nn.ModuleDict(layers)


def scores(
    module: nn.Module | None,
    states: ptkit.States,
    rows: Sequence[ptkit.EncodedRow],
    settings: PooledSettings,
) -> Tensor:
    """[b, outputs] in the module's type: dropout, and a layer, and both again behind a dense one,
    as in RoBERTa's classification head."""
    from torch import nn

    assert isinstance(module, nn.ModuleDict)
    share = settings.dropout if module.training else 0.0
    # hidden states may have fewer bits than the module
    values = pooled(states, settings.pooling).to(next(module.parameters()).dtype)
    for place, layer in enumerate(module.values()):
        if place:
            values = values.tanh()
        values = layer(dropped(values, rows, share, place))
    return values


def dropped(
    values: Tensor, rows: Sequence[ptkit.EncodedRow], share: float, place: int = 0
) -> Tensor:
    """Dropout on ``values`` [b, …], one entry a row of ``rows``.

    Which features a row loses follows from torch's seed, which the engine sets for every step, and
    from the row itself: it stays the same however a step is split into micro-batches, on whatever
    device. ``place`` tells the dropouts of a head apart.
    """
    import torch

    if share == 0:
        return values
    masks = []
    for row in rows:
        key = f"{torch.initial_seed()}:{row.record}:{row.part}:{place}"
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        masks.append(torch.rand(values.shape[1:], generator=generator) >= share)
    return values * ptkit.to_device(torch.stack(masks), values.device) / (1 - share)
