"""SwiGLU's kernels against its formula in float64: on a GPU, or in Triton's interpreter where there
is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import ptkit
from ptkit.engine.operators import has_triton
from ptkit.engine.swiglu import _operator as operator

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
needs_triton = pytest.mark.skipif(not has_triton(), reason="needs Triton")
ROUNDED_ONCE = {
    torch.float32: 2e-6,  # the exponential's
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8 if GPU else 2.0**-7,  # the interpreter cuts off what others round
}  # relative errors


def numbers(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=draw)).to(DEVICE, dtype)


def exact(gate_up: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """The values and the gradient, written out: with s = 1 / (1 + exp(-g)), g s u has the
    gradients u s (1 + g (1 - s)) and g s."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    share = 1 / (1 + torch.exp(-gate))
    d_gate = up * share * (1 + gate * (1 - share))
    return gate * share * up, torch.cat([d_gate, gate * share], -1) * d_out.double().repeat(
        *[1] * (d_out.dim() - 1), 2
    )


def check(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    # absolute, because the sum in the gradient nears 0 at g = -1.28
    torch.testing.assert_close(found.double(), wanted, rtol=1.01 * ROUNDED_ONCE[dtype], atol=2e-6)


@needs_triton
@pytest.mark.parametrize("shape", [(3, 2), (2, 5, 74), (1, 2, 2048), (3, 2060)], ids=str)
@pytest.mark.parametrize("dtype", ROUNDED_ONCE, ids=str)
def test_values_and_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Widths of less than a program's 1,024 columns, just as many, and more; each element, so that
    rounding in between would show."""
    gate_up = numbers(*shape, dtype=dtype, seed=0).requires_grad_()
    d_out = numbers(*shape[:-1], shape[-1] // 2, dtype=dtype, seed=1)
    values, gradient = exact(gate_up.detach(), d_out)

    found = operator(gate_up)
    found.backward(d_out)
    assert gate_up.grad is not None
    check(found, values, dtype)
    check(gate_up.grad, gradient, dtype)


@needs_triton
def test_rows_that_lie_apart_and_none() -> None:
    wide = numbers(4, 3, 20, dtype=torch.float32, seed=2)
    for gate_up in (wide[:, ::2, :12], wide.transpose(0, 1), wide[:0]):
        given = gate_up.detach().requires_grad_()
        d_out = numbers(1, dtype=torch.float32, seed=3).expand(*given.shape[:-1], 10)
        d_out = d_out[..., : given.shape[-1] // 2]
        values, gradient = exact(gate_up, d_out)
        found = operator(given)
        check(found, values, torch.float32)
        check(*torch.autograd.grad(found, given, d_out), gradient, torch.float32)


@needs_triton
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's numpy
def test_large_gates() -> None:
    """exp(1000) is more than any float; silu(-1000) is 0 all the same."""
    gate_up = torch.tensor([[-1000.0, 1000.0, 2.0, 2.0]], device=DEVICE, requires_grad=True)
    found = operator(gate_up)
    assert found.tolist() == [[0, 2000]]
    (gradient,) = torch.autograd.grad(found, gate_up, torch.ones_like(found))
    assert gradient.tolist() == [[0, 2, 0, 1000]]


@needs_triton
def test_it_is_an_operator_as_torch_wants_them() -> None:
    """Sizes without data, symbolic ones too, and the gradient through torch.compile's tracing."""
    gate_up = numbers(2, 3, 10, dtype=torch.float32, seed=4).requires_grad_()
    results = torch.library.opcheck(operator, (gate_up,))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_on_a_cpu_nothing_changes(dtype: torch.dtype) -> None:
    """Bit by bit what transformers' GLM computes."""
    from transformers import GlmConfig
    from transformers.models.glm.modeling_glm import GlmMLP

    mlp = GlmMLP(GlmConfig(hidden_size=6, intermediate_size=37)).to(dtype)
    x = numbers(3, 5, 6, dtype=dtype, seed=5).cpu()
    assert torch.equal(mlp.down_proj(ptkit.swiglu(mlp.gate_up_proj(x))), mlp(x))


def test_an_odd_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="holds gate and up, so it must be even, got 5$"):
        ptkit.swiglu(torch.zeros(2, 5))


@needs_gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_beside_torch_on_a_gpu(*, compiled: bool) -> None:
    """ChatGLM2-6B's width in bfloat16, for several numbers of tokens in one graph."""
    counter = CompileCounterWithBackend("inductor")
    function = ptkit.swiglu
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (2, 70, 1900):
        gate_up = numbers(1, tokens, 27392, dtype=torch.bfloat16, seed=6).requires_grad_()
        d_out = numbers(1, tokens, 13696, dtype=torch.bfloat16, seed=7)
        gate, up = gate_up.chunk(2, dim=-1)
        wanted = up * torch.nn.functional.silu(gate)
        (wanted_gradient,) = torch.autograd.grad(wanted, gate_up, d_out)
        found = function(gate_up)
        (gradient,) = torch.autograd.grad(found, gate_up, d_out)
        # torch rounds silu(gate), and in the gradient up * d_out, on the way
        torch.testing.assert_close(found, wanted, rtol=2.0**-6, atol=1e-4)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=2.0**-6, atol=1e-4)
    assert counter.frame_count == compiled


@needs_gpu
def test_float64_stays_float64_on_a_gpu() -> None:
    gate_up = numbers(3, 8, dtype=torch.float64, seed=8)
    values, _ = exact(gate_up, numbers(3, 4, dtype=torch.float64, seed=9))
    torch.testing.assert_close(ptkit.swiglu(gate_up), values, rtol=1e-14, atol=1e-14)
