"""The chunked token loss, against cross-entropy on whole logits, gradients included."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptkit.engine.loss import token_loss
from ptkit.engine.states import States


@pytest.fixture
def lm_head() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 11, bias=False).double().requires_grad_(False)


class Capped(nn.Module):
    """A head of another kind: logits bent to ±2."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 2 * torch.tanh(self.linear(hidden) / 2)


def biased(linear: nn.Linear) -> nn.Linear:
    made = nn.Linear(6, 11).double().requires_grad_(False)
    made.weight.copy_(linear.weight)
    return made


def hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda module, given, made: made / 3)
    return linear


@pytest.mark.parametrize("kind", [lambda linear: linear, Capped, biased, hooked])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_equals_cross_entropy(
    lm_head: nn.Linear, chunk: int | None, kind: Callable[[nn.Linear], nn.Module]
) -> None:
    torch.manual_seed(1)
    lm_head = kind(lm_head)
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    twin = hidden.detach().clone().requires_grad_()
    targets = torch.randint(0, 11, (7,))
    weights = torch.rand(7)  # every token may be weighed differently behind the function
    losses = token_loss(hidden, targets, lm_head, chunk=chunk)
    plain = F.cross_entropy(lm_head(twin), targets, reduction="none")
    torch.testing.assert_close(losses, plain)
    (losses * weights).sum().backward()
    (plain * weights).sum().backward()
    torch.testing.assert_close(hidden.grad, twin.grad)
    assert all(parameter.grad is None for parameter in lm_head.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(lm_head: nn.Linear, dtype: torch.dtype) -> None:
    """Against float64 on the same rounded logits, also where the target's softmax is almost 1."""
    torch.manual_seed(1)
    lm_head = lm_head.to(dtype)
    hidden = (4 * torch.randn(40, 6)).to(dtype).requires_grad_()
    logits = lm_head(hidden).double()
    targets = logits.argmax(-1)
    losses = token_loss(hidden, targets, lm_head, chunk=16)
    assert losses.dtype == torch.float32
    wanted = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-5, atol=1e-6)
    losses.sum().backward()
    steps = logits.softmax(-1) - F.one_hot(targets, 11)
    expected = steps.to(dtype).float() @ lm_head.weight.float()
    # float32 rounds the sum, the others each of eleven products' sum to their own type at the end
    torch.testing.assert_close(
        hidden.grad.float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-4
    )


def test_the_gradient_is_one_matmul_from_the_logits_memory(
    lm_head: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain head is never called, and neither is autograd inside."""
    monkeypatch.setattr(torch.autograd, "grad", None)
    hidden = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    token_loss(hidden, torch.tensor([1, 2, 3]), lm_head).sum().backward()
    assert hidden.grad is not None


def test_without_gradients_none_are_made(lm_head: nn.Linear) -> None:
    hidden = torch.randn(3, 6, dtype=torch.float64)
    losses = token_loss(hidden, torch.tensor([1, 2, 3]), lm_head, chunk=2)
    assert not losses.requires_grad
    torch.testing.assert_close(
        losses, F.cross_entropy(lm_head(hidden), torch.tensor([1, 2, 3]), reduction="none")
    )


def test_no_targets_give_no_losses_but_a_gradient(lm_head: nn.Linear) -> None:
    hidden = torch.zeros(0, 6, dtype=torch.float64, requires_grad=True)
    losses = token_loss(hidden, torch.zeros(0, dtype=torch.long), lm_head)
    assert losses.shape == (0,)
    losses.sum().backward()


@pytest.mark.parametrize("shape", [(2,), (4,), (3, 1)])
def test_one_target_a_state(lm_head: nn.Linear, shape: tuple[int, ...]) -> None:
    targets = torch.zeros(shape, dtype=torch.long)
    message = f"one target a state: got {list(shape)} targets for states [3, 6]"
    with pytest.raises(ValueError, match=re.escape(message)):
        token_loss(torch.zeros(3, 6, dtype=torch.float64), targets, lm_head)


def test_the_backward_pass_rounds_once(lm_head: nn.Linear) -> None:
    """A gradient of 1/3 behind the function is not rounded to bf16 before it is multiplied."""
    lm_head = lm_head.to(torch.bfloat16)
    hidden = torch.randn(3, 6).bfloat16().requires_grad_()
    losses = token_loss(hidden, torch.tensor([1, 2, 3]), lm_head)
    (one,) = torch.autograd.grad(losses.sum(), hidden, retain_graph=True)
    (third,) = torch.autograd.grad(losses.mean(), hidden)
    assert third.equal((one.double() / 3).bfloat16())


@pytest.mark.parametrize("position", [-1, 2])
def test_a_position_that_a_row_has_not(position: int) -> None:
    states = States(torch.randn(5, 4), [3, 2], None, causal=True)
    with pytest.raises(IndexError, match=f"position {position} of row 1, which has 2 tokens"):
        states.at([[0, 2], [1, position]])
    assert states.at([[2, 0], []]).equal(states.hidden[[2, 0]])
    assert states.at([[], []]).shape == (0, 4)
