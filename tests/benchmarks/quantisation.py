"""What the rounding of frozen weights changes, takes and costs: a line of JSON a measurement.

    python tests/benchmarks/quantisation.py --device cuda [--part gradients] [--kinds fp8 int4]

- ``gradients``: of every kind, the cosine of the gradients of a prefix's keys and values with those
  of every kind before it, on 16 rows of ADGEN-like length; and the GiB of the weights.
- ``linears``: seconds of one layer's linears, forward alone, and forward and backward, at several
  numbers of tokens; for whole numbers made again by tiles, and inside the matmul.
- ``tiles``: the same at 1,920 tokens for several sizes of a tile.
- ``cuts``: the matmul of few tokens, a weight at a time, for several ways to cut it; GPU only.

A kind is loaded, measured and dropped before the next. Without ``--device cuda`` the model and the
layers are small, which shows that the script works and no more.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import ptkit_chatglm2
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from torch import Tensor, nn

import ptkit
from ptkit.engine import frozen_ops
from ptkit.engine.model import Model
from ptkit.records import IGNORE, EncodedRow, Row

KINDS: tuple[str, ...] = get_args(ptkit.Quantization)
TOKENS = (1920, 256, 128, 64, 16, 1)
TILES = (2**22, 2**23, 2**24, 2**25, 2**26, 2**27)
ROWS, PREFIX = 16, 128
MOST_FEW = 128  # tokens that the kernel inside the matmul is tried with


def show(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def model_of(source: str, kind: str, device: str) -> Model:
    folder = ptkit_chatglm2.ptkit_resolve_source(source) or Path(source)
    place = ptkit.SourcePath(source, folder)
    backbone = ChatGLM2(ChatGLM2.Settings(source=place, quantization=kind))
    dtype = "float32" if device == "cpu" else "bfloat16"
    loaded = backbone.load(device, dtype)
    return Model(loaded, backbone.geometry, pad_id=0, eos_id=2)


def rows_of(vocabulary: int, count: int, longest: int) -> list[tuple[int, ...]]:
    """45 tokens of a question and 75 of an answer on average, as ADGEN has."""
    draw = torch.Generator().manual_seed(1)
    lengths = torch.normal(120.0, 22.0, (count,), generator=draw).clamp(20, 192).long()
    found = []
    for length in lengths.clamp(max=longest).tolist():
        found.append(tuple(torch.randint(3, vocabulary, (length,), generator=draw).tolist()))
    return found


def gradient(model: Model, rows: Sequence[tuple[int, ...]], prefix_length: int) -> Tensor:
    """Of the mean loss of the answers, for all keys and values of a prefix N(0, 0.02)."""
    shape, draw = model.geometry, torch.Generator().manual_seed(2)
    size = (2 * shape.layers, 1, shape.kv_groups, prefix_length, shape.head_size)
    leaf = (torch.randn(size, generator=draw) * 0.02).to(model.device).requires_grad_()
    parts = leaf.unbind()
    with model.using(list(zip(parts[0::2], parts[1::2], strict=True))):
        encoded = [EncodedRow(Row(row), index) for index, row in enumerate(rows)]
        labels = [[*[IGNORE] * (len(row) // 3), *row[len(row) // 3 :]] for row in rows]
        losses, _ = model.states(encoded).token_loss(labels)
        losses.mean().backward()
    assert leaf.grad is not None
    return leaf.grad.flatten().double().cpu()


def measure_gradients(source: str, kinds: Sequence[str], device: str) -> None:
    found: dict[str, Tensor] = {}
    for kind in kinds:
        clean(device)
        started = time.perf_counter()
        model = model_of(source, kind, device)
        loading = time.perf_counter() - started
        modules = {id(p): p for m in model.frozen_modules() for p in m.parameters()}
        weights = sum(p.numel() * p.element_size() for p in modules.values())
        shape = model.geometry
        rows = rows_of(shape.vocab_size, ROWS if device != "cpu" else 2, shape.max_positions)
        found[kind] = gradient(model, rows, PREFIX if device != "cpu" else 4)
        cosines = {
            other: round(float(torch.cosine_similarity(found[kind], theirs, dim=0)), 6)
            for other, theirs in found.items()
        }
        del model, modules
        show(
            part="gradients",
            kind=kind,
            weights_gib=round(weights / 2**30, 3),
            peak_gib=peak(device),
            loading_s=round(loading, 2),
            norm=float(found[kind].norm()),
            cosine=cosines,
        )


def clean(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float | None:
    return None if device == "cpu" else round(torch.cuda.max_memory_allocated() / 2**30, 3)


# ------------------------------------------------------------------------------------ linears


class Linears(nn.Module):
    """The linears of a GLM layer one behind the other, without norms and attention."""

    def __init__(self, sizes: dict[str, tuple[int, int]], kind: str, device: str) -> None:
        super().__init__()
        draw = torch.Generator(device=device).manual_seed(0)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        for name, (rows, columns) in sizes.items():
            weight = torch.empty(rows, columns, device=device, dtype=dtype)
            weight.normal_(0, 0.02, generator=draw)
            self.add_module(name, linear_of(weight, kind))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.qkv(x)[..., : self.output.in_features]
        gate, up = self.gate_up(self.output(attended)).chunk(2, dim=-1)
        made: Tensor = self.down(nn.functional.silu(gate) * up)
        return made


def linear_of(weight: Tensor, kind: str) -> nn.Module:
    if kind != "none":
        return ptkit.QuantizedLinear.of(kind).from_weight(weight)
    plain = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain


def sizes_of(device: str) -> dict[str, tuple[int, int]]:
    h, qkv, f = (4096, 4608, 13696) if device != "cpu" else (64, 96, 128)
    return {"qkv": (qkv, h), "output": (h, h), "gate_up": (2 * f, h), "down": (h, f)}


def seconds(work: Callable[[], Any], device: str, *, graph: bool, repeats: int = 20) -> float:
    """The median of ``work``; ``graph``: replayed from a CUDA graph, without the host's time."""
    if device == "cpu":
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            work()
        work = captured.replay
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(marks))


def both_ways(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    leaf = x.detach().requires_grad_()
    gradient = torch.randn_like(x)

    def work() -> None:
        leaf.grad = None
        layer(leaf).backward(gradient)

    return work


@torch.no_grad()
def forward_seconds(layer: nn.Module, x: Tensor, device: str) -> float:
    return seconds(lambda: layer(x), device, graph=True)


def measure_linears(kinds: Sequence[str], device: str, *, compiled: bool) -> None:
    for kind in kinds:
        clean(device)
        layer = Linears(sizes_of(device), kind, device)
        weights = sum(p.numel() * p.element_size() for p in layer.parameters())
        for tokens in TOKENS:
            ways = {"": frozen_ops.FEW_TOKENS}
            if kind.startswith("int"):
                ways = {"tiles": 0}
                if tokens <= MOST_FEW:
                    ways["inside"] = MOST_FEW
            for way, limit in ways.items():
                frozen_ops.FEW_TOKENS, before = limit, frozen_ops.FEW_TOKENS
                x = torch.randn(tokens, sizes_of(device)["qkv"][1], device=device)
                x = x if device == "cpu" else x.bfloat16()
                figures: dict[str, Any] = {"kind": kind, "tokens": tokens, "way": way}
                figures["gib"] = round(weights / 2**30, 4)
                figures["forward_s"] = forward_seconds(layer, x, device)
                figures["both_s"] = seconds(both_ways(layer, x), device, graph=False)
                if compiled and tokens == TOKENS[0]:
                    fast = torch.compile(layer, fullgraph=True)
                    figures["compiled_both_s"] = seconds(both_ways(fast, x), device, graph=False)
                frozen_ops.FEW_TOKENS = before
                show(part="linears", **figures)
        del layer


def measure_tiles(kinds: Sequence[str], device: str) -> None:
    before = frozen_ops.NUMBERS_AT_ONCE[device]
    for kind in (kind for kind in kinds if kind.startswith("int")):
        layer = Linears(sizes_of(device), kind, device)
        x = torch.randn(TOKENS[0], sizes_of(device)["qkv"][1], device=device)
        x = x if device == "cpu" else x.bfloat16()
        for tile in TILES:
            frozen_ops.NUMBERS_AT_ONCE[device] = tile
            clean(device)
            taken = seconds(both_ways(layer, x), device, graph=False)
            show(part="tiles", kind=kind, tile=tile, both_s=taken, peak_gib=peak(device))
    frozen_ops.NUMBERS_AT_ONCE[device] = before


@torch.no_grad()
def measure_cuts(kinds: Sequence[str], device: str) -> None:
    from ptkit.engine.frozen_kernels import Tiling, few_tokens

    for kind in (kind for kind in kinds if kind.startswith("int")):
        for name, (rows, columns) in sizes_of(device).items():
            weight = torch.empty(rows, columns, device=device, dtype=torch.bfloat16)
            layer: Any = linear_of(weight.normal_(0, 0.02), kind)
            for tokens in (1, 64):
                x = torch.randn(tokens, columns, device=device, dtype=torch.bfloat16)
                found = []
                for at_once, splits, (warps, stages) in itertools.product(
                    (16, 32, 64), (1, 2, 4, 8), ((4, 4), (8, 3))
                ):
                    cut = Tiling(at_once, min(128, layer.group or 128), splits, warps, stages)
                    work = partial(few_tokens, x, layer.weight, layer.weight_scale, layer.bits, cut)
                    try:
                        taken = seconds(work, device, graph=True)
                    except Exception as error:  # a cut that needs more than the GPU has
                        show(part="cuts", kind=kind, weight=name, failed=repr(error)[:200])
                        continue
                    found.append((taken, tuple(cut)))
                for taken, cut_ in sorted(found)[:3]:
                    rate = layer.weight.numel() / taken / 1e9
                    show(
                        part="cuts",
                        kind=kind,
                        weight=name,
                        tokens=tokens,
                        seconds=taken,
                        cut=cut_,
                        gb_a_second=round(rate),
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--source", help="a folder, or random:chatglm2-6b")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parts = ("gradients", "linears", "tiles", "cuts")
    parser.add_argument("--part", nargs="+", choices=parts, default=["gradients", "linears"])
    parser.add_argument("--compile", action="store_true", help="linears also under torch.compile")
    options = parser.parse_args()
    device = options.device
    source = options.source or f"random:chatglm2-{'tiny' if device == 'cpu' else '6b'}"
    if device != "cpu":
        show(device=torch.cuda.get_device_name(), torch=torch.__version__)
    if "linears" in options.part:
        measure_linears(options.kinds, device, compiled=options.compile)
    if "tiles" in options.part:
        measure_tiles(options.kinds, device)
    if "cuts" in options.part and device != "cpu":
        measure_cuts(options.kinds, device)
    if "gradients" in options.part:
        measure_gradients(source, options.kinds, device)


if __name__ == "__main__":
    main()
