"""SwiGLU as Triton kernels: every number is read once and written once.

A program takes some columns of one row, so that the addresses of its threads follow from their
number alone, and loads are 16 bytes wide. Arithmetic is float32; results are rounded once.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024  # of a program; with four warps a thread loads 8 numbers, 16 bytes of bfloat16


@triton.jit
def _forward(GATE_UP, OUT, f, BF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BF + tl.arange(0, BF)
    inside = column < f
    at = GATE_UP + row * 2 * f + column
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + f, mask=inside, other=0.0).to(tl.float32)
    made = up * (gate * tl.sigmoid(gate))
    tl.store(OUT + row * f + column, made.to(OUT.dtype.element_ty), mask=inside)


@triton.jit
def _backward(D_OUT, GATE_UP, D_GATE_UP, f, BF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BF + tl.arange(0, BF)
    inside = column < f
    start = row * 2 * f + column
    d_out = tl.load(D_OUT + row * f + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(GATE_UP + start, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(GATE_UP + start + f, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    d_gate = d_out * up * share * (1 + gate * (1 - share))
    d_up = d_out * (gate * share)
    tl.store(D_GATE_UP + start, d_gate.to(D_GATE_UP.dtype.element_ty), mask=inside)
    tl.store(D_GATE_UP + start + f, d_up.to(D_GATE_UP.dtype.element_ty), mask=inside)


def forward(gate_up: Tensor) -> Tensor:
    """[..., 2f] to [..., f]"""
    gate_up = gate_up.contiguous()
    *leading, width = gate_up.shape
    out = gate_up.new_empty(*leading, width // 2)
    if out.numel():
        grid = (gate_up.numel() // width, triton.cdiv(width // 2, _COLUMNS))
        _forward[grid](gate_up, out, width // 2, BF=_COLUMNS, num_warps=4)
    return out


def backward(d_out: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient [..., 2f] of ``gate_up``, from that of the result, [..., f]."""
    d_out, gate_up = d_out.contiguous(), gate_up.contiguous()
    width = gate_up.shape[-1]
    d_gate_up = gate_up.new_empty(gate_up.shape)
    if d_out.numel():
        grid = (gate_up.numel() // width, triton.cdiv(width // 2, _COLUMNS))
        _backward[grid](d_out, gate_up, d_gate_up, width // 2, BF=_COLUMNS, num_warps=4)
    return d_gate_up
