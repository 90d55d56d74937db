"""The chunked token loss, against cross-entropy on whole logits, gradients included."""

from __future__ import annotations

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


@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_equals_cross_entropy(lm_head: nn.Linear, chunk: int | None) -> None:
    torch.manual_seed(1)
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
    assert lm_head.weight.grad is None


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


@pytest.mark.parametrize("position", [-1, 2])
def test_a_position_that_a_row_has_not(position: int) -> None:
    states = States(torch.randn(5, 4), [3, 2], None, causal=True)
    with pytest.raises(IndexError, match=f"position {position} of row 1, which has 2 tokens"):
        states.at([[0, 2], [1, position]])
    assert states.at([[2, 0], []]).equal(states.hidden[[2, 0]])
    assert states.at([[], []]).shape == (0, 4)
