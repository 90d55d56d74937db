"""The loss of token predictions through a frozen LM head, without keeping its logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptkit.batching import LOGITS_AT_ONCE


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32, others as they are."""
    return tensor.float() if tensor.element_size() < 4 else tensor


class _TokenLoss(torch.autograd.Function):
    """Each token's loss depends on its own hidden state only, so the gradient is made in the
    forward pass, chunk by chunk, and the backward pass is one multiplication."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, lm_head: nn.Module, chunk: int
    ) -> Tensor:
        losses, gradients = [], []
        for h, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            with torch.enable_grad():
                h = h.detach().requires_grad_(ctx.needs_input_grad[0])
                loss = F.cross_entropy(at_least_float32(lm_head(h)), target, reduction="none")
                total = loss.sum()
            losses.append(loss.detach())
            if ctx.needs_input_grad[0]:
                gradients.append(torch.autograd.grad(total, h)[0])
        ctx.save_for_backward(*gradients)
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = torch.cat(ctx.saved_tensors)
        return gradient * grad[:, None].to(gradient.dtype), None, None, None


def token_loss(
    hidden: Tensor, targets: Tensor, lm_head: nn.Module, *, chunk: int | None = None
) -> Tensor:
    """Negative log-likelihood in nats of ``targets`` [n] given ``hidden`` [n, h]: [n] in float32 or
    wider.

    ``lm_head`` must be frozen: no gradient reaches it. ``chunk``: tokens at a time.
    """
    if hidden.shape[0] == 0:
        return at_least_float32(hidden).sum(-1)
    if chunk is None:
        vocabulary = getattr(lm_head, "out_features", 2**16)
        chunk = max(1, LOGITS_AT_ONCE // vocabulary)
    apply: Any = _TokenLoss.apply
    losses: Tensor = apply(hidden, targets, lm_head, chunk)
    return losses
