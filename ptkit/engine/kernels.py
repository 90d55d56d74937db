"""Attention of packed rows over a shared prefix as Triton kernels, forward and backward.

Rows lie one after another, without padding and without a copy of the prefix a row; the queries of
a group share its keys and values in place. Tokens that all rows begin with, the stem, may be a row
of their own in front of the others, which see it behind their prefix and before their own keys. A
block is up to `BLOCK` queries or keys of one row; the table of blocks
(`ptkit.engine.blocks.block_table`) is all that changes from step to step, so that nothing is
compiled anew. Scores and sums are float32, the softmax is the online one of FlashAttention (Dao,
2023, arXiv:2307.08691). Sums over heads and over blocks go through partial results that are added
in a fixed order: results are the same from run to run. `ptkit.engine.packed_attention` calls them.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptkit.engine.blocks import BLOCK


@triton.jit
def tile(base, rows, stride, end, D: tl.constexpr, BD: tl.constexpr):
    columns = tl.arange(0, BD)
    inside = (rows[:, None] < end) & (columns[None, :] < D)
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store(base, rows, stride, end, values, D: tl.constexpr, BD: tl.constexpr):
    columns = tl.arange(0, BD)
    inside = (rows[:, None] < end) & (columns[None, :] < D)
    at = base + rows[:, None] * stride + columns[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def turned(x, COS, SIN, rows, t_t, tokens, pairs, sign, BT: tl.constexpr, BD: tl.constexpr):
    """Numbers 2i and 2i + 1 of each of BT rows turned by its i-th angle, for i < pairs (Su et al.,
    2021, arXiv:2104.09864); float32."""
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
def logits_of(q, k, scaling, softcap, CAPPED: tl.constexpr, PRECISION: tl.constexpr):
    """[queries, keys] in float32, softcapped."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scaling
    if CAPPED:
        logits = softcap * (2 * tl.sigmoid(2 * logits / softcap) - 1)  # c·tanh(x / c)
    return logits


@triton.jit
def _turns(prefix, p, start, stem, BN: tl.constexpr):
    """Blocks of keys that a row's prefix has, and as many more as the stem has, which rows with a
    prefix begin with."""
    of_prefix = tl.where(prefix >= 0, tl.cdiv(p, BN), 0)
    behind = (prefix >= 0) & (start >= stem)
    return of_prefix, of_prefix + tl.where(behind, tl.cdiv(stem, BN), 0)


@triton.jit
def _keys(turn, of_prefix, shared, lo, p, stem, end, BN: tl.constexpr):
    """The keys of a turn, and where they end: of the prefix, of the stem, the row's own."""
    at = tl.where(turn < shared, (turn - of_prefix) * BN, lo + (turn - shared) * BN)
    last = tl.where(turn < shared, stem, end)
    at, last = tl.where(turn < of_prefix, turn * BN, at), tl.where(turn < of_prefix, p, last)
    return at + tl.arange(0, BN), last


@triton.jit
def _either(
    prefixed, prefix, prefix_stride, own, stride, keys, last, D: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """A tile of the prefix's keys or values if ``prefixed``, else of those of tokens. One loop goes
    over both, so that the next tile is on its way from the first to the last."""
    base, step = tl.where(prefixed, prefix, own), tl.where(prefixed, prefix_stride, stride)
    return tile(base, keys, step, last, D, BD)


@triton.jit
def _seen(
    rows, keys, end, last, prefixed, between, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr
):  # fmt: skip
    """[queries, keys]: of tokens, or those of the prefix if ``prefixed``, up to ``last``.

    ``between``: tokens of other rows that lie between queries and keys.
    """
    seen = (keys[None, :] < last) & (rows[:, None] < end)
    if CAUSAL:
        seen = seen & (prefixed | (keys[None, :] <= rows[:, None]))
    if WINDOWED:
        distance = rows[:, None] - between - keys[None, :]
        seen = seen & (prefixed | ((distance < window) & (distance > -window)))
    return seen


@triton.jit
def online(most, total, out, logits, seen, v, PRECISION: tl.constexpr):
    """One more block of keys in the softmax: the greatest logit, the sum and the output so far."""
    scores = tl.where(seen, logits * 1.4426950408889634, float("-inf"))
    greatest = tl.maximum(most, tl.max(scores, 1))
    base = tl.where(greatest == float("-inf"), 0.0, greatest)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(most - base)
    total = total * shrink + tl.sum(weights, 1)
    out = out * shrink[:, None]
    out = tl.dot(weights.to(v.dtype), v, out, input_precision=PRECISION)
    return greatest, total, out


@triton.jit
def _first_key(start, first, window, WINDOWED: tl.constexpr):
    if WINDOWED:
        return tl.maximum(first, start - window + 1)
    return first


@triton.jit
def _last_key(start, end, window, BM: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    last = end
    if CAUSAL:
        last = tl.minimum(end, start + BM)
    elif WINDOWED:
        last = tl.minimum(end, start + BM + window - 1)
    return last


@triton.jit
def forward(
    Q, K, V, PK, PV, OUT, LSE, BLOCKS,
    scaling, softcap, window, tokens, p, stem,
    q_t, q_n, k_t, k_g, v_t, v_g, pk_a, pk_g, pk_p, pv_a, pv_g, pv_p,
    HEADS: tl.constexpr, RATIO: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(0), tl.program_id(1)
    group = head // RATIO
    start = tl.load(BLOCKS + 4 * block)
    end = tl.load(BLOCKS + 4 * block + 1)
    first = tl.load(BLOCKS + 4 * block + 2)
    prefix = tl.load(BLOCKS + 4 * block + 3)
    rows = start + tl.arange(0, BM)
    q = tile(Q + head * q_n, rows, q_t, end, D, BD)
    most = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, BD], tl.float32)
    lo = _first_key(start, first, window, WINDOWED)
    hi = _last_key(start, end, window, BM, CAUSAL, WINDOWED)
    of_prefix, shared = _turns(prefix, p, start, stem, BN)
    adapter = tl.maximum(prefix, 0)
    pk, pv = PK + adapter * pk_a + group * pk_g, PV + adapter * pv_a + group * pv_g
    for turn in range(shared + tl.cdiv(hi - lo, BN)):
        keys, last = _keys(turn, of_prefix, shared, lo, p, stem, end, BN)
        prefixed, between = turn < of_prefix, tl.where(turn < shared, first - stem, 0)
        k = _either(prefixed, pk, pk_p, K + group * k_g, k_t, keys, last, D, BD)
        v = _either(prefixed, pv, pv_p, V + group * v_g, v_t, keys, last, D, BD)
        logits = logits_of(q, k, scaling, softcap, CAPPED, PRECISION)
        seen = _seen(rows, keys, end, last, prefixed, between, window, CAUSAL, WINDOWED)
        most, total, out = online(most, total, out, logits, seen, v, PRECISION)
    inside = rows < end
    total = tl.where(inside, total, 1.0)
    most = tl.where(inside, most, 0.0)
    store(OUT + head * D, rows, HEADS * D, end, out / total[:, None], D, BD)
    tl.store(LSE + head * tokens + rows, most + tl.log2(total), mask=inside)


@triton.jit
def _gradient(
    q, k, v, d_out, lse, delta, seen, scaling, softcap,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[queries, keys]: softmax weights, and the loss's gradient to the scaled product q·k."""
    logits = logits_of(q, k, scaling, softcap, CAPPED, PRECISION)
    weights = tl.exp2(logits * 1.4426950408889634 - lse[:, None])
    weights = tl.where(seen, weights, 0.0)
    d_weights = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
    d_logits = weights * (d_weights - delta[:, None])
    if CAPPED:
        bent = logits / softcap
        d_logits = d_logits * (1 - bent * bent)
    return weights, d_logits


@triton.jit
def queries_backward(
    Q, K, V, PK, PV, OUT, D_OUT, LSE, DELTA, D_Q, COS, SIN, BLOCKS,
    scaling, softcap, window, tokens, p, stem, pairs,
    q_t, q_n, k_t, k_g, v_t, v_g, pk_a, pk_g, pk_p, pv_a, pv_g, pv_p, dq_t, dq_n, t_t,
    HEADS: tl.constexpr, RATIO: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr, TURNED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries, and that of what was turned to make them if TURNED; and DELTA, a
    query's d_out · out, for the other kernels."""
    block, head = tl.program_id(0), tl.program_id(1)
    group = head // RATIO
    start = tl.load(BLOCKS + 4 * block)
    end = tl.load(BLOCKS + 4 * block + 1)
    first = tl.load(BLOCKS + 4 * block + 2)
    prefix = tl.load(BLOCKS + 4 * block + 3)
    rows = start + tl.arange(0, BM)
    inside = rows < end
    q = tile(Q + head * q_n, rows, q_t, end, D, BD)
    d_out = tile(D_OUT + head * D, rows, HEADS * D, end, D, BD)
    out = tile(OUT + head * D, rows, HEADS * D, end, D, BD)
    delta = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(DELTA + head * tokens + rows, delta, mask=inside)
    lse = tl.load(LSE + head * tokens + rows, mask=inside, other=0.0)
    d_q = tl.zeros([BM, BD], tl.float32)
    lo = _first_key(start, first, window, WINDOWED)
    hi = _last_key(start, end, window, BM, CAUSAL, WINDOWED)
    of_prefix, shared = _turns(prefix, p, start, stem, BN)
    adapter = tl.maximum(prefix, 0)
    pk, pv = PK + adapter * pk_a + group * pk_g, PV + adapter * pv_a + group * pv_g
    for turn in range(shared + tl.cdiv(hi - lo, BN)):
        keys, last = _keys(turn, of_prefix, shared, lo, p, stem, end, BN)
        prefixed, between = turn < of_prefix, tl.where(turn < shared, first - stem, 0)
        k = _either(prefixed, pk, pk_p, K + group * k_g, k_t, keys, last, D, BD)
        v = _either(prefixed, pv, pv_p, V + group * v_g, v_t, keys, last, D, BD)
        seen = _seen(rows, keys, end, last, prefixed, between, window, CAUSAL, WINDOWED)
        _, d_logits = _gradient(
            q, k, v, d_out, lse, delta, seen, scaling, softcap, CAPPED, PRECISION
        )
        d_q = tl.dot(d_logits.to(k.dtype), k, d_q, input_precision=PRECISION)
    d_q = d_q * scaling
    if TURNED:
        d_q = turned(d_q, COS, SIN, rows, t_t, end, pairs, -1.0, BM, BD)
    store(D_Q + head * dq_n, rows, dq_t, end, d_q, D, BD)


@triton.jit
def keys_backward(
    Q, K, V, D_OUT, LSE, DELTA, D_K, D_V, BLOCKS,
    scaling, softcap, window, tokens,
    q_t, q_n, k_t, k_g, v_t, v_g,
    HEADS: tl.constexpr, RATIO: tl.constexpr, AT_ONCE: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What AT_ONCE heads add to the gradients of a block of keys and values, [chunks, t, g, d]."""
    block, group, chunk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    groups: tl.constexpr = HEADS // RATIO
    start = tl.load(BLOCKS + 4 * block)
    end = tl.load(BLOCKS + 4 * block + 1)
    first = tl.load(BLOCKS + 4 * block + 2)
    keys = start + tl.arange(0, BN)
    k = tile(K + group * k_g, keys, k_t, end, D, BD)
    v = tile(V + group * v_g, keys, v_t, end, D, BD)
    d_k = tl.zeros([BN, BD], tl.float32)
    d_v = tl.zeros([BN, BD], tl.float32)
    lo, hi = first, end
    if CAUSAL:
        lo = start
    elif WINDOWED:
        lo = tl.maximum(first, start - window + 1)
    if WINDOWED:
        hi = tl.minimum(end, start + BN + window - 1)
    turns = tl.cdiv(hi - lo, BM)
    for turn in range(AT_ONCE * turns):
        head = group * RATIO + chunk * AT_ONCE + turn // turns
        rows = lo + turn % turns * BM + tl.arange(0, BM)
        inside = rows < end
        q = tile(Q + head * q_n, rows, q_t, end, D, BD)
        d_out = tile(D_OUT + head * D, rows, HEADS * D, end, D, BD)
        lse = tl.load(LSE + head * tokens + rows, mask=inside, other=0.0)
        delta = tl.load(DELTA + head * tokens + rows, mask=inside, other=0.0)
        seen = _seen(rows, keys, end, end, False, 0, window, CAUSAL, WINDOWED)
        weights, d_logits = _gradient(
            q, k, v, d_out, lse, delta, seen, scaling, softcap, CAPPED, PRECISION
        )
        d_v = tl.dot(tl.trans(weights).to(q.dtype), d_out, d_v, input_precision=PRECISION)
        d_k = tl.dot(tl.trans(d_logits).to(q.dtype), q, d_k, input_precision=PRECISION)
    to = chunk * tokens * groups * D + group * D
    store(D_K + to, keys, groups * D, end, d_k * scaling, D, BD)
    store(D_V + to, keys, groups * D, end, d_v, D, BD)


@triton.jit
def prefix_backward(
    Q, K, V, PK, PV, D_OUT, LSE, DELTA, D_K, D_V, BLOCKS,
    scaling, softcap, window, tokens, p, stem, blocks, groups,
    q_t, q_n, k_t, k_g, v_t, v_g, pk_a, pk_g, pk_p, pv_a, pv_g, pv_p,
    HEADS: tl.constexpr, RATIO: tl.constexpr, SPLITS: tl.constexpr,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WINDOWED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What every SPLITS-th block of queries adds to the gradients of the prefix, and behind them of
    the stem, [splits, a, g, p + stem, d]."""
    part, split = tl.program_id(0), tl.program_id(2)
    adapter, group = tl.program_id(1) // groups, tl.program_id(1) % groups
    parts = tl.cdiv(p, BN)
    prefixed = part < parts
    keys = tl.where(prefixed, part, part - parts) * BN + tl.arange(0, BN)
    last = tl.where(prefixed, p, stem)
    pk, pv = PK + adapter * pk_a + group * pk_g, PV + adapter * pv_a + group * pv_g
    k = _either(prefixed, pk, pk_p, K + group * k_g, k_t, keys, last, D, BD)
    v = _either(prefixed, pv, pv_p, V + group * v_g, v_t, keys, last, D, BD)
    d_k = tl.zeros([BN, BD], tl.float32)
    d_v = tl.zeros([BN, BD], tl.float32)
    tail = BLOCKS + 4 * (blocks - 1)
    idle = tl.load(tail) == tl.load(tail + 1)  # of no work: it says how many come before
    busy = tl.where(idle, -1 - tl.load(tail + 3), blocks)
    for work in range(split, busy * RATIO, SPLITS):
        block = work // RATIO
        head = group * RATIO + work % RATIO
        start = tl.load(BLOCKS + 4 * block)
        end = tl.load(BLOCKS + 4 * block + 1)
        first = tl.load(BLOCKS + 4 * block + 2)
        own = tl.load(BLOCKS + 4 * block + 3) == adapter
        own = own & (prefixed | (start >= stem))
        end = tl.where(own, end, start)  # rows of another prefix are nobody's here
        rows = start + tl.arange(0, BM)
        inside = rows < end
        q = tile(Q + head * q_n, rows, q_t, end, D, BD)
        d_out = tile(D_OUT + head * D, rows, HEADS * D, end, D, BD)
        lse = tl.load(LSE + head * tokens + rows, mask=inside, other=0.0)
        delta = tl.load(DELTA + head * tokens + rows, mask=inside, other=0.0)
        seen = _seen(rows, keys, end, last, prefixed, first - stem, window, False, WINDOWED)
        weights, d_logits = _gradient(
            q, k, v, d_out, lse, delta, seen, scaling, softcap, CAPPED, PRECISION
        )
        d_v = tl.dot(tl.trans(weights).to(q.dtype), d_out, d_v, input_precision=PRECISION)
        d_k = tl.dot(tl.trans(d_logits).to(q.dtype), q, d_k, input_precision=PRECISION)
    to = (split * tl.num_programs(1) + tl.program_id(1)) * (p + stem) * D
    to += tl.where(prefixed, 0, p) * D
    store(D_K + to, keys, D, last, d_k * scaling, D, BD)
    store(D_V + to, keys, D, last, d_v, D, BD)


def sizes_of(query: Tensor, softcap: float) -> dict[str, Any]:
    """What the kernels are compiled for."""
    width, bytes_ = _width(query)
    return {
        "D": query.shape[-1],
        "BD": width,
        "BM": BLOCK,
        "CAPPED": softcap != 0,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        "num_stages": 1 if bytes_ > _MOST else 2,
        "num_warps": 8 if bytes_ > _MOST else 4,
    }


def keys_of(query: Tensor, registers: int) -> dict[str, Any]:
    """The keys that `forward` and `queries_backward` take at once. Where tiles are as large as fits
    an H100, half as many and ``registers`` at most for a thread, so that more programs share a
    multiprocessor."""
    bytes_ = _width(query)[1]
    limited = bytes_ == _MOST and torch.version.cuda is not None  # Triton's option is CUDA's
    limit = {"maxnreg": registers} if limited else {}
    return {"BN": BLOCK if bytes_ < _MOST else BLOCK // 2, **limit}


def at_once(query: Tensor) -> int:
    """How many queries or keys fit into one tile."""
    return BLOCK if _width(query)[1] <= _MOST else BLOCK // 2


_MOST = 256  # bytes of a row of a tile, of which two can be on their way while two are worked on


def _width(query: Tensor) -> tuple[int, int]:
    """Of a row of a tile: its numbers and their bytes."""
    width = triton.next_power_of_2(max(16, query.shape[-1]))
    return width, width * query.element_size()


def strides_of(*tensors: Tensor) -> list[int]:
    """The strides of all dimensions but the last, which must be 1."""
    return [stride for tensor in tensors for stride in tensor.stride()[:-1]]


def dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
