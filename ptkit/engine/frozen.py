"""Frozen linear layers with weights of 8 or 4 bits and a scale a row, made again where they are
used.

The packing is that of ChatGLM2's published checkpoints. For a weight of n rows and k columns:
int8 [n, k], or int4 [n, k / 2] with column 2j in the high and 2j + 1 in the low four bits, two's
complement; and one scale a row, max|row| / 127 or max|row| / 7, without a zero point.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    if bits == 4:
        codes = (codes[:, 0::2] << 4) | (codes[:, 1::2] & 0x0F)
    return codes, scale


def dequantize_rows(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The weight [n, k] in ``dtype``: whole numbers times their row's scale, rounded once."""
    if bits == 4:
        high, low = codes >> 4, (codes << 4) >> 4  # shifting to the right keeps the sign
        codes = torch.stack((high, low), dim=-1).flatten(1)
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    return torch.mul(codes, scale[:, None], out=weight)


class _Frozen(torch.autograd.Function):
    """x W^T + bias, keeping neither x nor the dequantised W for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scale: Tensor, bits: int, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.bits = bits
        return F.linear(x, dequantize_rows(codes, scale, bits, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        codes, scale = ctx.saved_tensors
        weight = dequantize_rows(codes, scale, ctx.bits, gradient.dtype)
        return gradient @ weight, None, None, None, None


class QuantizedLinear(nn.Module):
    """A linear layer that is never trained; use `Int8Linear` or `Int4Linear`.

    ``weight``: int8, packed; ``weight_scale``: float32 [n]; ``bias``: [n] or None. All are
    parameters without a gradient, and the layer passes the gradient on to its input.
    """

    NUMBERS_AT_ONCE: ClassVar[int] = 2**24  # of a weight, while it is quantised
    bits: ClassVar[int]
    weight: nn.Parameter
    weight_scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(weight_scale.float(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Quantise a weight [n, k], some rows at a time, on the device where it is."""
        rows = max(1, cls.NUMBERS_AT_ONCE // weight.shape[1])
        parts = [quantize_rows(part, cls.bits) for part in weight.split(rows)]
        codes, scales = zip(*parts, strict=True)
        return cls(torch.cat(codes), torch.cat(scales), bias)

    @classmethod
    def empty(cls, in_features: int, out_features: int, *, bias: bool) -> Self:
        """A layer whose values are still to be set."""
        weight = torch.empty(out_features, in_features * cls.bits // 8, dtype=torch.int8)
        return cls(weight, torch.empty(out_features), torch.empty(out_features) if bias else None)

    @staticmethod
    def of(bits: int) -> type[QuantizedLinear]:
        """`Int4Linear` or `Int8Linear`."""
        return {4: Int4Linear, 8: Int8Linear}[bits]

    @property
    def in_features(self) -> int:
        return self.weight.shape[1] * 8 // self.bits

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [n, k] in ``dtype``."""
        return dequantize_rows(self.weight, self.weight_scale, self.bits, dtype)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Frozen.apply(x, self.weight, self.weight_scale, self.bits, self.bias)  # type: ignore[no-untyped-call]
        return made

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}"


class Int8Linear(QuantizedLinear):
    """A frozen linear layer with weights of 8 bits."""

    bits = 8


class Int4Linear(QuantizedLinear):
    """A frozen linear layer with weights of 4 bits, two to a byte."""

    bits = 4
