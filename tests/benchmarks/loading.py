"""Seconds and peak host memory of loading a ChatGLM2 checkpoint of full size, as it is and to int4.

    python tests/benchmarks/loading.py [--device cuda] [--scale 1.0] [--format bin|safetensors]

Writes random float16 weights in the published layout to a temporary folder (12.5 GB at scale 1),
loads them in a process of its own, and samples that process's anonymous memory: what the kernel
can't drop and read again from the files. On a GPU it fails from 2 GiB on. ``--folder`` keeps the
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT = 2 * 2**30  # bytes of anonymous memory, if the weights go to a GPU
SHARDS = 7
WAYS = {"float16": "none", "int4 while loading": "int4"}


def config(scale: float) -> dict[str, object]:
    """ChatGLM2-6B's, with as many layers as ``scale`` leaves and a smaller vocabulary."""
    return {
        "model_type": "chatglm",
        "_name_or_path": "THUDM/chatglm2-6b",
        "num_layers": max(1, round(28 * scale)),
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "ffn_hidden_size": 13696,
        "padded_vocab_size": max(4096, round(65024 * scale)),
        "seq_length": 32768,
        "layernorm_epsilon": 1e-5,
        "torch_dtype": "float16",
    }


def write(folder: Path, scale: float, layout: str) -> int:
    """The checkpoint in shards with an index; returns its bytes."""
    import torch
    from ptkit_chatglm2.config import read_config
    from ptkit_chatglm2.weights import expected_shapes
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(scale)))
    shapes = list(expected_shapes(read_config(folder)).items())
    block = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).mul_(0.02).half()
    ending, stem = ("bin", "pytorch_model") if layout == "bin" else ("safetensors", "model")
    total = sum(2 * torch.Size(shape).numel() for _, shape in shapes)
    where, index, size = {}, 0, 0
    shard: dict[str, torch.Tensor] = {}
    for number, (name, shape) in enumerate(shapes, start=1):
        count = torch.Size(shape).numel()
        shard[name] = block.repeat(-(-count // len(block)))[:count].view(shape)
        size += 2 * count
        if size >= total / SHARDS or number == len(shapes):
            index, size = index + 1, 0
            file = f"{stem}-{index:05d}.{ending}"
            if layout == "bin":
                # tensors that are views would be saved with all that lies behind them
                torch.save({key: value.clone() for key, value in shard.items()}, folder / file)
            else:
                save_file({key: value.clone() for key, value in shard.items()}, folder / file)
            where |= dict.fromkeys(shard, file)
            shard = {}
    suffix = "pytorch_model.bin" if layout == "bin" else "model.safetensors"
    (folder / f"{suffix}.index.json").write_text(json.dumps({"weight_map": where}))
    return total


def anonymous() -> int | None:
    """Bytes of this process that no file backs, if the system tells."""
    for path, key in (("/proc/self/status", "RssAnon:"), ("/proc/self/smaps_rollup", "Anonymous:")):
        try:
            for line in Path(path).read_text().splitlines():
                if line.startswith(key):
                    return int(line.split()[1]) * 1024
        except OSError:
            continue
    return None


def samples(stop: threading.Event) -> Iterator[int]:
    while not stop.wait(0.02):
        yield anonymous() or 0


def load(folder: Path, device: str, quantization: str) -> None:
    """In the process that is measured: load, and print what it took as JSON."""
    import torch
    import transformers  # noqa: F401 - what importing takes is not what loading takes
    from ptkit_chatglm2.backbone import ChatGLM2

    import ptkit.engine.model  # noqa: F401

    settings = ChatGLM2.Settings(source=str(folder), quantization=quantization)
    if device != "cpu":
        torch.zeros(1, device=device)  # the context is made here
    before, stop, seen = anonymous(), threading.Event(), [0]
    watcher = threading.Thread(target=lambda: seen.extend(samples(stop)))
    watcher.start()
    started = time.perf_counter()
    loaded = ChatGLM2(settings).load(device, "float16")
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    modules = [loaded.body, loaded.lm_head]
    weights = sum(p.numel() * p.element_size() for m in modules if m for p in m.parameters())
    highest = torch.cuda.max_memory_allocated() if device != "cpu" else None
    peak = None if before is None else max(seen)
    figures = {"before": before, "peak": peak, "weights": weights, "device": highest}
    print(json.dumps({"seconds": seconds, **figures}))


def gib(value: int | None) -> str:
    return "not known" if value is None else f"{value / 2**30:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scale", type=float)
    parser.add_argument("--format", choices=["bin", "safetensors"], default="bin")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load is not None:
        load(options.folder, options.device, options.load)
        return
    scale = options.scale or (1.0 if options.device != "cpu" else 0.05)  # a CPU holds what it loads
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "model"
        started = time.perf_counter()
        size = write(folder, scale, options.format)
        print(
            f"{size / 1e9:.1f} GB of {options.format} written in "
            f"{time.perf_counter() - started:.0f} s"
        )
        rows, failed = [], False
        for name, quantization in WAYS.items():
            command = [sys.executable, __file__, "--device", options.device, "--load", quantization]
            done = subprocess.run(
                [*command, "--folder", str(folder)], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            failed |= options.device != "cpu" and (found["peak"] or 0) >= LIMIT
            rows.append(
                f"{name:20} {found['seconds']:6.1f} s {gib(found['weights']):>12} "
                f"{gib(found['before']):>14} {gib(found['peak']):>14} {gib(found['device']):>14}"
            )
    print(f"{'to ' + options.device:20} {'time':>8} {'weights':>12} ", end="")
    print(f"{'host before':>14} {'host peak':>14} {'device peak':>14}")
    print("\n".join(rows))
    if failed:
        sys.exit(f"the peak of anonymous host memory must stay under {gib(LIMIT)}")


if __name__ == "__main__":
    main()
