"""The MLP with SwiGLU: the kernels that round to 8-bit floats against the operators that they
stand for, on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import ptkit
from ptkit.engine import gated_mlp as module
from ptkit.engine.frozen_float8 import FLOAT8, quantize_float8
from ptkit.engine.operators import has_triton

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
CODES = FLOAT8 if GPU else torch.float32
"""What the kernels write; the interpreter doesn't round to 8-bit floats as a GPU does."""
needs_triton = pytest.mark.skipif(not has_triton(), reason="needs Triton")
needs_float8 = pytest.mark.skipif(
    not GPU or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a GPU that multiplies 8-bit floats",
)


def kernels() -> Any:
    from ptkit.engine import float8_mlp_kernels

    return float8_mlp_kernels


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=draw)).to(DEVICE, dtype)


def layers(h: int, f: int, dtype: torch.dtype = torch.float32) -> list[ptkit.Float8Linear]:
    weights = (
        random(2 * f, h, seed=1, dtype=dtype) / h**0.5,
        random(h, f, seed=2, dtype=dtype) / f**0.5,
    )
    return [ptkit.Float8Linear.from_weight(weight) for weight in weights]


def gradients(gate_up: Tensor, d_out: Tensor) -> Tensor:
    """The gradient of gate_up, by autograd through torch's own operators in float64."""
    exact = gate_up.double().requires_grad_()
    gate, up = exact.chunk(2, dim=-1)
    (found,) = torch.autograd.grad(up * nn.functional.silu(gate), exact, d_out.double())
    return found.to(gate_up.dtype)


def check(found: tuple[Tensor, Tensor], wanted: Tensor) -> None:
    """Codes and scales are those of ``wanted``; a number that lies halfway between two codes may
    fall to either side."""
    codes, scale = found
    expected, scales = quantize_float8(wanted)
    torch.testing.assert_close(scale, scales, rtol=4e-6, atol=0)  # the exponential's
    codes = codes.to(FLOAT8).float()
    assert float((codes == expected.float()).float().mean()) > 0.999
    torch.testing.assert_close(codes, expected.float(), rtol=1 / 7, atol=2.0**-9)


@needs_triton
@pytest.mark.parametrize(("rows", "f"), [(1, 16), (3, 37), (2, 4096), (2, 5000)])
def test_codes_are_those_of_the_operators_apart(rows: int, f: int) -> None:
    """Widths below a program's 4,096 columns, just as many, and more."""
    gate_up, d_out = random(rows, 2 * f, seed=3), random(rows, f, seed=4)
    gate, up = gate_up.double().chunk(2, dim=-1)
    check(kernels().forward(gate_up, CODES), (up * nn.functional.silu(gate)).float())
    check(kernels().backward(d_out, gate_up, CODES), gradients(gate_up, d_out))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "f"), [(1, 16), (3, 37), (2, 5000)])
def test_bit_by_bit_they_are_the_gate_and_a_cast(rows: int, f: int, dtype: torch.dtype) -> None:
    """In half precision the numbers are rounded before their greatest is taken, and before they are
    divided."""
    from ptkit.engine import swiglu_kernels

    gate_up, d_out = random(rows, 2 * f, seed=3, dtype=dtype), random(rows, f, seed=4, dtype=dtype)
    gate_up[2:] = 0
    for found, apart in (
        (kernels().forward(gate_up, CODES), swiglu_kernels.forward(gate_up)),
        (kernels().backward(d_out, gate_up, CODES), swiglu_kernels.backward(d_out, gate_up)),
    ):
        codes, scale = quantize_float8(apart)
        assert torch.equal(found[0].to(FLOAT8).float(), codes.float())
        assert torch.equal(found[1], scale)


@needs_triton
def test_rows_of_zeros_and_what_is_not_finite() -> None:
    gate_up = random(3, 32, seed=5)
    gate_up[0] = 0
    gate_up[1, 20] = float("nan")
    d_out = torch.ones(3, 16, device=DEVICE)
    for codes, scale in (
        kernels().forward(gate_up, CODES),
        kernels().backward(d_out, gate_up, CODES),
    ):
        made = codes.float() * scale[:, None]
        assert made.isnan().any(dim=1).tolist() == [False, True, False]
    codes, _ = kernels().forward(gate_up[:1], CODES)
    assert not codes.float().any()


@needs_triton
def test_no_rows() -> None:
    codes, scale = kernels().forward(torch.zeros(0, 8, device=DEVICE))
    assert (codes.shape, scale.shape) == ((0, 4), (0,))


def test_they_are_operators_as_torch_wants_them() -> None:
    """Sizes without data, symbolic ones too, and the gradient through torch.compile's tracing."""
    gate_up, down = layers(16, 48)
    x, made = random(5, 16, seed=6), random(5, 96, seed=7)
    backward = (gate_up.transposed, gate_up.transposed_scale)
    weights = (down.weight, down.weight_scale, down.transposed, down.transposed_scale)
    # not "test_schema", which multiplies 8-bit floats
    results = torch.library.opcheck(
        module._operator,
        (x.requires_grad_(), made, *backward, *weights),
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    assert set(results.values()) == {"SUCCESS"}
    results = torch.library.opcheck(
        module._backward_operator,
        (*quantize_float8(x.detach()), made, *backward, *weights[2:]),
        test_utils=("test_faketensor",),
    )
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("shape", [(16,), (5, 16), (2, 3, 16)])
@pytest.mark.parametrize("compiled", [False, True])
def test_fused_it_is_the_layers_one_after_another(
    shape: tuple[int, ...], *, compiled: bool
) -> None:
    gate_up, down = layers(16, 48)
    x = random(*shape, seed=8).requires_grad_()
    upstream = random(*shape, seed=9)
    wanted = down(ptkit.swiglu(gate_up(x)))
    (exact,) = torch.autograd.grad(wanted, x, upstream)
    function = module.float8_mlp
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    found = function(x, gate_up, down)
    (gradient,) = torch.autograd.grad(found, x, upstream)
    # a number that lies halfway between two codes may fall to either side
    for got, want in ((found, wanted), (gradient, exact)):
        got, want = got.detach().flatten(), want.detach().flatten()
        torch.testing.assert_close(got, want, rtol=0, atol=0.01 * float(want.abs().max()))
        assert float(nn.functional.cosine_similarity(got, want, 0)) > 0.9999


def test_one_graph_for_all_numbers_of_tokens() -> None:
    """And their gradients, which torch could lose without a word; other widths in than out."""
    gate_up, down = layers(16, 48)
    down = ptkit.Float8Linear.from_weight(random(32, 48, seed=13))
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(module.float8_mlp, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (3, 5, 9):
        x = random(1, tokens, 16, seed=tokens).requires_grad_()
        found = function(x, gate_up, down)
        wanted = module.float8_mlp(x, gate_up, down)
        assert wanted.shape == (1, tokens, 32)
        torch.testing.assert_close(found, wanted)
        pair = [torch.autograd.grad(made.sum(), x)[0] for made in (found, wanted)]
        assert float(pair[0].norm()) > 1
        torch.testing.assert_close(*pair)
    assert counter.frame_count == 1


def test_what_it_keeps() -> None:
    """Besides weights, what the first linear made, and nothing else."""
    gate_up, down = layers(16, 48)
    x = random(5, 16, seed=8).requires_grad_()
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module.float8_mlp(x, gate_up, down)
    assert [shape for shape in kept if shape[0] == 5] == [(5, 96)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_modules_are_called(dtype: torch.dtype) -> None:
    gate_up, down = (
        nn.Linear(6, 74, bias=True, dtype=dtype, device=DEVICE),
        nn.Linear(37, 6, bias=False, dtype=dtype, device=DEVICE),
    )
    x = random(2, 3, 6, seed=10, dtype=dtype)
    assert torch.equal(ptkit.gated_mlp(x, gate_up, down), down(ptkit.swiglu(gate_up(x))))


@needs_float8
@pytest.mark.parametrize("compiled", [False, True])
def test_on_a_gpu_it_is_fused(*, compiled: bool) -> None:
    """ChatGLM2-6B's shape in bfloat16, for several numbers of tokens in one graph."""
    gate_up, down = layers(4096, 13696, torch.bfloat16)
    counter = CompileCounterWithBackend("inductor")
    function = ptkit.gated_mlp
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (3, 70, 1900):
        x = random(1, tokens, 4096, seed=11, dtype=torch.bfloat16).requires_grad_()
        upstream = random(1, tokens, 4096, seed=12, dtype=torch.bfloat16)
        assert module._fused(x, gate_up, down)
        wanted = down(ptkit.swiglu(gate_up(x)))
        (exact,) = torch.autograd.grad(wanted, x, upstream)
        found = function(x, gate_up, down)
        (gradient,) = torch.autograd.grad(found, x, upstream)
        for got, want in ((found, wanted), (gradient, exact)):
            error = (got.double() - want.double()).norm() / want.double().norm()
            assert float(error) < 5e-3
    if compiled:
        assert counter.frame_count == 1
