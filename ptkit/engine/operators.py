"""Operators of torch's that are ours: torch.compile takes them as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

_LIBRARY = torch.library.Library("ptkit", "FRAGMENT")


@cache
def has_triton() -> bool:
    """Whether Triton is installed, as it is with torch's CUDA builds for Linux."""
    return find_spec("triton") is not None


def register(
    name: str, schema: str, function: Callable[..., Any], shapes: Callable[..., Any]
) -> Any:
    """The operator ``ptkit::name``; ``shapes`` makes empty results for tensors without data.

    `torch.library.custom_op` would do the same, but costs more a call.
    """
    _LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ptkit::{name}", shapes, lib=_LIBRARY)
    return getattr(torch.ops.ptkit, name)


def register_gradient(name: str, backward: Callable[..., Any], keep: Callable[..., None]) -> None:
    """``keep`` and ``backward`` as `torch.library.register_autograd` wants them."""
    torch.library.register_autograd(f"ptkit::{name}", backward, setup_context=keep, lib=_LIBRARY)
