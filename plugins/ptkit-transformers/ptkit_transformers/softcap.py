"""The LM head of a model that bends its logits (Gemma 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SoftcappedHead(nn.Module):
    """Logits x as cap·tanh(x / cap)."""

    def __init__(self, head: nn.Linear, cap: float) -> None:
        super().__init__()
        self.head = head
        self.cap = cap
        self.out_features = int(head.out_features)  # the size of the vocabulary

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(self.head(hidden) / self.cap) * self.cap
