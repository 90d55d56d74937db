"""Triton kernels for weights of 8 or 4 bits: made again in one pass, or inside the matmul; and
one that looks rows up in the host's memory.

See `ptkit.engine.frozen_codes` for the packing, and `dequantize` there for the slow twin.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tiling(NamedTuple):
    """How the matmul of few tokens is cut: rows of the weight and columns a program takes at once,
    programs that share the columns, and warps and stages of each."""

    rows: int
    columns: int
    splits: int
    warps: int
    stages: int


_PROGRAMS = 264  # two for each multiprocessor of an H100
_FEWEST = 32  # columns a group must have: tensor cores sum over 16, and there are two halves
_MOST_SPLITS = 8


def tiling(rows: int, columns: int, group: int | None) -> Tiling:
    """The one that is used for a weight of such a shape."""
    at_once = min(group or 128, 128)
    programs = -(-rows // 32)
    splits = 1
    while 2 * splits * programs <= _PROGRAMS and splits < _MOST_SPLITS:
        splits *= 2
    return Tiling(32, at_once, min(splits, -(-columns // at_once)), 4, 4)


def fits(scale: Tensor, columns: int) -> bool:
    """Whether `few_tokens` can take the weight."""
    return scale.dim() == 1 or columns // scale.shape[1] >= _FEWEST


@triton.jit
def _halves(packed):
    """The numbers of even and of odd columns, which are the high and low four bits of a byte."""
    wide = packed.to(tl.int32)
    return wide >> 4, (wide << 28) >> 28  # shifting to the right keeps the sign


@triton.jit(do_not_specialize=["tokens"])
def _few_tokens(
    X, CODES, SCALE, OUT, tokens, n, k,
    BITS: tl.constexpr, GROUP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, SPLITS: tl.constexpr, TURNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.program_id(1)
    token = tl.arange(0, BM)
    total = tl.full([BM, BN], 0.0, tl.float32)
    for turn in range(TURNS):
        start = (turn * SPLITS + part) * BK
        column = start + tl.arange(0, BK)
        inside = (token[:, None] < tokens) & (column[None, :] < k)
        x = tl.load(X + token[:, None] * k + column[None, :], mask=inside, other=0.0)
        if BITS == 4:
            # no code is moved: the even columns of x meet the high halves, the odd ones the low
            byte = start // 2 + tl.arange(0, BK // 2)
            inside = (row[:, None] < n) & (byte[None, :] < k // 2)
            at = row[:, None].to(tl.int64) * (k // 2) + byte[None, :]
            high, low = _halves(tl.load(CODES + at, mask=inside, other=0))
            even, odd = tl.split(tl.reshape(x, [BM, BK // 2, 2]))
            product = tl.dot(even, tl.trans(high.to(x.dtype)), input_precision=PRECISION)
            product = tl.dot(odd, tl.trans(low.to(x.dtype)), product, input_precision=PRECISION)
        else:
            inside = (row[:, None] < n) & (column[None, :] < k)
            at = row[:, None].to(tl.int64) * k + column[None, :]
            codes = tl.load(CODES + at, mask=inside, other=0)
            product = tl.dot(x, tl.trans(codes.to(x.dtype)), input_precision=PRECISION)
        if GROUP > 0:
            at = row.to(tl.int64) * (k // GROUP) + start // GROUP
            inside = row < tl.where(start < k, n, 0)
            scale = tl.load(SCALE + at, mask=inside, other=0.0).to(tl.float32)
            total += product * scale[None, :]
        else:
            total += product
    if GROUP == 0:
        scale = tl.load(SCALE + row, mask=row < n, other=0.0).to(tl.float32)
        total = total * scale[None, :]
    at = (part * tokens + token[:, None]) * n + row[None, :]
    inside = (token[:, None] < tokens) & (row[None, :] < n)
    tl.store(OUT + at, total.to(OUT.dtype.element_ty), mask=inside)


def few_tokens(
    x: Tensor, codes: Tensor, scale: Tensor, bits: int, cut: Tiling | None = None
) -> Tensor:
    """[m, k] to [m, n] in the type of ``x``, for m of 128 at most.

    Sums are float32; those of programs that share the columns are added in a fixed order.
    """
    tokens, columns = x.shape
    rows = len(codes)
    group = columns // scale.shape[1] if scale.dim() == 2 else None
    cut = cut or tiling(rows, columns, group)
    single = cut.splits == 1
    out = torch.empty(
        (cut.splits, tokens, rows), dtype=x.dtype if single else torch.float32, device=x.device
    )
    _few_tokens[(triton.cdiv(rows, cut.rows), cut.splits)](
        x.contiguous(), codes.contiguous(), scale.contiguous(), out, tokens, rows, columns,
        BITS=bits, GROUP=group or 0, BM=max(16, triton.next_power_of_2(tokens)), BN=cut.rows,
        BK=cut.columns, SPLITS=cut.splits, TURNS=triton.cdiv(columns, cut.splits * cut.columns),
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return out[0] if single else out.sum(0).to(x.dtype)


@triton.jit
def _dequantize(
    CODES, SCALE, OUT, n, k, codes_n, scale_n,
    BITS: tl.constexpr, GROUP: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    start = tl.program_id(1) * BK
    column = start + tl.arange(0, BK)
    rows = row.to(tl.int64)
    if BITS == 4:
        byte = start // 2 + tl.arange(0, BK // 2)
        inside = (row[:, None] < n) & (byte[None, :] < k // 2)
        packed = tl.load(CODES + rows[:, None] * codes_n + byte[None, :], mask=inside, other=0)
        high, low = _halves(packed)
        numbers = tl.reshape(tl.join(high, low), [BN, BK]).to(tl.float32)
    else:
        inside = (row[:, None] < n) & (column[None, :] < k)
        at = rows[:, None] * codes_n + column[None, :]
        numbers = tl.load(CODES + at, mask=inside, other=0).to(tl.float32)
    inside = (row[:, None] < n) & (column[None, :] < k)
    if GROUP > 0:
        at = rows[:, None] * scale_n + (column // GROUP)[None, :]
        numbers = numbers * tl.load(SCALE + at, mask=inside, other=0.0).to(tl.float32)
    else:
        numbers = numbers * tl.load(SCALE + row, mask=row < n, other=0.0).to(tl.float32)[:, None]
    at = rows[:, None] * k + column[None, :]
    tl.store(OUT + at, numbers.to(OUT.dtype.element_ty), mask=inside)


def dequantize_codes(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """`dequantize` in one pass over the codes, which may be a part of the rows or the columns."""
    rows, columns = len(codes), codes.shape[1] * 8 // bits
    grouped = scale.dim() == 2
    out = torch.empty((rows, columns), dtype=dtype, device=codes.device)
    grid = (triton.cdiv(rows, 8), triton.cdiv(columns, 512))
    _dequantize[grid](
        codes, scale, out, rows, columns, codes.stride(0), scale.stride(0),
        BITS=bits, GROUP=columns // scale.shape[1] if grouped else 0, BN=8, BK=512, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _gather(WEIGHT, IDS, OUT, h, BH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BH + tl.arange(0, BH)
    row = tl.load(IDS + token).to(tl.int64)
    numbers = tl.load(WEIGHT + row * h + column, mask=column < h, other=0.0)
    tl.store(OUT + token * h + column, numbers, mask=column < h)


def gather_rows(weight: Tensor, ids: Tensor) -> Tensor:
    """[...] ids of the device to [..., h] there; ``weight`` [v, h] in pinned memory of the host."""
    width = weight.shape[1]
    out = torch.empty((*ids.shape, width), dtype=weight.dtype, device=ids.device)
    if out.numel():
        grid = (ids.numel(), triton.cdiv(width, 1024))
        _gather[grid](weight, ids.contiguous(), out, width, BH=1024, num_warps=4)
    return out
