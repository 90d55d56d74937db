"""Packed attention of queries, keys and values that one linear makes: the rotary embedding and the
attention as one operator of torch's, with its gradient as one tensor.

Apart, the pieces cost more than the attention: two embeddings that copy, and three gradients that
are put together again.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ptkit.engine.operators import register, register_gradient
from ptkit.engine.packed_attention import FORM, WITHOUT_GRADIENT, Form, attended, gradients
from ptkit.engine.rotary_kernels import TOKENS, turn, turn_back

_Parts = tuple[Tensor, Tensor, Tensor]


def _parts(merged: Tensor, groups: int) -> _Parts:
    """[t, n + 2g, d] as queries, keys and values."""
    query, key, value = merged.split((merged.shape[1] - 2 * groups, groups, groups), 1)
    return query, key, value


def _tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """In one layout, dense in the last dimension."""
    if cos.stride(1) == 1 and cos.stride() == sin.stride():
        return cos, sin
    return cos.contiguous(), sin.contiguous()


def _sizes(merged: Tensor) -> dict[str, int]:
    width = merged.shape[2]
    return {"D": width, "BD": triton.next_power_of_2(width), "BT": TOKENS}


def _attend(
    merged: Tensor,
    groups: int,
    cos: Tensor,
    sin: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    *form: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """[t, n, d] attended values; ``merged`` with queries and keys turned; log2 sums [n, t].

    ``merged`` [t, n + 2g, d]; ``cos``, ``sin`` [t, r], in equal halves: of the angle of each pair
    of neighbouring numbers, the first r of a head; the rest as `attended` takes it.
    """
    merged, cos, sin = merged.contiguous(), *_tables(cos, sin)
    (tokens, heads, _), pairs = merged.shape, cos.shape[1] // 2
    turned = torch.empty_like(merged)
    turn[(triton.cdiv(tokens, TOKENS), heads)](
        merged, turned, cos, sin, tokens, pairs, heads - groups,
        *merged.stride()[:2], *turned.stride()[:2], cos.stride(0), **_sizes(merged),
    )  # fmt: skip
    query, key, value = _parts(turned, groups)
    out, lse = attended(query, key, value, prefix_key, prefix_value, Form(*form))
    return out, turned, lse


def _attend_shapes(merged: Tensor, groups: int, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads, width = merged.shape
    heads -= 2 * groups
    return (
        merged.new_empty(tokens, heads, width),
        merged.new_empty(merged.shape),
        merged.new_empty(heads, tokens, dtype=torch.float32),
    )


def _attend_backward(
    d_out: Tensor,
    turned: Tensor,
    groups: int,
    cos: Tensor,
    sin: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:
    """The gradient of ``merged``, empty unless it is wanted (``below``), and that of the prefix,
    [2, a, g, p, d]."""
    prefix_key, prefix_value, out, lse, *form, below = others
    cos, sin = _tables(cos, sin)
    d_merged = torch.empty_like(turned)
    made = gradients(
        d_out, *_parts(turned, groups), prefix_key, prefix_value, out, lse, Form(*form),
        d_query=_parts(d_merged, groups)[0], below=below, angles=(cos, sin),
    )  # fmt: skip
    if made.key is None:
        return d_merged.new_empty(0), made.prefix
    (tokens, heads, _), pairs = turned.shape, cos.shape[1] // 2
    turn_back[(triton.cdiv(tokens, TOKENS), 2 * groups)](
        d_merged[:, heads - 2 * groups :], made.key, made.value, made.stem, cos, sin, tokens, pairs,
        groups, made.key.shape[0], made.stem.shape[2], *d_merged.stride()[:2], cos.stride(0),
        *made.stem.stride()[:2], **_sizes(turned),
    )  # fmt: skip
    return d_merged, made.prefix


def _attend_backward_shapes(
    d_out: Tensor, turned: Tensor, groups: int, cos: Tensor, sin: Tensor, prefix_key: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    below = others[-1]
    return (
        turned.new_empty(turned.shape if below else 0),
        prefix_key.new_empty(2, *prefix_key.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, ctx.groups, cos, sin, prefix_key, prefix_value, blocks, *ctx.form = inputs
    out, turned, lse = output
    ctx.save_for_backward(turned, cos, sin, prefix_key, prefix_value, out, lse, blocks)
    ctx.mark_non_differentiable(turned, lse)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor, *others: None) -> tuple[Tensor | None, ...]:
    turned, *tensors, blocks = ctx.saved_tensors
    below = ctx.needs_input_grad[0]
    d_merged, prefix = merged_attention_backward(
        d_out, turned, ctx.groups, *tensors, blocks, *ctx.form, below
    )
    of_prefix = [
        gradient if wanted else None
        for gradient, wanted in zip(prefix.unbind(), ctx.needs_input_grad[4:6], strict=True)
    ]
    return (d_merged if below else None, None, None, None, *of_prefix, *WITHOUT_GRADIENT)


_TABLES = "int groups, Tensor cos, Tensor sin, Tensor prefix_key, Tensor prefix_value"
merged_attention = register(
    "merged_attention",
    f"(Tensor merged, {_TABLES}, {FORM}) -> (Tensor, Tensor, Tensor)",
    _attend,
    _attend_shapes,
)
merged_attention_backward = register(
    "merged_attention_backward",
    f"(Tensor d_out, Tensor turned, {_TABLES}, Tensor out, Tensor lse, {FORM}, bool below)"
    " -> (Tensor, Tensor)",
    _attend_backward,
    _attend_backward_shapes,
)
register_gradient("merged_attention", _backward, _keep)
