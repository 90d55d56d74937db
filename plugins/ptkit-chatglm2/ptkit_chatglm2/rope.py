"""Rotary embeddings that transformers' GLM doesn't have: scaled positions, and the published half
precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

THETA = 10000.0


class PublishedRotary(nn.Module):
    """Cosines and sines as the published code computes them, in the form that GLM takes.

    ``size``: rotated channels. ``divisor`` divides positions, ``factor`` multiplies the base.
    ``angles``: the type of frequencies, positions and their product; ``table``: what cosines and
    sines are rounded to.
    """

    inv_freq: Tensor

    def __init__(
        self,
        size: int,
        *,
        divisor: float = 1.0,
        factor: float = 1.0,
        angles: torch.dtype = torch.float32,
        table: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        exponents = torch.arange(0, size, 2, dtype=angles, device="cpu") / size
        self.register_buffer("inv_freq", 1.0 / (THETA * factor) ** exponents, persistent=False)
        self.divisor = divisor
        self.table = table

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """[b, s] positions to cosines and sines [b, s, size], the halves equal, in x's type."""
        positions = position_ids[..., None].to(self.inv_freq.dtype) / self.divisor
        angles = (positions * self.inv_freq).float()
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(self.table).to(x.dtype), both.sin().to(self.table).to(x.dtype)
