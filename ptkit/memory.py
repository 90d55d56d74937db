"""How much memory training takes, from the shape of the backbone and of a micro-batch.

Letters as elsewhere: l layers, n heads, g key/value groups, d head size, h hidden, f MLP width, v
vocabulary, p virtual tokens; t tokens and b rows of the micro-batch, s its longest row; e bytes
of a number (4 in float32, 2 in bfloat16 and float16). For the backward pass autograd keeps, a
layer with frozen weights:

- the input of both norms: 2·4·t·h for the RMS norms of decoders, which work in float32, and 2·e·t·h
  for the layer norms of encoders;
- queries and attended values: 2·e·t·n·d, keys and values with the prefix of every row: 2·e·(t +
  b·p)·g·d, and a number a query and head: 4·t·n. On a GPU rows are padded for attention and keys
  and values repeated for every head, so t is b·s and g is n there;
- the MLP: 3·e·t·f if it is gated (gate, up, activated gate), e·t·f if not.

Inputs of frozen linears are not kept. Below a decoder's first attention nothing is, so that its
first norm is free, and the norm behind the last layer takes its place. Checkpointing keeps e·t·h a
layer and that last norm, and makes one layer's tensors again at a time. The backward pass through
an MLP works on another 3·e·t·f.

The last states are kept (e·t·h), and for the tokens of the LM head's loss twice more (e·h a
token: the states and their gradient). The loss works on three float32 copies of the logits of as
many tokens as it takes at once. That is over before the backward pass through the layers begins,
so only the larger of the two counts.

Of a quantised base, the linears of every layer take half a byte or a byte a number and a float32
scale a row; embeddings, LM head and norms stay in the backbone's type. A layer works on the largest
of them made again (2·f·h numbers of e + 2 bytes).

The adapter is float32: weights, gradients and AdamW's two averages take 4 bytes a number each;
the prefix's keys and values are made once a step, with a gradient in float32 and a copy in the
backbone's type.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ptkit.batching import LOGITS_AT_ONCE
from ptkit.records import Geometry

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BITS = {"int8": 8, "int4": 4}  # of a number of a quantised linear


@dataclass(frozen=True)
class MicroBatch:
    """The rows that go through the model at once: the tokens of each, and how many of all train
    through the LM head (0 if the head has a module of its own)."""

    lengths: tuple[int, ...]
    targets: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class Memory:
    """An estimate in bytes, for a device ("cpu", "cuda") and a type of the frozen weights.

    ``optimizer``: gradients and AdamW's averages. ``activations``: what is kept for the backward
    pass. ``logits``: what the loss works on; ``layer``: what, later, a layer's backward pass does.
    """

    device: str
    dtype: str
    checkpointing: bool
    weights: int
    adapter: int
    optimizer: int
    activations: int
    logits: int
    layer: int

    @property
    def total(self) -> int:
        working = max(self.logits, self.layer)
        return self.weights + self.adapter + self.optimizer + self.activations + working

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def mlp_shape(geometry: Geometry) -> tuple[int, bool]:
    """The width inside an MLP, and whether it is gated, as far as the parameters tell."""
    shape, h = geometry, geometry.hidden_size
    # decoders have an embedding and an LM head, encoders embeddings of words and of positions
    second = shape.vocab_size if shape.causal else shape.max_positions
    embeddings = h * (shape.vocab_size + second)
    attention = (2 * shape.heads + 2 * shape.kv_groups) * shape.head_size * h
    mlp = max(h * h, (shape.parameters - embeddings) // shape.layers - attention)
    if shape.ffn_size is None:
        matrices = 3 if shape.causal else 2
        return mlp // (matrices * h), shape.causal
    return shape.ffn_size, mlp > 2.5 * h * shape.ffn_size


def layer_bytes(geometry: Geometry, batch: MicroBatch, prefix: int, size: int, device: str) -> int:
    """What autograd keeps of one layer; ``prefix``: virtual tokens, ``size``: bytes of a number."""
    shape, t, b = geometry, batch.tokens, len(batch.lengths)
    width = shape.heads * shape.head_size
    if device == "cpu":
        queries, keys, groups = t, t + b * prefix, shape.kv_groups
    else:
        queries = b * max(batch.lengths)
        keys, groups = queries + b * prefix, shape.heads
    attention = 2 * size * (queries * width + keys * groups * shape.head_size)
    attention += 4 * queries * shape.heads
    f, gated = mlp_shape(geometry)
    norms = 2 * (4 if shape.causal else size) * t * shape.hidden_size
    return norms + attention + (3 if gated else 1) * size * t * f


def mask_bytes(batch: MicroBatch, prefix: int, size: int, device: str) -> int:
    """Masks are made once for all layers: one a length of row on a CPU, one a row on a GPU."""
    if device == "cpu":
        return size * sum(s * (s + prefix) for s in set(batch.lengths))
    longest = max(batch.lengths)
    return size * len(batch.lengths) * longest * (longest + prefix)


def saved_bytes(
    geometry: Geometry,
    batch: MicroBatch,
    prefix: int,
    size: int,
    device: str = "cpu",
    *,
    checkpointing: bool = False,
) -> int:
    """What autograd keeps of the backbone until the backward pass begins."""
    shape, t = geometry, batch.tokens
    if checkpointing:
        kept = shape.layers * size * t * shape.hidden_size
        kept += 4 * t * shape.hidden_size if shape.causal else 0
    else:
        kept = shape.layers * layer_bytes(shape, batch, prefix, size, device)
    return kept + (mask_bytes(batch, prefix, size, device) if shape.causal else 0)


def weight_bytes(geometry: Geometry, size: int, quantization: str = "none") -> int:
    """What the frozen weights take; ``size``: bytes of a number that is not quantised."""
    shape, h = geometry, geometry.hidden_size
    if quantization not in BITS:
        return size * shape.parameters
    f, gated = mlp_shape(shape)
    width, keys = shape.heads * shape.head_size, shape.kv_groups * shape.head_size
    matrices = 3 if gated else 2
    numbers = shape.layers * h * (2 * width + 2 * keys + matrices * f)
    rows = shape.layers * (width + 2 * keys + h + (matrices - 1) * f + h)
    rest = shape.parameters - numbers
    return size * rest + numbers * BITS[quantization] // 8 + 4 * rows


def estimate(
    geometry: Geometry,
    batch: MicroBatch,
    *,
    prefix: int,
    trainable: int,
    device: str,
    dtype: str,
    checkpointing: bool,
    quantization: str = "none",
) -> Memory:
    """The peak of a training step whose largest micro-batch is ``batch``."""
    size, shape, h = BYTES[dtype], geometry, geometry.hidden_size
    width = mlp_shape(shape)[0]
    layer = 3 * size * batch.tokens * width
    if quantization in BITS:
        layer += (size + 2) * 2 * width * h
    if checkpointing:
        layer += layer_bytes(shape, batch, prefix, size, device)
    saved = saved_bytes(shape, batch, prefix, size, device, checkpointing=checkpointing)
    at_once = min(batch.targets, max(1, LOGITS_AT_ONCE // shape.vocab_size))
    return Memory(
        device,
        dtype,
        checkpointing,
        weights=weight_bytes(shape, size, quantization),
        adapter=4 * trainable + (8 + size) * shape.prefix_parameters(prefix),
        optimizer=12 * trainable,
        activations=saved + size * h * (batch.tokens + 2 * batch.targets),
        logits=12 * at_once * shape.vocab_size,
        layer=layer,
    )


def prefix_parameters(geometry: Geometry, length: int, projection: int | None) -> int:
    """What trains in the prefix; ``projection``: the width of its MLP, None for a flat one."""
    flat = geometry.prefix_parameters(length)
    if projection is None:
        return flat
    width = geometry.prefix_parameters(1)
    return flat + (width + 1) * projection + (projection + 1) * width


def largest(
    batches: Iterable[MicroBatch], geometry: Geometry, prefix: int, device: str
) -> MicroBatch:
    """The micro-batch that takes the most memory on ``device``."""
    return max(
        batches,
        key=lambda batch: saved_bytes(geometry, batch, prefix, 2, device) + 12 * batch.targets,
    )
