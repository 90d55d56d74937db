"""Keys moved to other positions, by the rotary embedding of the model that they belong to."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from ptkit.errors import CheckpointError
from ptkit.models import LoadedBackbone


@torch.no_grad()
def rotated(loaded: LoadedBackbone, keys: Tensor, by: int) -> Tensor:
    """``keys``, [n, g, p, d], as the model has them ``by`` positions further on.

    Unchanged for a model whose attention knows no positions. Computed in float64, so that turning
    back gives the same numbers but for one rounding. Raises `CheckpointError` for a model that
    knows positions in another way: its keys can't be moved.
    """
    rotary = getattr(loaded.body, "rotary_emb", None)
    home = sys.modules[type(loaded.attentions[0]).__module__]
    apply = getattr(home, "apply_rotary_pos_emb", None)
    if rotary is None or apply is None or hasattr(rotary, "layer_types"):
        _check_free_of_positions(loaded.body)
        return keys
    moved = keys.double()
    places = torch.full((1, 1), by, device=keys.device)
    cos, sin = rotary(moved[:1], places)  # [1, 1, d]
    size = torch.hypot(cos, sin)  # 1, or the factor by which some models stretch queries and keys
    turned: Tensor = apply(moved, moved, cos / size, sin / size)[1]
    return turned.to(keys.dtype)


def _check_free_of_positions(body: nn.Module) -> None:
    for name, module in body.named_modules():
        kind = type(module).__name__
        looked_up = isinstance(module, nn.Embedding) and ("position" in name or "wpe" in name)
        if looked_up or "rotary" in kind.lower():
            raise CheckpointError(
                f"{type(body).__name__} has positions ({name}: {kind}) that can't be moved: PEFT "
                "counts real tokens from the prefix's length on, ptkit from 0"
            )
