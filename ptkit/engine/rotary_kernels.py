"""Rotary embeddings (Su et al., 2021, arXiv:2104.09864) of queries and keys that lie beside each
other, as Triton kernels. Backward, the kernel that makes the gradient of the queries turns it."""

from __future__ import annotations

import triton
import triton.language as tl

from ptkit.engine.kernels import store, tile, turned

TOKENS = 32  # that a program turns, of one head


@triton.jit
def turn(
    X, OUT, COS, SIN, tokens, pairs, turning, x_t, x_n, o_t, o_n, t_t,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """OUT [t, n, d]: X with its first ``turning`` heads turned, the others copied."""
    rows, head = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1)
    x = tile(X + head * x_n, rows, x_t, tokens, D, BD).to(tl.float32)
    if head < turning:
        x = turned(x, COS, SIN, rows, t_t, tokens, pairs, 1.0, BT, BD)
    store(OUT + head * o_n, rows, o_t, tokens, x, D, BD)


@triton.jit
def turn_back(
    OUT, D_K, D_V, STEM, COS, SIN, tokens, pairs, groups, chunks, stem, o_t, o_n, t_t, s_2, s_g,
    D: tl.constexpr, BD: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values before `turn`, into OUT [t, 2g, d], from those after it,
    which are in parts, [chunks, t, g, d]; for the first tokens in STEM, [2, g, stem, d], too."""
    rows, head = tl.program_id(0) * BT + tl.arange(0, BT), tl.program_id(1)
    parts, group, more = D_K, head, STEM
    if head >= groups:
        parts, group, more = D_V, head - groups, STEM + s_2
    x = tl.zeros([BT, BD], tl.float32)
    for chunk in range(chunks):
        part = parts + (chunk * tokens * groups + group) * D
        x += tile(part, rows, groups * D, tokens, D, BD).to(tl.float32)
    x += tile(more + group * s_g, rows, D, stem, D, BD)
    if head < groups:
        x = turned(x, COS, SIN, rows, t_t, tokens, pairs, -1.0, BT, BD)
    store(OUT + head * o_n, rows, o_t, tokens, x, D, BD)
