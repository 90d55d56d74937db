"""SwiGLU and its gradient as 8-bit floats with a scale a token, as Triton kernels.

A program takes a row: through its columns once for the greatest number, and back once more to write
the codes, while a GPU's cache still has the row. What `ptkit.engine.swiglu_kernels` and a cast
would do apart reads and writes the result in half precision twice.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptkit.engine.frozen_float8 import FLOAT8

BLOCK = 4096
"""Columns that a program takes at once, with 16 warps: few enough programs to a multiprocessor that
an H100's cache holds their rows for the way back (132 · 4 rows of 82 kB at ChatGLM2-6B's size)."""

_STEP = tl.constexpr(1 / torch.finfo(FLOAT8).max)  # as `quantize_float8` has it
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _gate_and_up(GATE_UP, row, column, f, BF: tl.constexpr):
    at = GATE_UP + row * 2 * f + column
    gate = tl.load(at, mask=column < f, other=0.0).to(tl.float32)
    up = tl.load(at + f, mask=column < f, other=0.0).to(tl.float32)
    return gate, up


@triton.jit
def _activated(GATE_UP, row, column, f, BF: tl.constexpr):
    """As the tensor's type has it; float32."""
    gate, up = _gate_and_up(GATE_UP, row, column, f, BF)
    made = up * (gate * tl.sigmoid(gate))
    return made.to(GATE_UP.dtype.element_ty).to(tl.float32)


@triton.jit
def _gradients(D_OUT, GATE_UP, row, column, f, BF: tl.constexpr):
    """Of gate and up, likewise."""
    gate, up = _gate_and_up(GATE_UP, row, column, f, BF)
    d_out = tl.load(D_OUT + row * f + column, mask=column < f, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    d_gate = d_out * up * share * (1 + gate * (1 - share))
    d_up = d_out * (gate * share)
    kept = GATE_UP.dtype.element_ty
    return d_gate.to(kept).to(tl.float32), d_up.to(kept).to(tl.float32)


@triton.jit
def _scale(largest):
    return tl.maximum(tl.max(largest, 0) * _STEP, _TINY)


@triton.jit
def _quotient(x, scale, inverse):
    """x / scale, rounded as IEEE wants it, in three instructions; a division takes fourteen.

    ``inverse``: 1 / scale, rounded likewise. Markstein, "Computation of elementary functions on the
    IBM RISC System/6000 processor" (1990). A row that is infinite somewhere becomes NaN.
    """
    near = x * inverse
    return tl.fma(tl.fma(-near, scale, x), inverse, near)


@triton.jit
def _forward(GATE_UP, CODES, SCALE, f, BF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BF], tl.float32)
    for start in range(0, f, BF):
        column = start + tl.arange(0, BF)
        largest = tl.maximum(largest, tl.abs(_activated(GATE_UP, row, column, f, BF)))
    scale = _scale(largest)
    tl.store(SCALE + row, scale)
    inverse = tl.div_rn(1.0, scale)
    blocks = tl.cdiv(f, BF)
    for turn in range(blocks):  # from the last, which the cache still has
        column = (blocks - 1 - turn) * BF + tl.arange(0, BF)
        codes = _quotient(_activated(GATE_UP, row, column, f, BF), scale, inverse)
        tl.store(CODES + row * f + column, codes.to(CODES.dtype.element_ty), mask=column < f)


@triton.jit
def _backward(D_OUT, GATE_UP, CODES, SCALE, f, BF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BF], tl.float32)
    for start in range(0, f, BF):
        column = start + tl.arange(0, BF)
        d_gate, d_up = _gradients(D_OUT, GATE_UP, row, column, f, BF)
        largest = tl.maximum(largest, tl.maximum(tl.abs(d_gate), tl.abs(d_up)))
    scale = _scale(largest)
    tl.store(SCALE + row, scale)
    inverse = tl.div_rn(1.0, scale)
    blocks = tl.cdiv(f, BF)
    for turn in range(blocks):
        column = (blocks - 1 - turn) * BF + tl.arange(0, BF)
        d_gate, d_up = _gradients(D_OUT, GATE_UP, row, column, f, BF)
        at = CODES + row * 2 * f + column
        d_gate, d_up = _quotient(d_gate, scale, inverse), _quotient(d_up, scale, inverse)
        tl.store(at, d_gate.to(CODES.dtype.element_ty), mask=column < f)
        tl.store(at + f, d_up.to(CODES.dtype.element_ty), mask=column < f)


def forward(gate_up: Tensor, dtype: torch.dtype = FLOAT8) -> tuple[Tensor, Tensor]:
    """[t, 2f] to the codes [t, f] and scales [t] of SwiGLU's result; ``dtype``: of the codes, which
    are not rounded in float32."""
    gate_up = gate_up.contiguous()
    f = gate_up.shape[1] // 2
    codes, scale = _results(gate_up, f, dtype)
    if codes.numel():
        _forward[(len(codes),)](gate_up, codes, scale, f, **_sizes(f))
    return codes, scale


def backward(d_out: Tensor, gate_up: Tensor, dtype: torch.dtype = FLOAT8) -> tuple[Tensor, Tensor]:
    """The codes [t, 2f] and scales [t] of the gradient of ``gate_up``, from that of the result,
    [t, f]."""
    d_out, gate_up = d_out.contiguous(), gate_up.contiguous()
    f = gate_up.shape[1] // 2
    codes, scale = _results(gate_up, 2 * f, dtype)
    if codes.numel():
        _backward[(len(codes),)](d_out, gate_up, codes, scale, f, **_sizes(f))
    return codes, scale


def _results(gate_up: Tensor, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = len(gate_up)
    codes = torch.empty((rows, width), dtype=dtype, device=gate_up.device)
    return codes, torch.empty(rows, dtype=torch.float32, device=gate_up.device)


def _sizes(f: int) -> dict[str, int]:
    block = min(BLOCK, triton.next_power_of_2(f))
    return {"BF": block, "num_warps": max(1, min(16, block // 256))}
