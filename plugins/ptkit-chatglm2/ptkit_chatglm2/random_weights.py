"""Weights that no file holds: for measuring a model's speed and memory at its full size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ptkit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIX = "random:"
STD = 0.02
BLOCK = 2**24 - 3  # numbers that are drawn; a prime, so no two rows of a weight begin alike
_FOLDER = Path(__file__).parent / "random"
_NAMES = ("chatglm2-6b", "chatglm2-tiny")


def resolve(source: str) -> Path | None:
    """The folder behind ``random:chatglm2-…``; None for another name.

    Raises `ptkit.PtkitError` for a shape that there isn't.
    """
    name = source.removeprefix(PREFIX)
    if not source.startswith(PREFIX) or not name.startswith("chatglm"):
        return None
    if name not in _NAMES:
        known = ", ".join(PREFIX + known for known in _NAMES)
        close = ptkit.suggestion(source, [PREFIX + known for known in _NAMES])
        raise ptkit.PtkitError(f"ptkit-chatglm2 has no {source!r}{close}; it has {known}")
    return _FOLDER / name


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], Tensor]]:
    """For each name a function that makes its tensor on the device: weights are N(0, 0.02), those
    of norms 1, biases 0.

    Weights are the same on every device: pieces of one block of numbers that the CPU draws, begun
    at a place of the tensor's own. The device holds the block and what was made, and nothing else.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    block = torch.empty(BLOCK).normal_(0, STD, generator=draw).to(device, dtype)

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            value = 1.0 if "layernorm" in name else 0.0
            return torch.full(shape, value, device=device, dtype=dtype)
        flat = torch.empty(torch.Size(shape).numel(), device=device, dtype=dtype)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        start, done = int.from_bytes(digest[:8], "big") % BLOCK, 0
        while done < len(flat):
            part = block[start : start + len(flat) - done]
            flat[done : done + len(part)] = part
            start, done = 0, done + len(part)
        return flat.view(shape)

    return {name: partial(make, name, shape) for name, shape in shapes.items()}
