"""8-bit floats: rounding by hand, both directions beside a float64 twin of the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ptkit
from ptkit.engine.frozen_float8 import float8_matmul, quantize_columns, quantize_float8


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rounding_by_hand() -> None:
    """Eight numbers lie between two powers of two; the largest of the row becomes 448."""
    codes, scale = quantize_float8(torch.tensor([[448.0, 17.0, 19.1, -0.3], [0.0, 7.0, -3.5, 0.0]]))
    assert scale.tolist() == [1.0, 0.015625]  # 7 / 448
    assert codes.float().tolist() == [[448.0, 16.0, 20.0, -0.3125], [0.0, 448.0, -224.0, 0.0]]


def test_rows_of_zeros_and_of_tiny_numbers() -> None:
    """Gradients are as small as that; nothing is divided by zero."""
    codes, scale = quantize_float8(torch.tensor([[0.0, 0.0], [1e-20, -5e-21]]))
    assert codes.float().tolist()[0] == [0.0, 0.0]
    made = codes.float() * scale[:, None]
    torch.testing.assert_close(made[1], torch.tensor([1e-20, -5e-21]), rtol=1e-6, atol=0)


def test_what_is_not_finite_stays_visible() -> None:
    codes, _ = quantize_float8(torch.tensor([[float("inf"), 1.0], [float("nan"), 1.0]]))
    assert codes.float().isnan().any(dim=1).tolist() == [True, True]


@pytest.mark.parametrize("rows_at_once", [1, 4, 100])
def test_columns_are_the_rows_of_the_transposed_weight(rows_at_once: int) -> None:
    weight = random(11, 8)
    codes, scale = quantize_columns(weight, rows_at_once)
    expected, scales = quantize_float8(weight.t())
    assert torch.equal(codes.float(), expected.float())
    assert torch.equal(scale, scales)


def test_the_error_is_a_sixteenth_at_most() -> None:
    """Three bits behind the leading one: half a step is 2⁻⁴ of the number."""
    weight = random(40, 16)
    made = ptkit.Float8Linear.from_weight(weight).dequantized(torch.float32)
    large = weight.abs() > weight.abs().amax(dim=1, keepdim=True) / 1000  # no subnormal numbers
    error = ((made - weight).abs() / weight.abs())[large].max()
    assert 1 / 20 < error < 1 / 16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_directions_are_the_rounded_numbers_product(dtype: torch.dtype) -> None:
    layer = ptkit.Float8Linear.from_weight(random(6, 8).to(dtype), random(6).to(dtype))
    x = random(2, 3, 8, seed=2).to(dtype).requires_grad_()
    gradient = random(2, 3, 6, seed=3).to(dtype)
    output = layer(x)
    output.backward(gradient)
    assert layer.bias is not None
    expected = rounded(x) @ layer.dequantized(torch.float64).t() + layer.bias.double()
    back = rounded(gradient) @ layer.dequantized_backward(torch.float64)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    assert output.dtype == dtype
    assert x.grad is not None
    for got, wanted in ((output, expected), (x.grad, back)):
        bound = tolerance * float(wanted.abs().max())
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=bound)


def rounded(x: Tensor) -> Tensor:
    codes, scale = quantize_float8(x.detach().flatten(0, -2))
    return (codes.double() * scale.double()[:, None]).view(x.shape)


def test_a_token_does_not_change_with_its_neighbours() -> None:
    """The scale is a token's own: an outlier in one leaves the others as they are."""
    layer = ptkit.Float8Linear.from_weight(random(6, 8))
    x = random(3, 8, seed=2)
    alone = float8_matmul(x[:1], layer.weight, layer.weight_scale)
    x[1] *= 1e6
    together = float8_matmul(x, layer.weight, layer.weight_scale)
    torch.testing.assert_close(together[:1], alone, rtol=1e-6, atol=1e-6)


def test_the_two_copies_are_parameters_without_a_gradient() -> None:
    layer = ptkit.Float8Linear.from_weight(random(6, 8), random(6))
    float8, float32 = torch.float8_e4m3fn, torch.float32
    assert {name: (p.dtype, list(p.shape)) for name, p in layer.named_parameters()} == {
        "weight": (float8, [6, 8]),
        "weight_scale": (float32, [6]),
        "transposed": (float8, [8, 6]),
        "transposed_scale": (float32, [8]),
        "bias": (float32, [6]),
    }
    assert not any(p.requires_grad for p in layer.parameters())
    assert repr(layer) == "Float8Linear(in_features=8, out_features=6, fp8)"


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a GPU that multiplies 8-bit floats",
)
@pytest.mark.parametrize("tokens", [1, 16, 23, 300])
def test_a_gpu_multiplies_the_same_numbers(tokens: int) -> None:
    layer = ptkit.Float8Linear.from_weight(random(256, 512).bfloat16())
    x = random(tokens, 512, seed=2).bfloat16().requires_grad_()
    there = x.detach().cuda().requires_grad_()
    gradient = random(tokens, 256, seed=3).bfloat16()
    expected = layer(x)
    expected.backward(gradient)
    output = layer.cuda()(there)
    output.backward(gradient.cuda())
    assert x.grad is not None
    assert there.grad is not None
    for got, wanted in ((output, expected), (there.grad, x.grad)):
        bound = 0.02 * float(wanted.abs().max())
        torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=bound)
