"""The loss of token predictions and its gradient to their logits, as a Triton kernel.

A program takes a token: through its logits once for the greatest and the sum of exponentials, as in
an online softmax, and once more to write the gradient in their place. Torch's own operators make
all of them anew in float32, twice; here they are read twice and written once, in their own type.
`softmax_losses_by_torch` in `ptkit.engine.loss` is the slow twin.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192
"""Logits that a program takes at once, with 16 warps: two programs to a multiprocessor. An H100
then works on 264 tokens, whose 34 MB (65,024 logits in half precision) its cache holds for the way
back."""


# where a chunk's targets and losses start is no reason to compile the kernel once more
@triton.jit(do_not_specialize_on_alignment=["TARGETS", "LOSSES"])
def _softmax_losses(
    LOGITS, TARGETS, LOSSES, v, logits_n, GRADIENT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    logits = LOGITS + token * logits_n
    target = tl.load(TARGETS + token)
    known = (target >= 0) & (target < v)
    own = tl.load(logits + target, mask=known, other=float("nan")).to(tl.float32)
    target = target.to(tl.int32)
    most = own
    others = 0.0  # the sum of all exponentials but the target's
    for start in range(0, v, BLOCK):
        column = start + tl.arange(0, BLOCK)
        some = tl.load(logits + column, mask=column < v, other=float("-inf")).to(tl.float32)
        some = tl.where(column == target, float("-inf"), some)
        greatest = tl.maximum(most, tl.max(some, 0))
        others = others * tl.exp(most - greatest) + tl.sum(tl.exp(some - greatest), 0)
        most = greatest
    total = others + tl.exp(own - most)
    tl.store(LOSSES + token, most - own + tl.log(total))
    if GRADIENT:
        scale = 1.0 / total
        blocks = tl.cdiv(v, BLOCK)
        for turn in range(blocks):  # from the last, which the cache still has
            column = (blocks - 1 - turn) * BLOCK + tl.arange(0, BLOCK)
            some = tl.load(logits + column, mask=column < v, other=float("-inf")).to(tl.float32)
            made = tl.where(column == target, -others, tl.exp(some - most)) * scale
            tl.store(logits + column, made.to(LOGITS.dtype.element_ty), mask=column < v)


def softmax_losses(
    logits: Tensor, targets: Tensor, *, gradient: bool, block: int = BLOCK
) -> Tensor:
    """[n] of float32: the negative log-likelihoods of ``targets`` [n] given ``logits`` [n, v].

    ``logits``, bf16, fp16 or float32, of any row stride; with ``gradient``, softmax − onehot takes
    their place. At the target that is minus the sum of all other exponentials, so that nothing is
    lost where the softmax rounds to 1. Logits of NaN or plus infinity, and targets that are no
    column, give losses that are not finite. ``block``: a power of two.
    """
    tokens, vocabulary = logits.shape
    if logits.stride(1) != 1 and vocabulary > 1:
        raise ValueError(f"logits must be dense in a row, got strides {logits.stride()}")
    losses = torch.empty(tokens, dtype=torch.float32, device=logits.device)
    block = min(block, triton.next_power_of_2(vocabulary))
    _softmax_losses[(tokens,)](
        logits, targets.contiguous(), losses, vocabulary, logits.stride(0),
        GRADIENT=gradient, BLOCK=block, num_warps=max(1, min(16, block // 512)),
    )  # fmt: skip
    return losses
