"""Frozen linears of 8 and 4 bits: the packing by hand, the gradient beside a plain linear's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ptkit
from ptkit.engine.frozen import dequantize_rows, quantize_rows


def test_the_packing_by_hand() -> None:
    weight = torch.tensor([[7.0, -7.0, 1.0, -2.0], [0.0, 3.5, 0.4, -0.5]])
    codes, scale = quantize_rows(weight, 4)
    assert scale.tolist() == [1.0, 0.5]
    # the even column in the high four bits: 7 | -7 is 0x79, 1 | -2 is 0x1E; 0 | 7, 1 | -1
    assert codes.view(torch.uint8).tolist() == [[0x79, 0x1E], [0x07, 0x1F]]
    assert dequantize_rows(codes, scale.float(), 4, torch.float32).tolist() == [
        [7.0, -7.0, 1.0, -2.0],
        [0.0, 3.5, 0.5, -0.5],
    ]


def test_eight_bits_by_hand() -> None:
    codes, scale = quantize_rows(torch.tensor([[127.0, -127.0, 3.4, 0.0]]), 8)
    assert codes.dtype == torch.int8
    assert (codes.tolist(), scale.tolist()) == ([[127, -127, 3, 0]], [1.0])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_of_zeros_stays_zero(bits: int, dtype: torch.dtype) -> None:
    layer = ptkit.QuantizedLinear.of(bits).from_weight(torch.zeros(2, 4, dtype=dtype))
    assert layer.dequantized(dtype).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize(("bits", "worst"), [(4, 1 / 14), (8, 1 / 254)])
def test_the_error_is_half_a_step_of_the_row_at_most(bits: int, worst: float) -> None:
    weight = random(40, 16)
    made = ptkit.QuantizedLinear.of(bits).from_weight(weight).dequantized(torch.float32)
    largest = weight.abs().amax(dim=1, keepdim=True)
    error = ((made - weight).abs() / largest).max()
    assert worst / 2 < error < worst * 1.02  # the scale itself is rounded to float16


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [4, 8])
def test_some_rows_at_a_time_are_the_same(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, weight = ptkit.QuantizedLinear.of(bits), random(11, 8)
    whole = kind.from_weight(weight)
    monkeypatch.setattr(kind, "NUMBERS_AT_ONCE", 16)
    parts = kind.from_weight(weight)
    assert torch.equal(whole.weight, parts.weight)
    assert torch.equal(whole.weight_scale, parts.weight_scale)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("biased", [True, False])
def test_output_and_gradient_are_the_dequantised_linears(bits: int, biased: bool) -> None:
    bias = random(6) if biased else None
    layer = ptkit.QuantizedLinear.of(bits).from_weight(random(6, 8), bias)
    plain = nn.Linear(8, 6, bias=biased).requires_grad_(False)
    plain.weight.copy_(layer.dequantized(torch.float32))
    if bias is not None:
        plain.bias.copy_(bias)
    inputs = [random(2, 3, 8).requires_grad_() for _ in range(2)]
    outputs = [module(x) for module, x in zip((layer, plain), inputs, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        (output * random(2, 3, 6)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_backward_pass_keeps_neither_input_nor_weight(bits: int) -> None:
    layer = ptkit.QuantizedLinear.of(bits).from_weight(random(6, 8), random(6))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(random(3, 8).requires_grad_())
    own = {layer.weight.data_ptr(), layer.weight_scale.data_ptr()}
    assert {tensor.data_ptr() for tensor in kept} == own


def test_weights_are_parameters_without_a_gradient() -> None:
    layer = ptkit.Int4Linear.from_weight(random(6, 8), random(6))
    assert {name: p.dtype for name, p in layer.named_parameters()} == {
        "weight": torch.int8,
        "weight_scale": torch.float32,
        "bias": torch.float32,
    }
    assert not any(p.requires_grad for p in layer.parameters())
    assert not list(layer.buffers())
    assert (layer.in_features, layer.out_features) == (8, 6)
    assert repr(layer) == "Int4Linear(in_features=8, out_features=6, bits=4)"


def test_an_empty_layer_has_the_shapes_of_a_filled_one() -> None:
    for kind in (ptkit.Int4Linear, ptkit.Int8Linear):
        filled = kind.from_weight(random(6, 8), random(6))
        empty = kind.empty(8, 6, bias=True)
        for name, value in filled.state_dict().items():
            assert empty.state_dict()[name].shape == value.shape, name
            assert empty.state_dict()[name].dtype == value.dtype, name
        assert kind.empty(8, 6, bias=False).bias is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_each_weight_once(dtype: torch.dtype) -> None:
    layer = ptkit.Int4Linear.from_weight(random(6, 8))
    expected = layer.dequantized(torch.float32).to(dtype)
    assert torch.equal(layer.dequantized(dtype), expected)
    assert layer(random(2, 8).to(dtype)).dtype == dtype
