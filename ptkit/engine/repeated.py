"""The repeated layers of a backbone: compiled once for all of them, and recomputed where memory is
short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from ptkit.engine.rowdropout import enter

Forward = Callable[..., Any]


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _outermost(child)


def _pass(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    enter(layer)
    forward: Forward = type(layer).forward
    return forward(layer, *args, **kwargs)


def _run(layer: nn.Module, args: Any, kwargs: dict[str, Any], *, recompute: bool) -> Any:
    if recompute:
        return checkpoint(
            _pass, layer, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
    return _pass(layer, *args, **kwargs)


class RepeatedLayers:
    """Takes over the forward pass of a body's layers while gradients are wanted.

    Without gradients they run as they are. All share one compiled function, so that there is one
    graph for all and not one a layer: what differs between layers, their prefix included, are
    tensors on their modules.
    """

    def __init__(self, body: nn.Module) -> None:
        self.layers = list(_outermost(body))
        self.recomputed = 0
        self._run: Forward = _run
        for index, layer in enumerate(self.layers):
            layer.forward = self._forward(index, layer)

    def __len__(self) -> int:
        return len(self.layers)

    def _forward(self, index: int, layer: nn.Module) -> Forward:
        plain = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            return self._run(layer, args, kwargs, recompute=index < self.recomputed)

        return forward

    def compile(self, **options: Any) -> None:
        """Compile the layers at their next forward pass, for any number of tokens.

        ``options``: torch.compile's.
        """
        sizes: Any = torch.fx.experimental._config
        numbers: Any = torch._dynamo.config
        compiled = torch.compile(_run, dynamic=True, **options)

        def run(*args: Any, **kwargs: Any) -> Any:
            # sizes that are equal by chance would count as one, and be compiled again when not; a
            # module's floats, such as a norm's epsilon, would be inputs, and worked on by a kernel
            # of the host, which takes a minute to compile
            with sizes.patch(use_duck_shape=False), numbers.patch(specialize_float=True):
                return compiled(*args, **kwargs)

        self._run = run
