"""The prefix of P-Tuning v2: trainable keys and values for every layer, flat or through a
projection.

Parameter names and layout are those of the published ChatGLM2 prefix encoder
(https://github.com/THUDM/ChatGLM2-6B, ``PrefixEncoder``): ``embedding.weight`` of [p, 2·l·g·d],
read as [p, 2l, g, d] with the key of layer i at 2i and its value at 2i+1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ptkit.engine.attention import KeyValue, by_layer
from ptkit.records import Geometry


class PrefixEncoder(nn.Module):
    """Gives each layer's prefix keys and values, [1, g, p, d] each, in float32.

    ``projection_hidden_size`` None: a flat prefix, l·2·g·d numbers a virtual token. Else an
    embedding followed by Linear, tanh, Linear.
    """

    def __init__(
        self,
        geometry: Geometry,
        length: int,
        *,
        projection_hidden_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.length = length
        self.projection_hidden_size = projection_hidden_size
        self.dropout = dropout
        width = geometry.prefix_parameters(1)
        self.embedding = nn.Embedding(length, width)
        self.trans: nn.Sequential | None = None
        if projection_hidden_size is not None:
            self.trans = nn.Sequential(
                nn.Linear(width, projection_hidden_size),
                nn.Tanh(),
                nn.Linear(projection_hidden_size, width),
            )

    @torch.no_grad()
    def initialize(self, *, std: float, seed: int) -> None:
        """N(0, std) from ``seed`` for the embedding; torch's default for the linears; std 0:
        zeros."""
        generator = torch.Generator().manual_seed(seed)
        self.embedding.weight.normal_(0, 1, generator=generator).mul_(std)
        for linear in self.modules():
            if not isinstance(linear, nn.Linear):
                continue
            bound = linear.in_features**-0.5  # as nn.Linear.reset_parameters
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def initialize_from(self, layers: Sequence[KeyValue]) -> None:
        """Start a flat prefix from given keys and values, [1, g, p, d] a layer."""
        stacked = torch.stack([t[0] for pair in layers for t in pair])  # [2l, g, p, d]
        self.embedding.weight.copy_(stacked.permute(2, 0, 1, 3).flatten(1))

    def flat(self) -> Tensor:
        """[p, 2·l·g·d]: all keys and values, a projection worked out."""
        flat: Tensor = self.embedding.weight
        if self.trans is not None:
            flat = self.trans(flat)
        return flat

    def stacked(self, generator: torch.Generator | None = None) -> Tensor:
        """[2l, 1, g, p, d]: the keys of layer i at 2i, its values at 2i + 1; ``generator`` draws
        the dropout, None leaves it out."""
        flat = self.flat()
        if generator is not None and self.dropout > 0:
            keep = torch.rand(flat.shape, device=flat.device, generator=generator) >= self.dropout
            flat = flat * keep / (1 - self.dropout)
        shape = self.geometry
        split = flat.view(self.length, 2 * shape.layers, shape.kv_groups, shape.head_size)
        return split.permute(1, 2, 0, 3)[:, None]

    def forward(self, generator: torch.Generator | None = None) -> list[KeyValue]:
        """`stacked` by layer."""
        return by_layer(self.stacked(generator))
