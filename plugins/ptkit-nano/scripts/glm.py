"""ChatGLM2's architecture for pretraining, under the published tensor names.

Written out so that pretraining compiles to few kernels; ``check_prefix.py`` reads the result into
``GlmForCausalLM`` of transformers, which computes the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes: v vocabulary, h hidden, d head, g key/value groups."""

    padded_vocab_size: int
    num_layers: int = 6
    hidden_size: int = 256
    num_attention_heads: int = 4
    kv_channels: int = 64
    multi_query_group_num: int = 2
    ffn_hidden_size: int = 672
    layernorm_epsilon: float = 1e-5


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.query = shape.num_attention_heads * shape.kv_channels
        self.group = shape.multi_query_group_num * shape.kv_channels
        self.query_key_value = nn.Linear(shape.hidden_size, self.query + 2 * self.group)
        self.dense = nn.Linear(self.query, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        b, s, _ = x.shape
        sizes = (self.query, self.group, self.group)
        q, k, v = self.query_key_value(x).split(sizes, dim=-1)
        q, k, v = (t.view(b, s, -1, self.shape.kv_channels).transpose(1, 2) for t in (q, k, v))
        q, k = rotate(q, rotary), rotate(k, rotary)
        repeats = self.shape.num_attention_heads // self.shape.multi_query_group_num
        k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.dense(out.transpose(1, 2).reshape(b, s, self.query))
        return projected


class Mlp(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(shape.hidden_size, 2 * shape.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(shape.ffn_hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, dim=-1)
        projected: Tensor = self.dense_4h_to_h(nn.functional.silu(gate) * up)
        return projected


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.layernorm_epsilon)
        self.self_attention = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.layernorm_epsilon)
        self.mlp = Mlp(shape)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x), rotary, mask)
        added: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + added


class Encoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.final_layernorm = nn.RMSNorm(shape.hidden_size, eps=shape.layernorm_epsilon)


class Embedding(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.padded_vocab_size, shape.hidden_size)


class Transformer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = Embedding(shape)
        self.encoder = Encoder(shape)
        self.output_layer = nn.Linear(shape.hidden_size, shape.padded_vocab_size, bias=False)


class Glm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = Transformer(shape)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                last = name.endswith(("dense.weight", "dense_4h_to_h.weight"))
                scale = 1 / math.sqrt(2 * shape.num_layers) if last else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """``ids`` and ``positions`` [b, s], ``mask`` bool [b, 1, s, s] -> logits [b, s, v]."""
        rotary = rotary_table(positions, self.shape.kv_channels // 2)
        x = self.transformer.embedding.word_embeddings(ids)
        for layer in self.transformer.encoder.layers:
            x = layer(x, rotary, mask)
        x = self.transformer.encoder.final_layernorm(x)
        logits: Tensor = self.transformer.output_layer(x)
        return logits


def rotary_table(positions: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    steps = torch.arange(0, channels, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None, :, None].float() * 10000.0 ** (-steps / channels)
    return angles.cos(), angles.sin()  # [b, 1, s, channels / 2]


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn interleaved pairs of the first half of the channels; the second half passes."""
    cos, sin = rotary
    turned, passed = x.chunk(2, dim=-1)
    even, odd = turned.float().unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return torch.cat((pairs.flatten(-2).to(x.dtype), passed), dim=-1)
