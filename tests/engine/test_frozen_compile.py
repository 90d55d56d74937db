"""Frozen linears under torch.compile: one graph for all numbers of tokens, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import ptkit
from ptkit.batching import WEIGHTS_AT_ONCE
from ptkit.engine import frozen_ops

KINDS = ("fp8", "int8", "int4", "int4-g64", "int4-g128")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(kind: str, *, bias: bool = True) -> nn.Module:
    weight = random(24, 32)
    if kind == "none":
        plain = nn.Linear(32, 24, bias=bias).requires_grad_(False)
        plain.weight.copy_(weight)
        return plain
    return ptkit.QuantizedLinear.of(kind).from_weight(weight, random(24) if bias else None)


class Layer(nn.Module):
    """A norm, a frozen linear and an activation, as they follow each other in a model."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.silu(self.linear(torch.nn.functional.rms_norm(x, (32,))))


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_one_graph_for_all_numbers_of_tokens(kind: str) -> None:
    """From a few tokens to many, past `FEW_TOKENS`, with the same results as without."""
    layer = Layer(layer_of(kind))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (5, 9, frozen_ops.FEW_TOKENS + 6, 200):
        inputs = [random(1, tokens, 32, seed=tokens).requires_grad_() for _ in range(2)]
        outputs = [module(x) for module, x in zip((layer, compiled), inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.backward(random(1, tokens, 24, seed=2))
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert counter.frame_count == 1


def kept(module: nn.Module, x: Tensor) -> list[Tensor]:
    """What autograd keeps of a forward pass."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 32), (1, 7, 32), (2, 7, 32)])
@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_the_backward_pass_keeps_the_layers_own_tensors_alone(
    kind: str, shape: tuple[int, ...], bias: bool
) -> None:
    """Neither the input nor a weight made again; of a plain frozen linear, its weight."""
    layer = layer_of(kind, bias=bias)
    found = kept(layer, random(*shape).requires_grad_())
    own = {parameter.data_ptr(): name for name, parameter in layer.named_parameters()}
    expected = {
        "none": {"weight"},
        "fp8": {"transposed", "transposed_scale"},
    }.get(kind, {"weight", "weight_scale"})
    assert {own.get(tensor.data_ptr(), "another") for tensor in found} == expected


def test_no_gradient_of_a_frozen_weight_is_computed() -> None:
    """In the graph that a compiler gets, the backward pass of a plain linear is one matmul."""
    from torch._functorch.aot_autograd import aot_function, make_boxed_compiler
    from torch._functorch.compilers import nop

    matmuls: list[int] = []

    def backward(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        matmuls.append(sum("mm" in str(node.target) for node in graph.graph.nodes))
        return graph

    layer = layer_of("none")

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    made = aot_function(function, fw_compiler=nop, bw_compiler=make_boxed_compiler(backward))
    made(random(7, 32).requires_grad_(), layer.weight, layer.bias).sum().backward()
    assert matmuls == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_nothing_is_kept(kind: str) -> None:
    layer = layer_of(kind)
    assert kept(layer, random(7, 32)) == []


@pytest.mark.parametrize("kind", ["int8", "int4", "int4-g64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_give_what_the_whole_gives(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = ptkit.QuantizedLinear.of(kind).from_weight(random(24, 384))
    found = []
    for tile in (WEIGHTS_AT_ONCE, 24 * 128):  # 8 rows at a time, and 128 columns
        monkeypatch.setitem(frozen_ops.NUMBERS_AT_ONCE, "cpu", tile)
        x = random(70, 384, seed=2).to(dtype).requires_grad_()
        output = layer(x)
        output.backward(random(70, 24, seed=3).to(dtype))
        found.append((output, x.grad))
    for whole, tiled in zip(*found, strict=True):
        torch.testing.assert_close(whole, tiled)


def test_a_tile_is_all_that_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(frozen_ops.NUMBERS_AT_ONCE, "cpu", 24 * 128)
    shapes: list[torch.Size] = []
    plain = frozen_ops.made_again

    def seen(*args: object) -> Tensor:
        weight = plain(*args)  # type: ignore[arg-type]
        shapes.append(weight.shape)
        return weight

    monkeypatch.setattr(frozen_ops, "made_again", seen)
    layer = ptkit.Int4Linear.from_weight(random(24, 384))
    layer(random(70, 384).requires_grad_()).sum().backward()
    assert shapes == [torch.Size([8, 384])] * 3 + [torch.Size([24, 128])] * 3


@pytest.mark.parametrize("operator", ["quantized_linear", "quantized_linear_backward"])
def test_the_operators_keep_torchs_rules(operator: str) -> None:
    """Fake and real results agree in shape and type, also with sizes that aren't known."""
    layer = ptkit.Int4Group64Linear.from_weight(random(24, 128))
    x = random(2, 5, 128 if operator == "quantized_linear" else 24)
    arguments = (x.requires_grad_(operator == "quantized_linear"), layer.weight, layer.weight_scale)
    torch.library.opcheck(
        getattr(torch.ops.ptkit, operator).default,
        (*arguments, 4),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )
