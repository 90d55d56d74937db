"""x W^T and g W for weights of 8 or 4 bits, as operators of torch.

To torch.compile each is one operator, so that its graphs depend neither on the tiles nor on the
number of tokens, and to autograd it keeps the codes and scales alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptkit.batching import ON_A_GPU, WEIGHTS_AT_ONCE
from ptkit.engine.frozen_codes import dequantize
from ptkit.engine.operators import has_triton, register, register_gradient

NUMBERS_AT_ONCE = {"cpu": WEIGHTS_AT_ONCE, "cuda": WEIGHTS_AT_ONCE * ON_A_GPU}
"""Of a weight, that are made again at once. An H100 has cache for 2^24 of them, but writes them out
all the same, and multiplies by a whole weight of 27,392 rows a fifth faster than by seven parts of
it."""

FEW_TOKENS = 64
"""Up to so many tokens a kernel reads the codes in the matmul itself; above, tiles are faster."""

_COLUMNS = 128  # the longest group: tiles of columns end where groups end


def made_again(codes: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """`dequantize`, on a GPU in one pass."""
    if codes.is_cuda and has_triton():
        from ptkit.engine.frozen_kernels import dequantize_codes

        return dequantize_codes(codes, scale, bits, dtype)
    return dequantize(codes, scale, bits, dtype)


def _at_once(device: torch.device) -> int:
    return NUMBERS_AT_ONCE.get(device.type, WEIGHTS_AT_ONCE)


def _linear(
    x: Tensor, codes: Tensor, scale: Tensor, bits: int, bias: Tensor | None = None
) -> Tensor:
    rows, columns = codes.shape[0], codes.shape[1] * 8 // bits
    flat = x.reshape(-1, columns)
    if x.is_cuda and len(flat) <= FEW_TOKENS and has_triton():
        from ptkit.engine.frozen_kernels import few_tokens, fits

        if fits(scale, columns):
            product = few_tokens(flat, codes, scale, bits).view(*x.shape[:-1], rows)
            return product if bias is None else product.add_(bias)
    made = flat.new_empty(len(flat), rows)
    for part in _parts(rows, max(1, _at_once(x.device) // columns)):
        weight = made_again(codes[part], scale[part], bits, x.dtype)
        if bias is None:
            torch.mm(flat, weight.t(), out=made[:, part])
        else:
            torch.addmm(bias[part], flat, weight.t(), out=made[:, part])
    return made.view(*x.shape[:-1], rows)


def _linear_backward(gradient: Tensor, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    rows, columns = codes.shape[0], codes.shape[1] * 8 // bits
    flat = gradient.reshape(-1, rows)
    made = flat.new_empty(len(flat), columns)
    # tiles of columns: each number of the result is one sum, not a sum of rounded ones
    for part in _parts(columns, max(1, _at_once(gradient.device) // rows // _COLUMNS) * _COLUMNS):
        bytes_ = slice(part.start * bits // 8, part.stop * bits // 8)
        scales = scale
        if scale.dim() == 2:
            group = columns // scale.shape[1]
            scales = scale[:, part.start // group : part.stop // group]
        weight = made_again(codes[:, bytes_], scales, bits, gradient.dtype)
        torch.mm(flat, weight, out=made[:, part])
    return made.view(*gradient.shape[:-1], columns)


def _parts(total: int, at_once: int) -> list[slice]:
    starts = range(0, total, at_once)
    return [slice(start, min(start + at_once, total)) for start in starts]


def _linear_shapes(
    x: Tensor, codes: Tensor, scale: Tensor, bits: int, bias: Tensor | None = None
) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


def _linear_backward_shapes(gradient: Tensor, codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    return gradient.new_empty(*gradient.shape[:-1], codes.shape[1] * 8 // bits)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, codes, scale, ctx.bits, *_ = inputs  # no bias if it is None
    ctx.save_for_backward(codes, scale)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
    codes, scale = ctx.saved_tensors
    made = _quantized_linear_backward(gradient, codes, scale, ctx.bits)
    return made, None, None, None, None


_quantized_linear = register(
    "quantized_linear",
    "(Tensor x, Tensor codes, Tensor scale, int bits, Tensor? bias=None) -> Tensor",
    _linear,
    _linear_shapes,
)
_quantized_linear_backward = register(
    "quantized_linear_backward",
    "(Tensor gradient, Tensor codes, Tensor scale, int bits) -> Tensor",
    _linear_backward,
    _linear_backward_shapes,
)
register_gradient("quantized_linear", _backward, _keep)


def quantized_linear(
    x: Tensor, codes: Tensor, scale: Tensor, bits: int, bias: Tensor | None = None
) -> Tensor:
    """[..., k] to [..., n] in the type of ``x``, with ``bias`` [n] added; see
    `ptkit.engine.frozen_codes` for the rest."""
    made: Tensor = _quantized_linear(x, codes, scale, bits, bias)
    return made
