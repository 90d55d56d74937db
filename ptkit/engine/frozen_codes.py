"""Weights as whole numbers of 8 or 4 bits with a scale a row or a group of columns.

The packing is that of ChatGLM2's published checkpoints. For a weight of n rows and k columns:
int8 [n, k], or int4 [n, k / 2] with column 2j in the high and 2j + 1 in the low four bits, two's
complement. A row's scale is max|row| / 127 or max|row| / 7, without a zero point; a group's spans
all sixteen numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantize_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``weight`` [n, k] as whole numbers, int8 [n, k] or [n, k / 2], and float16 scales [n].

    Divides by the rounded scale in the weight's own type, which gives the published numbers bit for
    bit. A row of zeros has scale 0.
    """
    largest = 2 ** (bits - 1) - 1
    if weight.dtype == torch.bfloat16:
        weight = weight.float()
    scale = (weight.abs().amax(dim=1) / largest).to(torch.float16)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).to(weight.dtype)
    codes = (weight / divisor[:, None]).round_().clamp_(-largest, largest).to(torch.int8)
    return (pack(codes) if bits == 4 else codes), scale


def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """``weight`` [n, k] as int4 [n, k / 2] and float16 scales [n, k / g] of g columns each.

    g is `group_size`. Of each group, the number farthest from 0 becomes −8, so that scales have a
    sign and all sixteen numbers are used: for normal weights the error is 12 % below that of a
    scale max|group| / 7. GGUF's Q4_0 is made so.
    """
    rows, columns = weight.shape
    groups = weight.float().view(rows, -1, group_size(columns, group))
    farthest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
    scale = (farthest / -8).to(torch.float16)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale).float()
    codes = (groups / divisor).round_().clamp_(-8, 7).to(torch.int8)
    return pack(codes.view(rows, columns)), scale.squeeze(-1)


def group_size(columns: int, group: int) -> int:
    """``group``, a power of two, or the largest one below it that divides ``columns``.

    >>> group_size(4096, 128), group_size(96, 128)
    (128, 32)
    """
    return math.gcd(columns, group)


def pack(codes: Tensor) -> Tensor:
    """int4 numbers [n, k], one a byte, as [n, k / 2]."""
    return (codes[:, 0::2] << 4) | (codes[:, 1::2] & 0x0F)


def dequantize(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The weight [n, k] in ``dtype``: whole numbers times their scale, rounded once.

    ``scale``: [n], or [n, k / g] of groups.
    """
    if bits == 4:
        high, low = codes >> 4, (codes << 4) >> 4  # shifting to the right keeps the sign
        codes = torch.stack((high, low), dim=-1).flatten(1)
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    factors = scale.float()[..., None]
    groups = scale.shape[1] if scale.dim() == 2 else 1
    shape = (codes.shape[0], groups, -1) if scale.dim() == 2 else codes.shape
    torch.mul(codes.view(shape), factors, out=weight.view(shape))
    return weight
