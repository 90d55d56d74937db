"""The kernel of the token loss against float64: on a GPU if there is one, else in Triton's
interpreter; and on a GPU the whole loss against its slow twin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptkit.engine import loss as loss_module
from ptkit.engine.loss import softmax_losses_by_torch, token_loss

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
pytest.importorskip("triton")
kernels = pytest.importorskip("ptkit.engine.loss_kernels")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# tokens, vocabulary, logits at once
SHAPES = {
    "ragged-tail": (5, 100, 32),
    "whole-blocks": (3, 128, 32),
    "one-token": (1, 64, 16),
    "less-than-a-block": (4, 7, 32),
    "one-column": (2, 1, 32),
    "as-it-is-used": (2, kernels.BLOCK + 9, kernels.BLOCK),
}
NUMPYS_WARNINGS = "ignore::RuntimeWarning:triton"  # the interpreter's, of infinity less infinity
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")


def reference(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [n] and their gradient [n, v] in float64, small differences from one included."""
    exact = logits.double()
    total = exact.logsumexp(-1)
    own = F.one_hot(targets, exact.shape[1]).bool()
    others = exact.masked_fill(own, float("-inf")).logsumexp(-1)
    gradient = torch.where(own, -(others - total).exp()[:, None], (exact - total[:, None]).exp())
    return F.cross_entropy(exact, targets, reduction="none"), gradient


def assert_right(logits: Tensor, targets: Tensor, block: int) -> None:
    wanted, gradient = reference(logits, targets)
    dtype = logits.dtype
    losses = kernels.softmax_losses(logits, targets, gradient=True, block=block)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), wanted, rtol=2e-6, atol=2e-6)
    rounding = {torch.float32: 1e-5}.get(dtype, 0.51 * torch.finfo(dtype).eps)
    if dtype == torch.bfloat16 and not GPU:
        rounding *= 2  # the interpreter cuts bits off
    smallest = max(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, 1e-37)
    torch.testing.assert_close(logits.double(), gradient, rtol=rounding, atol=smallest)


def drawn(tokens: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(tokens, vocabulary, generator=draw)
    targets = torch.randint(0, vocabulary, (tokens,), generator=draw)
    return logits.to(DEVICE, dtype), targets.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_losses_and_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, vocabulary, block = shape
    assert_right(*drawn(tokens, vocabulary, dtype), block)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", [0, 50, 99])
def test_where_the_softmax_rounds_to_one(target: int, dtype: torch.dtype) -> None:
    """99 others at e^-12 of the target's: 1 - softmax = 99 e^-12 / (1 + 99 e^-12) = 6.08e-4."""
    logits = torch.zeros(2, 100, device=DEVICE, dtype=dtype)
    logits[0, target] = 12
    logits[1, target] = 40  # 4.2e-16, which float32 can't take from 1 either
    targets = torch.full((2,), target, device=DEVICE)
    assert_right(logits, targets, 32)
    assert float(logits[0, target]) == pytest.approx(-6.08e-4, rel=1e-2)
    if dtype != torch.float16:  # whose smallest number is 6e-8
        assert float(logits[1, target]) == pytest.approx(-4.2e-16, rel=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("away", [-20_000.0, 20_000.0])
def test_huge_logits(away: float, dtype: torch.dtype) -> None:
    logits, targets = drawn(3, 100, dtype)
    logits[0] += away
    logits[1, targets[1]] = away
    logits[2] *= 1_000
    assert_right(logits, targets, 32)


@pytest.mark.parametrize("gradient", [False, True])
def test_rows_may_lie_apart(gradient: bool) -> None:
    """And without a gradient the logits stay as they are."""
    values, targets = drawn(4, 50, torch.float32)
    wide = torch.full((4, 64), 7.0, device=DEVICE)
    wide[:, :50] = values
    twin = values.clone()
    losses = kernels.softmax_losses(wide[:, :50], targets, gradient=gradient, block=16)
    wanted = softmax_losses_by_torch(twin, targets, gradient=gradient)
    torch.testing.assert_close(losses, wanted)
    torch.testing.assert_close(wide[:, :50], twin)
    assert (wide[:, 50:] == 7).all()
    assert wide[:, :50].equal(values) != gradient


def test_columns_may_not() -> None:
    logits = torch.zeros(7, 4, device=DEVICE).t()
    targets = torch.zeros(4, dtype=torch.long, device=DEVICE)
    with pytest.raises(ValueError, match=r"dense in a row, got strides \(1, 4\)"):
        kernels.softmax_losses(logits, targets, gradient=False)


@pytest.mark.filterwarnings(NUMPYS_WARNINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 40, 99])  # the target's is 40
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float, column: int, dtype: torch.dtype) -> None:
    logits, _ = drawn(3, 100, dtype)
    targets = torch.full((3,), 40, device=DEVICE)
    wanted, _ = reference(logits, targets)
    logits[1, column] = value
    losses = kernels.softmax_losses(logits, targets, gradient=True, block=32)
    assert losses.isfinite().tolist() == [True, False, True]
    assert logits.isfinite().all(1).tolist() == [True, False, True]
    torch.testing.assert_close(losses[::2].double(), wanted[::2], rtol=2e-6, atol=2e-6)


@pytest.mark.filterwarnings(NUMPYS_WARNINGS)
def test_all_of_a_row_not_finite() -> None:
    logits = torch.stack([torch.full((50,), float(v)) for v in ("nan", "inf", "-inf")]).to(DEVICE)
    targets = torch.tensor([3, 3, 3], device=DEVICE)
    assert not kernels.softmax_losses(logits, targets, gradient=True, block=16).isfinite().any()


def test_tokens_that_are_ruled_out() -> None:
    """Minus infinity elsewhere counts nothing; at the target the loss is infinite."""
    logits, targets = drawn(2, 50, torch.float32)
    targets[:] = 20
    logits[0, :20] = float("-inf")
    logits[1, 20] = float("-inf")
    wanted, gradient = reference(logits, targets)
    losses = kernels.softmax_losses(logits, targets, gradient=True, block=16)
    assert losses[1] == float("inf")
    torch.testing.assert_close(losses.double(), wanted, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(logits.double(), gradient, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("target", [-1, -100, 50, 2**32 + 3])
def test_a_target_that_is_no_column_has_no_finite_loss(target: int) -> None:
    logits, targets = drawn(3, 50, torch.float32)
    wanted, _ = reference(logits, targets)
    targets[1] = target
    losses = kernels.softmax_losses(logits, targets, gradient=True, block=16)
    assert losses.isfinite().tolist() == [True, False, True]
    torch.testing.assert_close(losses[::2].double(), wanted[::2], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_loss_through_the_kernel(
    dtype: torch.dtype, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU too, where `token_loss` itself would take the slow twin."""
    monkeypatch.setattr(loss_module, "_softmax_losses", kernels.softmax_losses)
    lm_head, hidden, targets, weights = problem(7, 6, 50, dtype)
    losses, gradient = loss_and_gradient(hidden, targets, lm_head, weights, chunk)
    exact = hidden.detach().double().requires_grad_()
    logits = torch.cat([lm_head(h.detach()) for h in hidden.split(chunk or 7)])  # rounded alike
    wanted = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(losses.double(), wanted, rtol=2e-6, atol=2e-6)
    plain = F.cross_entropy(F.linear(exact, lm_head.weight.double()), targets, reduction="none")
    (plain * weights).sum().backward()
    assert exact.grad is not None
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative(gradient, exact.grad) < bound


def problem(
    tokens: int, width: int, vocabulary: int, dtype: torch.dtype
) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head, hidden states, targets, and what is behind each token's loss."""
    torch.manual_seed(0)
    lm_head = nn.Linear(width, vocabulary, bias=False).to(DEVICE, dtype).requires_grad_(False)
    hidden = (4 * torch.randn(tokens, width)).to(DEVICE, dtype).requires_grad_()
    targets = torch.randint(0, vocabulary, (tokens,)).to(DEVICE)
    return lm_head, hidden, targets, torch.rand(tokens).to(DEVICE)


def loss_and_gradient(
    hidden: Tensor, targets: Tensor, lm_head: nn.Module, weights: Tensor, chunk: int | None
) -> tuple[Tensor, Tensor]:
    losses = token_loss(hidden, targets, lm_head, chunk=chunk)
    (gradient,) = torch.autograd.grad(losses, hidden, weights)
    return losses, gradient


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def forbidden(*given: Any, **settings: Any) -> Tensor:
    raise AssertionError("the slow twin was called")


@pytest.fixture
def _exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@needs_gpu
@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize("vocabulary", [65_024, 50_257])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
def test_on_a_gpu_it_equals_its_twin(
    dtype: torch.dtype, bound: float, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for the GPU either."""
    lm_head, hidden, targets, weights = problem(70, 256, vocabulary, dtype)
    given = (hidden, targets, lm_head, weights, 32)
    with monkeypatch.context() as patch:
        patch.setattr(loss_module, "softmax_losses_by_torch", forbidden)
        loss_and_gradient(*given)  # compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            losses, gradient = loss_and_gradient(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    monkeypatch.setattr(loss_module, "has_triton", lambda: False)
    wanted, twin = loss_and_gradient(*given)
    torch.testing.assert_close(losses, wanted, rtol=1e-5, atol=1e-5)
    assert relative(gradient, twin) < bound


@needs_gpu
def test_on_a_gpu_float64_takes_the_twin() -> None:
    lm_head, hidden, targets, weights = problem(5, 6, 50, torch.float64)
    losses, _ = loss_and_gradient(hidden, targets, lm_head, weights, None)
    assert losses.dtype == torch.float64


@needs_gpu
def test_on_a_gpu_the_logits_are_never_made_in_float32() -> None:
    lm_head, hidden, targets, weights = problem(64, 64, 65_536, torch.bfloat16)
    loss_and_gradient(hidden, targets, lm_head, weights, None)  # compiled
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss_and_gradient(hidden, targets, lm_head, weights, None)
    logits = 2 * 64 * 65_536  # bytes
    assert logits <= torch.cuda.max_memory_allocated() - before < 1.5 * logits
