"""The gate of a transformer's MLP, SwiGLU, as an operator of torch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ptkit.engine.operators import has_triton, register, register_gradient

_HAS_KERNELS = has_triton()  # asked here, as torch.compile can't follow it
_TYPES = (torch.bfloat16, torch.float16, torch.float32)  # float64 stays float64


def _swiglu(gate_up: Tensor) -> Tensor:
    from ptkit.engine.swiglu_kernels import forward

    return forward(gate_up)


def _swiglu_shapes(gate_up: Tensor) -> Tensor:
    *leading, width = gate_up.shape
    return gate_up.new_empty(*leading, width // 2)


def _swiglu_backward(d_out: Tensor, gate_up: Tensor) -> Tensor:
    from ptkit.engine.swiglu_kernels import backward

    return backward(d_out, gate_up)


def _swiglu_backward_shapes(d_out: Tensor, gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, d_out: Tensor) -> Tensor:
    (gate_up,) = ctx.saved_tensors
    made: Tensor = _backward_operator(d_out, gate_up)
    return made


_operator = register("swiglu", "(Tensor gate_up) -> Tensor", _swiglu, _swiglu_shapes)
_backward_operator = register(
    "swiglu_backward",
    "(Tensor d_out, Tensor gate_up) -> Tensor",
    _swiglu_backward,
    _swiglu_backward_shapes,
)
register_gradient("swiglu", _backward, _keep)


def swiglu(gate_up: Tensor) -> Tensor:
    """[..., 2f] to [..., f]: SiLU of the first half of the last dimension times the second half.

    Shazeer, "GLU Variants Improve Transformer" (2020), arXiv:2002.05202; for MLPs whose gate and up
    projections are one matrix. On a GPU it is one kernel a direction, whose result is rounded
    once; elsewhere, and in float64, it is ``up * silu(gate)`` in torch's own operators. Raises
    ValueError for a last dimension that is odd.

    >>> swiglu(torch.tensor([0.0, 100.0, 3.0, 2.0]))  # silu(0) * 3, silu(100) * 2
    tensor([  0., 200.])
    """
    if gate_up.shape[-1] % 2:
        raise ValueError(
            f"swiglu: the last dimension holds gate and up, so it must be even, got "
            f"{gate_up.shape[-1]}"
        )
    if gate_up.is_cuda and _HAS_KERNELS and gate_up.dtype in _TYPES:
        made: Tensor = _operator(gate_up)
        return made
    gate, up = gate_up.chunk(2, dim=-1)
    return up * functional.silu(gate)
