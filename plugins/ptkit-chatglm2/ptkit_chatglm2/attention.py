"""GLM's attention with the one linear for queries, keys and values that is published."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.glm.modeling_glm import (
    GlmAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from ptkit import merged_attention  # by itself, so that torch.compile can follow it

__all__ = ["MergedAttention", "apply_rotary_pos_emb"]  # ptkit looks for the latter beside attention


class MergedAttention(nn.Module):
    """Takes the place of a `GlmAttention`, also for programs that know nothing of ptkit."""

    is_causal = True

    def __init__(self, plain: GlmAttention) -> None:
        super().__init__()
        self.config, self.layer_idx = plain.config, plain.layer_idx
        self.head_dim, self.scaling = plain.head_dim, plain.scaling
        self.heads = plain.q_proj.out_features // self.head_dim
        self.groups = plain.k_proj.out_features // self.head_dim
        self.num_key_value_groups = self.heads // self.groups
        rows = (self.heads + 2 * self.groups) * self.head_dim
        inputs, bias = plain.q_proj.in_features, plain.q_proj.bias is not None
        self.qkv_proj = nn.Linear(inputs, rows, bias=bias)
        self.o_proj = plain.o_proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        ptkit_layout: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[b, s, h] -> [b, s, h]; the cosines and sines are [b, s, r]."""
        projected = self.qkv_proj(hidden_states)
        if ptkit_layout is None:
            attended, weights = self._plain(projected, position_embeddings, **others)
        else:
            weights = None
            attended = merged_attention(
                self, projected, *position_embeddings, heads=self.heads, groups=self.groups,
                scaling=self.scaling, ptkit_layout=ptkit_layout, **others,
            )  # fmt: skip
        return self.o_proj(attended.flatten(2)), weights

    def _plain(
        self,
        projected: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As transformers has it: [b, s, n, d]."""
        lines = projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = lines.split((self.heads, self.groups, self.groups), dim=1)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Any = AttentionInterface().get(
            self.config._attn_implementation, eager_attention_forward
        )
        attended: tuple[Tensor, Tensor | None] = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, **others
        )
        return attended
