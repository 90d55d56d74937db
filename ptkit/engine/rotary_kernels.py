"""Rotary embeddings (Su et al., 2021, arXiv:2104.09864) of queries and keys that lie beside each
other, as Triton kernels: one pass over the tensor each way."""

from __future__ import annotations

import triton
import triton.language as tl

from ptkit.engine.kernels import store, tile

TOKENS = 32  # that a program turns, of one head


@triton.jit
def _turned(x, COS, SIN, rows, t_t, tokens, pairs, sign, BT: tl.constexpr, BD: tl.constexpr):
    """Numbers 2i and 2i + 1 of each row turned by its i-th angle, for i < pairs; float32."""
    half: tl.constexpr = BD // 2
    columns = tl.arange(0, half)
    inside = (rows[:, None] < tokens) & (columns[None, :] < pairs)
    at = rows[:, None] * t_t + columns[None, :]
    cos = tl.load(COS + at, mask=inside, other=1.0).to(tl.float32)
    sin = tl.load(SIN + at, mask=inside, other=0.0).to(tl.float32) * sign
    first, second = tl.split(tl.reshape(x, (BT, half, 2)))
    both = tl.join(first * cos - second * sin, second * cos + first * sin)
    return tl.reshape(both, (BT, BD))


@triton.jit
def turn(
    X, OUT, COS, SIN, tokens, pairs, turning, x_t, x_n, o_t, o_n, t_t,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """OUT [t, n, d]: X with its first ``turning`` heads turned, the others copied."""
    rows, head = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1)
    x = tile(X + head * x_n, rows, x_t, tokens, D, BD).to(tl.float32)
    if head < turning:
        x = _turned(x, COS, SIN, rows, t_t, tokens, pairs, 1.0, BT, BD)
    store(OUT + head * o_n, rows, o_t, tokens, x, D, BD)


@triton.jit
def turn_back(
    OUT, D_K, D_V, COS, SIN, tokens, pairs, heads, groups, chunks, o_t, o_n, t_t,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """The gradient of what `turn` read, in OUT [t, n + 2g, d]. Its first n heads hold that of the
    turned queries; those of keys and values are still in parts, [chunks, t, g, d]."""
    rows, head = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1)
    x = tl.zeros([BT, BD], tl.float32)
    if head < heads:
        x += tile(OUT + head * o_n, rows, o_t, tokens, D, BD).to(tl.float32)
    else:
        parts = D_K
        group = head - heads
        if group >= groups:
            parts = D_V
            group -= groups
        for chunk in range(chunks):
            part = parts + (chunk * tokens * groups + group) * D
            x += tile(part, rows, groups * D, tokens, D, BD).to(tl.float32)
    if head < heads + groups:
        x = _turned(x, COS, SIN, rows, t_t, tokens, pairs, -1.0, BT, BD)
    store(OUT + head * o_n, rows, o_t, tokens, x, D, BD)
