"""From the host to the device, without making either wait for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor | Sequence[Any], device: torch.device) -> Tensor:
    """``values`` on ``device``; a GPU copies them later, when it gets there, from pinned memory.

    A plain ``.to("cuda")`` or ``torch.tensor(…, device="cuda")`` waits until the GPU has done all
    work before it; a head's loss uses this for its labels. Lists, also nested ones, are made
    tensors of torch's own type for them: bool, int64, or float32.
    """
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
