"""The loss of token predictions through a frozen LM head, without keeping its logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptkit.batching import LOGITS_AT_ONCE, WITHOUT_COPIES
from ptkit.engine.operators import has_triton


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision tensors as float32, others as they are."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def softmax_losses_by_torch(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """`ptkit.engine.loss_kernels.softmax_losses` on any device and in any type.

    At the target, softmax − 1 is expm1 of the negative loss, which is exact where the softmax,
    rounded to half precision, would be 1.
    """
    logs = at_least_float32(logits).log_softmax(-1)
    losses = -logs.gather(1, targets[:, None])  # [n, 1]
    if gradient:
        torch.exp(logs, out=logits)
        logits.scatter_(1, targets[:, None], torch.expm1(-losses).to(logits.dtype))
    return losses[:, 0]


def _has_kernel(tensor: Tensor) -> bool:
    return tensor.is_cuda and tensor.element_size() <= 4 and has_triton()


def _softmax_losses(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """The losses [n]; if ``gradient``, softmax − onehot takes the logits' place."""
    if _has_kernel(logits):
        from ptkit.engine.loss_kernels import softmax_losses

        return softmax_losses(logits, targets, gradient=gradient)
    return softmax_losses_by_torch(logits, targets, gradient=gradient)


def _through_weight(h: Tensor, target: Tensor, weight: Tensor, gradient: Tensor | None) -> Tensor:
    """The losses of logits h·Wᵀ; into ``gradient`` [n, h] theirs to h: (softmax − onehot)·W."""
    logits = F.linear(h, weight)  # [n, v]
    losses = _softmax_losses(logits, target, gradient=gradient is not None)
    if gradient is not None:
        torch.mm(logits, weight, out=gradient)
    return losses


def _through_module(
    h: Tensor, target: Tensor, lm_head: nn.Module, gradient: Tensor | None
) -> Tensor:
    """The same through any module, such as one that caps its logits."""
    with torch.enable_grad():
        h = h.detach().requires_grad_(gradient is not None)
        loss = F.cross_entropy(at_least_float32(lm_head(h)), target, reduction="none")
        total = loss.sum()
    if gradient is not None:
        gradient.copy_(torch.autograd.grad(total, h)[0])
    return loss.detach()


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
        weight = _plain_weight(lm_head)
        losses = hidden.new_empty(len(hidden), dtype=at_least_float32(hidden[:0]).dtype)
        gradient = None
        if ctx.needs_input_grad[0]:
            gradient = hidden.new_empty(hidden.shape)
            ctx.save_for_backward(gradient)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            into = None if gradient is None else gradient[part]
            if weight is None:
                losses[part] = _through_module(hidden[part], targets[part], lm_head, into)
            else:
                losses[part] = _through_weight(hidden[part], targets[part], weight, into)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # multiplied in the wider of both types, and rounded once
        scaled = torch.mul(gradient, grad[:, None], out=torch.empty_like(gradient))
        return scaled, None, None, None


def token_loss(
    hidden: Tensor, targets: Tensor, lm_head: nn.Module, *, chunk: int | None = None
) -> Tensor:
    """Negative log-likelihood in nats of ``targets`` [n] given ``hidden`` [n, h]: [n] in float32 or
    wider.

    ``lm_head`` must be frozen: no gradient reaches it. ``chunk``: tokens at a time. Raises
    `ValueError` if there isn't one target a state.
    """
    if targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"token_loss() takes one target a state: got {list(targets.shape)} targets "
            f"for states {list(hidden.shape)}"
        )
    if hidden.shape[0] == 0:
        return at_least_float32(hidden).sum(-1)
    if chunk is None:
        vocabulary = getattr(lm_head, "out_features", 2**16)
        by_kernel = _plain_weight(lm_head) is not None and _has_kernel(hidden)
        chunk = max(1, (WITHOUT_COPIES if by_kernel else 1) * LOGITS_AT_ONCE // vocabulary)
    apply: Any = _TokenLoss.apply
    losses: Tensor = apply(hidden, targets, lm_head, chunk)
    return losses
