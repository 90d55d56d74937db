"""Attention of one new token a row over the slots of a cache, as a Triton kernel.

A program takes a row's queries of one group through the prefix, which all rows read in place, and
through its slot as far as the row has got; room behind that costs nothing. As in
`ptkit.engine.kernels`, scores and sums are float32 and the softmax is online.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ptkit.engine.attention import KeyValue, Scores
from ptkit.engine.kernels import (
    at_once,
    dense,
    logits_of,
    online,
    sizes_of,
    store,
    strides_of,
    tile,
)


@triton.jit
def _slots_forward(
    Q, K, V, PK, PV, OUT, POSITIONS, PREFIXES,
    scaling, softcap, window, p,
    q_b, q_n, k_b, k_g, k_s, v_b, v_g, v_s, pk_a, pk_g, pk_p, pv_a, pv_g, pv_p, o_b, o_n,
    RATIO: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    end = tl.load(POSITIONS + row).to(tl.int32) + 1
    prefix = tl.load(PREFIXES + row)
    heads = tl.arange(0, BM)
    q = tile(Q + row * q_b + group * RATIO * q_n, heads, q_n, RATIO, D, BD)
    most = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, BD], tl.float32)
    if prefix >= 0:
        pk, pv = PK + prefix * pk_a + group * pk_g, PV + prefix * pv_a + group * pv_g
        for at in range(0, p, BN):
            keys = at + tl.arange(0, BN)
            k = tile(pk, keys, pk_p, p, D, BD)
            v = tile(pv, keys, pv_p, p, D, BD)
            logits = logits_of(q, k, scaling, softcap, CAPPED, PRECISION)
            seen = (keys[None, :] < p) & (heads[:, None] < BM)
            most, total, out = online(most, total, out, logits, seen, v, PRECISION)
    first = 0
    if WINDOWED:
        first = tl.maximum(0, end - window)
    own_k, own_v = K + row * k_b + group * k_g, V + row * v_b + group * v_g
    for at in range(first, end, BN):
        keys = at + tl.arange(0, BN)
        k = tile(own_k, keys, k_s, end, D, BD)
        v = tile(own_v, keys, v_s, end, D, BD)
        logits = logits_of(q, k, scaling, softcap, CAPPED, PRECISION)
        seen = (keys[None, :] < end) & (heads[:, None] < BM)
        most, total, out = online(most, total, out, logits, seen, v, PRECISION)
    out = out / total[:, None]
    store(OUT + row * o_b + group * RATIO * o_n, heads, o_n, RATIO, out, D, BD)


def slot_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: KeyValue | None,
    positions: Tensor,
    prefix_index: Tensor,
    scores: Scores,
) -> Tensor:
    """[b, n, d] attended values of ``query`` [b, n, d].

    ``keys`` and ``values``, [slots, g, room, d]: the first b slots are those of the rows, and hold
    the new tokens' own, at ``positions`` [b]. ``prefix_index`` [b]: negative for none.
    """
    if prefix is None:
        none = keys.new_empty(1, keys.shape[1], 0, keys.shape[3])
        prefix = none, none
        prefix_index = prefix_index.clamp_max(-1)
    query, keys, values = map(dense, (query, keys, values))
    prefix_key, prefix_value = map(dense, prefix)
    rows, heads, _ = query.shape
    groups = keys.shape[1]
    out = query.new_empty(query.shape)
    window, softcap = scores.window or 0, scores.softcap or 0.0
    sizes = sizes_of(query, softcap)
    sizes["BM"] = triton.next_power_of_2(max(16, heads // groups))  # what a tensor core takes
    _slots_forward[(rows, groups)](
        query, keys, values, prefix_key, prefix_value, out, positions, prefix_index,
        scores.scaling, softcap, window, prefix_key.shape[2],
        *strides_of(query, keys, values, prefix_key, prefix_value, out),
        RATIO=heads // groups, BN=at_once(query),
        WINDOWED=window != 0, **sizes,
    )  # fmt: skip
    return out
