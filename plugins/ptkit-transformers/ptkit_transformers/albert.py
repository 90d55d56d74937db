"""ALBERT runs one layer again and again: a wrapper each time, so that each has its own prefix."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput


class SharedLayer(GradientCheckpointingLayer):
    """One use of a group of layers; holds the prefix of that use."""

    def __init__(self, group: nn.Module) -> None:
        super().__init__()
        self.group = group

    def forward(self, hidden: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
        states: Tensor = self.group(hidden, mask, ptkit_holder=self, **kwargs)
        return states


class SeparateLayers(nn.Module):
    """ALBERT's encoder, layer after layer, as transformers' AlbertTransformer computes it."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.embedding_hidden_mapping_in = encoder.embedding_hidden_mapping_in
        groups, layers = len(encoder.albert_layer_groups), encoder.config.num_hidden_layers
        self.layers = nn.ModuleList(
            SharedLayer(encoder.albert_layer_groups[int(index / (layers / groups))])
            for index in range(layers)
        )

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutput:
        hidden = self.embedding_hidden_mapping_in(hidden)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden)


def separate_layers(body: Any) -> list[nn.Module]:
    """Give ``body`` a module for each of its layers, and return them."""
    body.encoder = SeparateLayers(body.encoder)
    body.supports_gradient_checkpointing = True  # of its layers, which are ours now
    return list(body.encoder.layers)
