"""The MLP of a decoder's layer, with SwiGLU between its two linears."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ptkit.engine.frozen import Float8Linear
from ptkit.engine.frozen_float8 import fits_float8, float8_matmul, float8_product, quantize_float8
from ptkit.engine.operators import has_triton, register, register_gradient
from ptkit.engine.swiglu import swiglu

_HAS_KERNELS = has_triton()  # asked here, as torch.compile can't follow it


def activated(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """SwiGLU of [t, 2f] as codes [t, f] and scales [t], see `quantize_float8`."""
    if not gate_up.is_cuda:
        return quantize_float8(swiglu(gate_up))
    from ptkit.engine.float8_mlp_kernels import forward

    return forward(gate_up)


def gradient_of(gate_up: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of ``gate_up`` [t, 2f], likewise, from that of SwiGLU's result [t, f]."""
    if not gate_up.is_cuda:
        gate, up = gate_up.float().chunk(2, dim=-1)
        share = gate.sigmoid()
        d_gate = up * share * (1 + gate * (1 - share))
        made = torch.cat((d_gate, gate * share), -1) * d_out.float().repeat(1, 2)
        return quantize_float8(made.to(gate_up.dtype))
    from ptkit.engine.float8_mlp_kernels import backward

    return backward(d_out, gate_up)


def _rest(
    x: Tensor,
    made: Tensor,
    gate_up_transposed: Tensor,
    gate_up_transposed_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    down_transposed: Tensor,
    down_transposed_scale: Tensor,
) -> Tensor:
    """[t, h], from what the first linear ``made`` of ``x`` [t, h], [t, 2f]. The gradient is that of
    x, through the whole MLP; ``made`` needs none."""
    return float8_product(*activated(made), down, down_scale, x.dtype)


def _rest_shapes(
    x: Tensor, made: Tensor, gate_up: Tensor, gate_up_scale: Tensor, down: Tensor, *others: Tensor
) -> Tensor:
    return x.new_empty(x.shape[0], down.shape[0])


def _backward_pass(
    codes: Tensor,
    own: Tensor,
    made: Tensor,
    gate_up_transposed: Tensor,
    gate_up_transposed_scale: Tensor,
    down_transposed: Tensor,
    down_transposed_scale: Tensor,
) -> Tensor:
    """The gradient of x [t, h]; ``codes`` and ``own`` are those of the result's gradient."""
    d_out = float8_product(codes, own, down_transposed, down_transposed_scale, made.dtype)
    d_codes, d_own = gradient_of(made, d_out)
    return float8_product(d_codes, d_own, gate_up_transposed, gate_up_transposed_scale, made.dtype)


def _backward_shapes(
    codes: Tensor, own: Tensor, made: Tensor, gate_up: Tensor, *others: Tensor
) -> Tensor:
    return made.new_empty(made.shape[0], gate_up.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    _, made, *gate_up, _, _, down, down_scale = inputs
    ctx.save_for_backward(made, *gate_up, down, down_scale)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    d_x: Tensor = _backward_operator(*quantize_float8(gradient), *ctx.saved_tensors)
    return d_x, *[None] * 7


_GATE_UP = "Tensor gate_up_transposed, Tensor gate_up_transposed_scale"
_DOWN = "Tensor down_transposed, Tensor down_transposed_scale"
_operator = register(
    "float8_mlp",
    f"(Tensor x, Tensor made, {_GATE_UP}, Tensor down, Tensor down_scale, {_DOWN}) -> Tensor",
    _rest,
    _rest_shapes,
)
_backward_operator = register(
    "float8_mlp_backward",
    f"(Tensor codes, Tensor own, Tensor made, {_GATE_UP}, {_DOWN}) -> Tensor",
    _backward_pass,
    _backward_shapes,
)
register_gradient("float8_mlp", _backward, _keep)


def float8_mlp(x: Tensor, gate_up: Float8Linear, down: Float8Linear) -> Tensor:
    """`gated_mlp` of [..., h]. SwiGLU's result and its gradient never leave the kernel but as 8-bit
    floats; x and the result's gradient are rounded by torch, which compiles that together with what
    makes them."""
    flat = x.reshape(-1, x.shape[-1])
    with torch.no_grad():
        made = float8_matmul(flat, gate_up.weight, gate_up.weight_scale)
    result: Tensor = _operator(
        flat, made, gate_up.transposed, gate_up.transposed_scale,
        down.weight, down.weight_scale, down.transposed, down.transposed_scale,
    )  # fmt: skip
    return result.view(*x.shape[:-1], down.out_features)


def gated_mlp(x: Tensor, gate_up: nn.Module, down: nn.Module) -> Tensor:
    """``down(swiglu(gate_up(x)))``: [..., h] to [..., h].

    ``gate_up`` makes [..., 2f] of [..., h], ``down`` [..., h] of [..., f]. Where both are
    `Float8Linear` on a GPU with 8-bit floats, SwiGLU's result and its gradient are rounded in the
    kernels that make them; the numbers are the same. Raises ValueError as `swiglu` does.
    """
    if (
        isinstance(gate_up, Float8Linear)
        and isinstance(down, Float8Linear)
        and _fused(x, gate_up, down)
    ):
        return float8_mlp(x, gate_up, down)
    result: Tensor = down(swiglu(gate_up(x)))
    return result


def _fused(x: Tensor, gate_up: Float8Linear, down: Float8Linear) -> bool:
    if not (x.is_cuda and _HAS_KERNELS):
        return False
    plain = gate_up.bias is None and down.bias is None
    return plain and fits_float8(gate_up.weight) and fits_float8(down.weight)
