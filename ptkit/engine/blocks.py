"""Packed rows as the kernels take them: in blocks, of which a table says where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptkit.engine.operators import has_triton

if TYPE_CHECKING:
    from ptkit.engine.attention import KeyValue, Merged, Scores

BLOCK = 64  # queries or keys of one row that a kernel takes at a time


def block_table(lengths: Sequence[int], prefix_of_row: Sequence[int]) -> Tensor:
    """[blocks, 4] of int32: where a block starts, its row's end, its row's start, its prefix.

    Blocks of no work may follow. They end where they start, and their prefix is −1 − the number of
    all blocks before them.

    >>> block_table([3, 65], [0, -1]).tolist()
    [[0, 3, 0, 0], [3, 68, 3, -1], [67, 68, 3, -1]]
    """
    blocks = []
    first = 0
    for length, prefix in zip(lengths, prefix_of_row, strict=True):
        end = first + length
        blocks += [(start, end, first, prefix) for start in range(first, end, BLOCK)]
        first = end
    return torch.tensor(blocks, dtype=torch.int32)


def has_kernels(device: torch.device) -> bool:
    """Whether packed rows on ``device`` go through Triton, which torch brings along on Linux."""
    return device.type == "cuda" and has_triton()


def attend_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: KeyValue | None,
    scores: Scores,
    blocks: Tensor,
    *,
    causal: bool,
    stem: int = 0,
) -> Tensor:
    """[1, n, t, d] queries of packed rows -> [1, t, n, d] attended values, by Triton kernels.

    ``stem``: the length of the first row, if all others begin with its tokens, too; then all have a
    prefix, the same.
    """
    from ptkit.engine.packed_attention import packed_attention

    # [t, n, d]; the gradient of an index would be a copy
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    prefix = prefix or _no_prefix(key, key.shape[1], key.shape[3])
    window, softcap = scores.window or 0, scores.softcap or 0.0
    out: Tensor
    out, _ = packed_attention(
        q, k, v, *prefix, blocks, scores.scaling, window, softcap, causal, stem
    )
    return out[None]


def attend_merged_blocks(
    merged: Merged,
    prefix: KeyValue | None,
    scores: Scores,
    blocks: Tensor,
    *,
    causal: bool,
    stem: int = 0,
) -> Tensor:
    """`attend_blocks` of what one linear made, its rotary embedding included."""
    from ptkit.engine.merged_attention import merged_attention

    projected, heads, groups, cos, sin = merged
    lines = projected.squeeze(0).unflatten(-1, (heads + 2 * groups, -1))
    prefix = prefix or _no_prefix(lines, groups, lines.shape[-1])
    window, softcap = scores.window or 0, scores.softcap or 0.0
    out: Tensor
    out, _, _ = merged_attention(
        lines,
        groups,
        cos[0],
        sin[0],
        *prefix,
        blocks,
        scores.scaling,
        window,
        softcap,
        causal,
        stem,
    )
    return out[None]


def _no_prefix(like: Tensor, groups: int, width: int) -> KeyValue:
    none = like.new_empty(1, groups, 0, width)
    return none, none
