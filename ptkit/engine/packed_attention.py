"""Attention of packed rows over a shared prefix as operators of torch's, with their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ptkit.engine.blocks import BLOCK
from ptkit.engine.kernels import (
    at_once,
    dense,
    forward,
    keys_backward,
    keys_of,
    prefix_backward,
    queries_backward,
    sizes_of,
    strides_of,
)
from ptkit.engine.operators import register, register_gradient

PROGRAMS = 512  # that keep a GPU busy; work on fewer blocks is split over heads
SPLITS = 64  # of the queries, when the gradients of the prefix are summed


class Form(NamedTuple):
    """Who sees whom, and how: ``blocks`` as `block_table` makes it; ``window``, ``softcap``: 0 for
    none. ``stem``: the length of the first row, if all others with a prefix begin with its tokens;
    else 0."""

    blocks: Tensor
    scaling: float
    window: int
    softcap: float
    causal: bool
    stem: int


FORM = "Tensor blocks, float scaling, int window, float softcap, bool causal, int stem"
"""A `Form` in the schema of an operator."""
WITHOUT_GRADIENT = (None,) * len(Form._fields)


def attended(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, form: Form
) -> tuple[Tensor, Tensor]:
    """[t, n, d] attended values, and [n, t] of float32: log2 of each query's sum of exponentials.

    ``query`` [t, n, d]; ``key``, ``value`` [t, g, d]; the prefixes [a, g, p, d].
    """
    blocks, scaling, window, softcap, causal, stem = form
    query, key, value, prefix_key, prefix_value = map(
        dense, (query, key, value, prefix_key, prefix_value)
    )
    (tokens, heads, width), groups = query.shape, key.shape[1]
    out = query.new_empty(tokens, heads, width)
    lse = query.new_empty(heads, tokens, dtype=torch.float32)
    sizes = sizes_of(query, softcap)
    forward[(blocks.shape[0], heads)](
        query, key, value, prefix_key, prefix_value, out, lse, blocks,
        scaling, softcap, window, tokens, prefix_key.shape[2], stem,
        *strides_of(query, key, value, prefix_key, prefix_value),
        HEADS=heads, RATIO=heads // groups, CAUSAL=causal, WINDOWED=window != 0,
        **sizes, **keys_of(query, registers=128),
    )  # fmt: skip
    return out, lse


def _attend(*tensors_and_form: Any) -> tuple[Tensor, Tensor]:
    query, key, value, prefix_key, prefix_value, *form = tensors_and_form
    return attended(query, key, value, prefix_key, prefix_value, Form(*form))


def _attend_shapes(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, width = query.shape
    return query.new_empty(tokens, heads, width), query.new_empty(
        heads, tokens, dtype=torch.float32
    )


class Gradients(NamedTuple):
    """Those of keys and values are parts to be summed, [chunks, t, g, d], None if unwanted; those
    of the prefix's keys and values are summed, [2, a, g, p, d]; ``stem``: what other rows add to
    those of the stem's keys and values, [2, g, stem, d] in float32."""

    query: Tensor
    key: Tensor | None
    value: Tensor | None
    prefix: Tensor
    stem: Tensor


def gradients(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    out: Tensor,
    lse: Tensor,
    form: Form,
    *,
    d_query: Tensor,
    below: bool,
    angles: tuple[Tensor, Tensor] | None = None,
) -> Gradients:
    """The gradients of `attended`'s first five arguments; that of ``query`` goes into ``d_query``
    [t, n, d].

    ``below``: whether those of key and value are wanted. ``angles``: cosines and sines [t, r] that
    the queries were turned by, in equal halves and one layout; their gradient is turned back.
    """
    blocks, scaling, window, softcap, causal, stem = form
    query, key, value, prefix_key, prefix_value = map(
        dense, (query, key, value, prefix_key, prefix_value)
    )
    d_out = d_out.contiguous()
    (tokens, heads, width), groups = query.shape, key.shape[1]
    adapters, _, p, _ = prefix_key.shape
    ratio, count = heads // groups, blocks.shape[0]
    sizes = sizes_of(query, softcap)
    delta = torch.empty_like(lse)
    cos, sin = (lse, lse) if angles is None else angles
    queries_backward[(count, heads)](
        query, key, value, prefix_key, prefix_value, out, d_out, lse, delta, d_query, cos, sin,
        blocks, scaling, softcap, window, tokens, p, stem, cos.shape[1] // 2,
        *strides_of(query, key, value, prefix_key, prefix_value, d_query, cos),
        HEADS=heads, RATIO=ratio, CAUSAL=causal, WINDOWED=window != 0, TURNED=angles is not None,
        **sizes, **keys_of(query, registers=168),
    )  # fmt: skip
    d_key = d_value = None
    if below:
        chunks = 1
        while ratio % (2 * chunks) == 0 and count * groups * chunks < PROGRAMS:
            chunks *= 2
        shape = (chunks, tokens, groups, width)
        dtype = query.dtype if chunks == 1 else torch.float32
        d_key, d_value = (query.new_empty(shape, dtype=dtype) for _ in range(2))
        keys_backward[(count, groups, chunks)](
            query, key, value, d_out, lse, delta, d_key, d_value, blocks,
            scaling, softcap, window, tokens, *strides_of(query, key, value),
            HEADS=heads, RATIO=ratio, AT_ONCE=ratio // chunks, CAUSAL=causal,
            WINDOWED=window != 0, **{**sizes, "BM": at_once(query), "BN": BLOCK},
        )  # fmt: skip
    splits = max(1, min(SPLITS, count * ratio))
    parts = query.new_empty((2, splits, adapters, groups, p + stem, width), dtype=torch.float32)
    if p + stem:
        every = triton.cdiv(p, BLOCK) + triton.cdiv(stem, BLOCK)
        prefix_backward[(every, adapters * groups, splits)](
            query, key, value, prefix_key, prefix_value, d_out, lse, delta, *parts, blocks,
            scaling, softcap, window, tokens, p, stem, count, groups,
            *strides_of(query, key, value, prefix_key, prefix_value),
            HEADS=heads, RATIO=ratio, SPLITS=splits, WINDOWED=window != 0,
            **{**sizes, "BN": BLOCK},
        )  # fmt: skip
    of_prefix, of_stem = parts.sum(1).split((p, stem), 3)
    of_stem = of_stem[:, 0] if adapters == 1 else of_stem.sum(1)
    of_prefix = of_prefix.to(prefix_key.dtype).contiguous()
    return Gradients(d_query, d_key, d_value, of_prefix, of_stem)


def _attend_backward(
    d_out: Tensor, query: Tensor, key: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`gradients` with all sums made; those of key and value are empty unless they are wanted."""
    value, prefix_key, prefix_value, out, lse, *form, below = others
    d_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    made = gradients(
        d_out, query, key, value, prefix_key, prefix_value, out, lse, Form(*form),
        d_query=d_query, below=below,
    )  # fmt: skip
    none = query.new_empty(0)
    d_key, d_value = (
        none if parts is None else _summed(parts, of_stem, query.dtype)
        for parts, of_stem in zip((made.key, made.value), made.stem, strict=True)
    )
    return d_query, d_key, d_value, made.prefix


def _summed(parts: Tensor, of_stem: Tensor, dtype: torch.dtype) -> Tensor:
    """[t, g, d], of [chunks, t, g, d] and of [g, stem, d] for the first tokens."""
    made = parts[0] if parts.shape[0] == 1 else parts.sum(0)
    made[: of_stem.shape[1]] += of_stem.transpose(0, 1)
    return made.to(dtype)


def _attend_backward_shapes(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    *others: Any,
) -> tuple[Tensor, ...]:
    below = others[-1]
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape if below else 0),
        value.new_empty(value.shape if below else 0),
        prefix_key.new_empty(2, *prefix_key.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, prefix_key, prefix_value, blocks, *form = inputs
    out, lse = output
    ctx.save_for_backward(query, key, value, prefix_key, prefix_value, out, lse, blocks)
    ctx.form = form
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor, d_lse: None) -> tuple[Tensor | None, ...]:
    *tensors, blocks = ctx.saved_tensors
    below = any(ctx.needs_input_grad[:3])
    *made, prefix = packed_attention_backward(d_out, *tensors, blocks, *ctx.form, below)
    wanted = [
        gradient if wanted else None
        for gradient, wanted in zip(
            (*made, *prefix.unbind()), ctx.needs_input_grad[:5], strict=True
        )
    ]
    return (*wanted, *WITHOUT_GRADIENT)


_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor prefix_key, Tensor prefix_value"
packed_attention = register(
    "packed_attention", f"({_INPUTS}, {FORM}) -> (Tensor, Tensor)", _attend, _attend_shapes
)
packed_attention_backward = register(
    "packed_attention_backward",
    f"(Tensor d_out, {_INPUTS}, Tensor out, Tensor lse, {FORM}, bool below)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _attend_backward,
    _attend_backward_shapes,
)
register_gradient("packed_attention", _backward, _keep)
