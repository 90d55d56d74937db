"""How much memory training takes, from the shape of the backbone and of a micro-batch.

Letters as elsewhere: l layers, n heads, g key/value groups, d head size, h hidden, f MLP width, v
vocabulary, p virtual tokens; t tokens and b rows of the micro-batch, s its longest row; e bytes
of a number (4 in float32, 2 in bfloat16 and float16). For the backward pass autograd keeps, a
layer with frozen weights:

- the input of both norms: 2·4·t·h for the RMS norms of decoders, which work in float32, and 2·e·t·h
  for the layer norms of encoders;
- queries and attended values: 2·e·t·n·d, keys and values: 2·e·t·g·d, and a number a query and
  head: 4·t·n. On a CPU the prefix is copied to the keys and values of every row, 2·e·b·p·g·d more,
  and a decoder's masks are kept once for all layers; on a GPU all rows read one prefix, unmasked;
  tokens that all rows begin with count once, and on a CPU are copied like the prefix;
- the MLP: e·t·f if it is not gated; 2·e·t·f if it is (gate and up), and on a CPU e·t·f more, the
  activated gate, which is made again on a GPU;
- for train.backbone_dropout what attention and MLP dropped: 2·t·h.

Inputs of frozen linears are not kept. Below a decoder's first attention nothing is, so that its
first norm is free, and the norm behind the last layer takes its place. A layer whose activations
are computed again keeps e·t·h. Those are the first layers: when the backward pass gets to them, the
tensors of all others are gone, and they make one layer's again at a time. So that is work of its
own only if no layer keeps its tensors. The backward pass through an MLP works on another 3·e·t·f.

The last states are kept (e·t·h), and for the tokens of the LM head's loss twice more (e·h a
token: the states and their gradient). The loss works on the logits of as many tokens as it takes
at once: twice in float32, and once more, in their own type, if that is smaller; on a GPU, whose
kernel writes the gradient in their place, of four times as many, once in their own type. That is
over before the backward pass through the layers begins, so only the larger of the two counts.

Of a quantised base, the linears of every layer take half a byte or a byte a number and a float32
scale a row, or a float16 scale a group of columns; fp8 takes two bytes and two scales, for its
weights are there in both directions. Embeddings, LM head and norms stay in the backbone's type. A
layer works on a tile of its largest weight, of 2·f·h numbers, made again: e bytes a number on a
GPU, e + 2 on a CPU. Without 8-bit matmuls, fp8 makes all of it again in float32.

Where n processes share the weights (train.shard_base), each keeps the LM head and 1/n of all else.
FSDP2 puts together, besides, what works: the embeddings as long as a pass takes, and a layer at a
time while the next is on its way: head + (all − head)/n + embeddings + 2·linears/l.

The adapter is float32: weights, gradients and AdamW's two averages take 4 bytes a number each;
the prefix's keys and values are made once a step, with a gradient in float32 and a copy in the
backbone's type.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ptkit.batching import LOGITS_AT_ONCE, ON_A_GPU, WEIGHTS_AT_ONCE, WITHOUT_COPIES
from ptkit.records import Geometry
from ptkit.sections import bytes_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
HEADROOM = 0.9  # of the memory that is there; an estimate may be 10 % off
BITS = {"fp8": 16, "int8": 8, "int4": 4, "int4-g64": 4, "int4-g128": 4}  # of a quantised number
GROUPS = {"int4-g64": 64, "int4-g128": 128}  # columns that share a scale; else a row does


@dataclass(frozen=True)
class MicroBatch:
    """The rows that go through the model at once: the tokens of each, how many of all train
    through the LM head (0 if the head has a module of its own), whether layers drop some of their
    numbers, and how many tokens all rows begin with and share as a row of their own."""

    lengths: tuple[int, ...]
    targets: int = 0
    dropout: bool = False
    stem: int = 0

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def computed(self) -> int:
        """The tokens that go through the layers."""
        return self.tokens - (len(self.lengths) - 1) * self.stem


@dataclass(frozen=True)
class Memory:
    """An estimate in bytes, for a device ("cpu", "cuda") and a type of the frozen weights.

    ``recomputed``: layers whose activations are computed again in the backward pass.
    ``optimizer``: gradients and AdamW's averages. ``activations``: what is kept for the backward
    pass. ``logits``: what the loss works on; ``layer``: what, later, a layer's backward pass does.
    """

    device: str
    dtype: str
    recomputed: int
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
    shape, t = geometry, batch.computed
    copies = 0
    if device == "cpu":
        copies = len(batch.lengths) * (prefix + batch.stem) + (prefix if batch.stem else 0)
    numbers = t * shape.heads + (t + copies) * shape.kv_groups
    attention = 2 * size * numbers * shape.head_size + 4 * t * shape.heads
    f, gated = mlp_shape(geometry)
    # a decoder's norms work in float32; compiled, as on a GPU, they keep their inputs as they are
    norms = 2 * (4 if shape.causal and device == "cpu" else size) * t * shape.hidden_size
    dropped = 2 * t * shape.hidden_size if batch.dropout else 0
    inside = 1 if not gated else 3 if device == "cpu" else 2
    return norms + dropped + attention + inside * size * t * f


def mask_bytes(batch: MicroBatch, prefix: int, size: int) -> int:
    """Masks on a CPU, one a length of row, made once for all layers; the stem's queries are in one
    of its own."""
    stem = batch.stem
    rows = sum((s - stem) * (s + prefix) for s in set(batch.lengths))
    return size * (rows + stem * (stem + prefix))


def saved_bytes(
    geometry: Geometry,
    batch: MicroBatch,
    prefix: int,
    size: int,
    device: str = "cpu",
    *,
    recomputed: int = 0,
) -> int:
    """What autograd keeps of the backbone until the backward pass begins; the first ``recomputed``
    layers are computed again."""
    shape, t = geometry, batch.computed
    kept = recomputed * size * t * shape.hidden_size
    kept += (shape.layers - recomputed) * layer_bytes(shape, batch, prefix, size, device)
    if recomputed and shape.causal:
        kept += 4 * t * shape.hidden_size
    masks = mask_bytes(batch, prefix, size) if shape.causal and device == "cpu" else 0
    return kept + masks


def weight_bytes(
    geometry: Geometry,
    size: int,
    quantization: str = "none",
    *,
    on_host: int = 0,
    processes: int = 1,
) -> int:
    """What the frozen weights take; ``size``: bytes of a number that is not quantised.

    ``on_host``: parameters that are not on the device; ``processes``: how many share the weights.
    """
    shape, h = geometry, geometry.hidden_size
    f, gated = mlp_shape(shape)
    width, keys = shape.heads * shape.head_size, shape.kv_groups * shape.head_size
    matrices = 3 if gated else 2
    numbers = shape.layers * h * (2 * width + 2 * keys + matrices * f)
    rest = size * (shape.parameters - numbers - on_host)
    linears = size * numbers
    if quantization in BITS:
        linears = numbers * BITS[quantization] // 8
        if quantization in GROUPS:
            linears += 2 * numbers // GROUPS[quantization]
        else:
            rows = shape.layers * (width + 2 * keys + h + (matrices - 1) * f + h)
            linears += 4 * rows * (2 if quantization == "fp8" else 1)
    if processes == 1:
        return rest + linears
    head = size * shape.vocab_size * h if shape.causal else 0
    embeddings = max(0, rest - head)
    shared = -(-(embeddings + linears) // processes)
    return head + shared + embeddings + 2 * linears // shape.layers


def estimate(
    geometry: Geometry,
    batch: MicroBatch,
    *,
    prefix: int,
    trainable: int,
    device: str,
    dtype: str,
    recomputed: int = 0,
    quantization: str = "none",
    on_host: int = 0,
    processes: int = 1,
) -> Memory:
    """The peak of a training step whose largest micro-batch is ``batch``, and which computes the
    activations of the first ``recomputed`` layers again; ``on_host``, ``processes``: as for
    `weight_bytes`."""
    size, shape, h = BYTES[dtype], geometry, geometry.hidden_size
    width = mlp_shape(shape)[0]
    layer = 3 * size * batch.computed * width
    if quantization == "fp8":
        layer += 4 * 2 * width * h if device == "cpu" else 0
    elif quantization in BITS:
        tile = min(WEIGHTS_AT_ONCE * (ON_A_GPU if device == "cuda" else 1), 2 * width * h)
        layer += tile * (size if device == "cuda" else size + 2)
    if recomputed == shape.layers:
        layer += layer_bytes(shape, batch, prefix, size, device)
    saved = saved_bytes(shape, batch, prefix, size, device, recomputed=recomputed)
    by_kernel = device == "cuda"
    times = WITHOUT_COPIES if by_kernel else 1
    at_once = min(batch.targets, max(1, times * LOGITS_AT_ONCE // shape.vocab_size))
    number = size if by_kernel else 8 if size == 4 else 8 + size
    return Memory(
        device,
        dtype,
        recomputed,
        weights=weight_bytes(shape, size, quantization, on_host=on_host, processes=processes),
        adapter=4 * trainable + (8 + size) * shape.prefix_parameters(prefix),
        optimizer=12 * trainable,
        activations=saved + size * h * (batch.tokens + 2 * batch.targets),
        logits=number * at_once * shape.vocab_size,
        layer=layer,
    )


def by_layers(
    geometry: Geometry,
    batch: MicroBatch,
    *,
    prefix: int,
    trainable: int,
    device: str,
    dtype: str,
    quantization: str = "none",
    on_host: int = 0,
    processes: int = 1,
) -> list[Memory]:
    """`estimate` for 0, 1, … all layers computed again."""
    return [
        estimate(
            geometry,
            batch,
            prefix=prefix,
            trainable=trainable,
            device=device,
            dtype=dtype,
            recomputed=count,
            quantization=quantization,
            on_host=on_host,
            processes=processes,
        )
        for count in range(geometry.layers + 1)
    ]


def layers_to_recompute(use: str, estimates: Sequence[Memory], available: int | None) -> int:
    """How many layers ``train.memory`` lets be computed again: as few as fit.

    ``estimates``: of 0, 1, … all layers (`by_layers`). ``use``: the setting. ``available``: the
    device's memory in bytes for "auto", None where it isn't known, which takes it to be enough. If
    nothing fits, what takes the least.
    """
    if use == "speed":
        return 0
    if use == "small":
        return len(estimates) - 1
    limit = bytes_of(use) if use != "auto" else available
    if limit is None:
        return 0
    share = HEADROOM if use == "auto" else 1.0
    for count, memory in enumerate(estimates):
        if memory.total <= share * limit:
            return count
    return min(range(len(estimates)), key=lambda count: estimates[count].total)


@dataclass(frozen=True)
class Fit:
    """How training fits into a device's memory. ``name``: what the device is called; ``use``: the
    setting train.memory; ``available``: bytes, None if they aren't known; ``memory``: the estimate
    with the layers computed again that the setting asks for; ``least``: with those that take the
    least; ``layers``: all there are; ``rows``: of the largest micro-batch."""

    name: str
    use: str
    available: int | None
    memory: Memory
    least: Memory
    layers: int
    rows: int

    @classmethod
    def of(
        cls, name: str, use: str, available: int | None, estimates: Sequence[Memory], rows: int
    ) -> Fit:
        chosen = estimates[layers_to_recompute(use, estimates, available)]
        least = min(estimates, key=lambda memory: memory.total)
        return cls(name, use, available, chosen, least, len(estimates) - 1, rows)

    @property
    def limit(self) -> int | None:
        """Bytes that training must stay within: the size that is set, or what is available."""
        size = bytes_of(self.use)
        found = [limit for limit in (size, self.available) if limit is not None]
        return min(found, default=None)

    @property
    def fits(self) -> bool | None:
        return None if self.limit is None else self.memory.total <= self.limit

    def __str__(self) -> str:
        """One line: whether it fits, with which layers computed again, and else what to do."""
        there = "" if self.available is None else f", {gib(self.available)}"
        again = {0: "no layer", self.layers: f"all {self.layers} layers"}.get(
            self.memory.recomputed, f"{self.memory.recomputed} of {self.layers} layers"
        )
        line = f"{gib(self.memory.total)} with {again} computed again"
        if self.fits is None:
            return f"{self.name}: {line}"
        if self.fits:
            return f"{self.name}{there}: fits, {line}"
        assert self.limit is not None
        size = "" if self.limit == self.available else f'train.memory = "{self.use}": '
        if self.available is not None and self.least.total <= HEADROOM * self.available:
            todo = 'set train.memory = "auto"'
        elif self.rows > 1:
            todo = "lower train.tokens_per_micro_batch, or take a smaller or quantised base model"
        else:
            todo = "shorten the rows with the settings of the task, or take a quantised base model"
        return f"{self.name}{there}: {size}does not fit, {line}; {todo}"


def gib(number: int) -> str:
    """Bytes to read: ``6.5 GiB``."""
    return f"{number / 2**30:,.{1 if number >= 2**30 else 3}f} GiB"


def memory_of_machine() -> int | None:
    """The computer's own memory in bytes, if the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # no sysconf on Windows
        return None


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
