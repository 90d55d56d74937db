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


def _through_weight(
    h: Tensor, target: Tensor, weight: Tensor, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The losses of logits h·Wᵀ, and their gradient to h: (softmax − onehot)·W.

    The softmax takes the logits' place. At the target, softmax − 1 is expm1 of the negative loss,
    which is exact where the softmax, rounded to half precision, would be 1.
    """
    logits = F.linear(h, weight)  # [n, v]
    logs = at_least_float32(logits).log_softmax(-1)
    losses = -logs.gather(1, target[:, None])  # [n, 1]
    if not gradient:
        return losses[:, 0], None
    torch.exp(logs, out=logits)
    logits.scatter_(1, target[:, None], torch.expm1(-losses).to(logits.dtype))
    return losses[:, 0], logits @ weight


def _through_module(
    h: Tensor, target: Tensor, lm_head: nn.Module, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The same through any module, such as one that caps its logits."""
    with torch.enable_grad():
        h = h.detach().requires_grad_(gradient)
        loss = F.cross_entropy(at_least_float32(lm_head(h)), target, reduction="none")
        total = loss.sum()
    return loss.detach(), torch.autograd.grad(total, h)[0] if gradient else None


def _plain_weight(lm_head: nn.Module) -> Tensor | None:
    """W, if the module computes x·Wᵀ and nothing else."""
    if type(lm_head) is not nn.Linear or lm_head.bias is not None:
        return None
    hooked = lm_head._forward_hooks or lm_head._forward_pre_hooks or "forward" in vars(lm_head)
    return None if hooked else lm_head.weight


class _TokenLoss(torch.autograd.Function):
    """Each token's loss depends on its own hidden state only, so the gradient is made in the
    forward pass, chunk by chunk, and the backward pass is one multiplication."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, lm_head: nn.Module, chunk: int
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        weight = _plain_weight(lm_head)
        losses, gradients = [], []
        for h, target in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            if weight is None:
                loss, gradient = _through_module(h, target, lm_head, gradient=wanted)
            else:
                loss, gradient = _through_weight(h, target, weight, gradient=wanted)
            losses.append(loss)
            if gradient is not None:
                gradients.append(gradient)
        if wanted:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
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
