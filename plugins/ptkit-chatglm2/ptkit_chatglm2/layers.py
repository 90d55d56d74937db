"""Modules that take the place of transformers' own in a loaded GLM: the same computation, in fewer
passes over the memory of a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ptkit import gated_mlp  # by itself: torch.compile need not follow how ptkit loads its names
from ptkit_chatglm2.attention import MergedAttention

if TYPE_CHECKING:
    from transformers import GlmForCausalLM


class MLP(nn.Module):
    """transformers' GlmMLP; its linears, quantised or not, keep their names."""

    def __init__(self, gate_up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., h] to [..., h]"""
        return gated_mlp(hidden_states, self.gate_up_proj, self.down_proj)


def use_fused(model: GlmForCausalLM) -> None:
    """Exchange the attention and the MLP of every layer for those of here."""
    for layer in model.model.layers:
        layer.self_attn = MergedAttention(layer.self_attn)
        layer.mlp = MLP(layer.mlp.gate_up_proj, layer.mlp.down_proj)
