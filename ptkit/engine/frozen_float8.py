"""Matmuls of 8-bit floats (e4m3) with a scale a token and a scale a row of the weight.

    y[t, n] = s[t] · w[n] · Σ_k x8[t, k] · W8[n, k]
    s[t] = max|x[t]| / 448,  w[n] = max|W[n]| / 448

448 is the largest number of the type. On a GPU that multiplies such numbers (Ada, Hopper and later)
torch's scaled matmul does it; elsewhere the same numbers are multiplied in a longer type, and the
results agree up to the order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
FAST_ACCUMULATION = True
"""Whether the tensor cores add up in their short accumulator, as training in fp8 usually does."""
_MULTIPLE = 16  # of both sides of a weight, for the scaled matmul


def quantize_float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[m, k] as e4m3 [m, k] and float32 scales [m].

    >>> codes, scale = quantize_float8(torch.tensor([[896.0, -3.0]]))
    >>> codes.float().tolist(), scale.tolist()
    ([[448.0, -1.5]], [2.0])
    """
    scale = _scale(rows.abs().amax(dim=-1))
    return (rows.float() / scale[:, None]).to(FLOAT8), scale


def _scale(largest: Tensor) -> Tensor:
    # named numbers of torch: torch.compile takes a module's floats for inputs, and reads them back.
    # A product, because a GPU makes one of the quotient, too: scales are the same everywhere
    scale = largest.float() * (1 / torch.finfo(FLOAT8).max)
    return scale.clamp(min=torch.finfo(torch.float32).tiny)  # of a row of zeros


def quantize_columns(weight: Tensor, rows_at_once: int) -> tuple[Tensor, Tensor]:
    """`quantize_float8` of the transposed ``weight`` [n, k]: e4m3 [k, n] and scales [k].

    Some of its n rows at a time, so that no float32 copy of the whole is made.
    """
    parts = weight.split(rows_at_once)
    largest = torch.stack([part.abs().amax(dim=0) for part in parts]).amax(dim=0)
    scale = _scale(largest)
    codes = torch.empty(weight.shape[::-1], dtype=FLOAT8, device=weight.device)
    for part, place in zip(parts, codes.split(rows_at_once, dim=1), strict=True):
        place.copy_((part.float() / scale).to(FLOAT8).t())
    return codes, scale


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def multiplies_float8() -> bool:
    """Whether the current GPU has 8-bit floats in its tensor cores."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 9)


def fits_float8(weight: Tensor) -> bool:
    """Whether torch's scaled matmul takes a weight [n, k] on the current GPU."""
    return all(size % _MULTIPLE == 0 for size in weight.shape) and multiplies_float8()


def float8_product(
    codes: Tensor,
    own: Tensor,
    weight: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Tensor:
    """[t, n] in ``dtype``, of a tensor that is rounded already: ``codes`` e4m3 [t, k], ``own``
    float32 [t]; the rest as for `float8_matmul`."""
    if codes.is_cuda and fits_float8(weight):
        made = torch._scaled_mm(
            codes,
            weight.t(),
            scale_a=own[:, None],
            scale_b=scale[None, :],
            bias=None if bias is None else bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=FAST_ACCUMULATION,
        )
    else:
        made = (codes.float() @ weight.float().t()) * own[:, None] * scale
        if bias is not None:
            made = made + bias
    return made.to(dtype)


def float8_matmul(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., k] to [..., n] in the type of ``x``; ``weight`` e4m3 [n, k], ``scale`` float32 [n],
    ``bias`` [n] is added."""
    rows, columns = weight.shape
    codes, own = quantize_float8(x.reshape(-1, columns))
    made = float8_product(codes, own, weight, scale, x.dtype, bias)
    return made.view(*x.shape[:-1], rows)


class Float8Matmul(torch.autograd.Function):
    """`float8_matmul` with the gradient of its input, for which a transposed copy is multiplied."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        transposed: Tensor,
        transposed_scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(transposed, transposed_scale)
        return float8_matmul(x, weight, scale, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        transposed, scale = ctx.saved_tensors
        return float8_matmul(gradients[0], transposed, scale), *[None] * 5
