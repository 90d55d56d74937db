"""What a training step multiplies, and how fast a device multiplies it when it does nothing else.

Letters as elsewhere: l layers, n heads, g key/value groups, d head size, h hidden, f MLP width, v
vocabulary; t tokens, m of them with a target.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ptkit.engine.measuring import seconds_of
from ptkit.memory import mlp_shape
from ptkit.records import Geometry

ROTATED = 2**28  # bytes of weights that are gone through in turn, so that none is in a cache
MOST_COPIES = 16


def layer_shapes(geometry: Geometry) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of a layer's linears, those that read the same put together.

    Query, key and value; output; gate and up, or up alone; down.
    """
    shape, h = geometry, geometry.hidden_size
    f, gated = mlp_shape(shape)
    width, keys = shape.heads * shape.head_size, shape.kv_groups * shape.head_size
    return ((h, width + 2 * keys), (width, h), (h, 2 * f if gated else f), (f, h))


def step_flops(geometry: Geometry, tokens: int, targets: int) -> int:
    """The floating point operations of a step's linears: forward, and backward to the input.

    A number of a weight costs two operations a token either way. The LM head works on the
    ``targets`` only; frozen weights need no gradient; and of a decoder's first layer query, key and
    value have no backward pass, because nothing below them trains. What attention itself
    multiplies, what is computed twice to save memory, and padding count nothing.

    Worked example: h = 4, n·d = 4, g·d = 2, f = 8 (gated), l = 2, v = 10, 3 tokens, 1 target. A
    layer has 4·8 + 4·4 + 4·16 + 8·4 = 144 numbers. Forward 2·3·2·144 = 1728, backward 2·3·(2·144 −
    4·8) = 1536, LM head 2·2·1·4·10 = 160: 3,424 in all.
    """
    shapes = layer_shapes(geometry)
    numbers = geometry.layers * sum(inputs * outputs for inputs, outputs in shapes)
    first = shapes[0][0] * shapes[0][1]
    head = geometry.hidden_size * geometry.vocab_size
    return 2 * tokens * (2 * numbers - first) + 4 * targets * head


@dataclass(frozen=True)
class MatmulRate:
    """Measured multiplications of a model's own shapes, and nothing else.

    ``flops_per_second``: over one layer and its share of the LM head, for ``tokens`` tokens with
    ``targets`` targets.
    """

    flops_per_second: float
    dtype: str
    tokens: int
    targets: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def measure_matmuls(
    geometry: Geometry, tokens: int, targets: int, *, dtype: str, device: str
) -> MatmulRate:
    """How fast ``device`` does the matmuls of a step of ``tokens`` tokens, forward and backward to
    the input, in ``dtype``.

    The weights are random and as many as a cache can't hold; they are gone when it returns.
    """
    kind: torch.dtype = getattr(torch, dtype)
    seconds = geometry.layers * _seconds_of_layer(geometry, tokens, kind, device)
    flops = 4 * tokens * geometry.layers * sum(i * o for i, o in layer_shapes(geometry))
    if targets:
        seconds += _seconds_of_head(geometry, targets, kind, device)
        flops += 4 * targets * geometry.hidden_size * geometry.vocab_size
    return MatmulRate(flops / seconds, dtype, tokens, targets)


def _seconds_of_layer(geometry: Geometry, tokens: int, dtype: torch.dtype, device: str) -> float:
    shapes = layer_shapes(geometry)
    size = sum(i * o for i, o in shapes) * dtype.itemsize
    copies = min(MOST_COPIES, max(2, -(-ROTATED // size)))
    layers = [[_weight(*pair, dtype, device) for pair in shapes] for _ in range(copies)]
    rows = {n: torch.randn(tokens, n, dtype=dtype, device=device) for pair in shapes for n in pair}

    def one_layer(index: int) -> None:
        for weight in layers[index % copies]:
            outputs, inputs = weight.shape
            torch.mm(rows[inputs], weight.t())
            torch.mm(rows[outputs], weight)

    return seconds_of(one_layer, device)


def _seconds_of_head(geometry: Geometry, targets: int, dtype: torch.dtype, device: str) -> float:
    h, v = geometry.hidden_size, geometry.vocab_size
    head = _weight(h, v, dtype, device)
    states = torch.randn(targets, h, dtype=dtype, device=device)
    logits = torch.randn(targets, v, dtype=dtype, device=device)

    def the_head(_: int) -> None:
        torch.mm(states, head.t())
        torch.mm(logits, head)

    return seconds_of(the_head, device)


def _weight(inputs: int, outputs: int, dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(outputs, inputs, dtype=dtype, device=device).mul_(0.02)
