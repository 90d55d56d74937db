"""Training speed on a CPU in real tokens a second: ptkit's packed rows beside PEFT's prefix tuning.

    python tests/benchmarks/encoder_speed.py DATA [--steps 12]

``DATA``: a folder with sst2/train.txt and boolq/val.jsonl. Both train the same rows of mixed
length with the same prefix and head on all-MiniLM-L6-v2, step by step in turn; PEFT's rows are
padded to the longest of each batch. Padding counts as time and not as tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nlu_quality
from nlu_quality import POOLED, TASKS, Bench, Job, Task

BOOLQ = Task(
    ("boolq/val.jsonl", None, "boolq/val.jsonl"),
    "labelled-text",
    "sequence-classification",
    "accuracy",
    "accuracy",
    "",
    epochs=1,
    dataset={"text_column": "question", "second_column": "passage"},
    task=POOLED,
)
WARM_UP = 2  # steps


def ptkit_step(bench: Bench) -> Callable[[list[Any]], None]:
    from ptkit.engine.model import Model
    from ptkit.engine.optimizing import make_optimizer
    from ptkit.engine.prefix import PrefixEncoder
    from ptkit.engine.train import Trainable, step_gradients

    tokenizer, settings = bench.backbone.tokenizer, bench._settings()
    loaded = bench.backbone.load("cpu", "float32")
    model = Model(loaded, bench.backbone.geometry, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id)
    prefix = PrefixEncoder(bench.backbone.geometry, bench.spec.length, dropout=0.1)
    prefix.initialize(std=1.0, seed=0)
    trainable = Trainable(prefix, bench._module(0))
    optimizer = make_optimizer(trainable, settings)
    store = bench.parts["train"].rows

    def step(groups: list[list[int]]) -> None:
        step_gradients(model, trainable, bench.head, store, groups, settings, 0)
        optimizer.step()

    return step


def peft_step(bench: Bench) -> Callable[[list[Any]], None]:
    import torch
    from peft import PrefixTuningConfig, get_peft_model
    from transformers import AutoModel

    body: Any = AutoModel.from_pretrained(bench.job.options.model, dtype=torch.float32)
    body.pooler = None
    config = PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=bench.spec.length
    )
    body, module, store = get_peft_model(body, config), bench._module(0), bench.parts["train"].rows
    tuned = [p for p in (*body.parameters(), *module.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=1e-2, fused=True)

    def step(groups: list[list[int]]) -> None:
        rows = [store[i] for group in groups for i in group]
        loss = bench.head.loss(module, bench._states(body, rows), rows)
        optimizer.zero_grad()
        (loss.sums.sum() / loss.weights.sum()).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.model = options.model or str(nlu_quality.minilm())
    vars(options).update(
        device="cpu", rows=3000, test=50, tokens=4096, prefix_rate=1e-2, head_rate=1e-3
    )
    for name, task in {"sst2": TASKS["sst2"], "boolq": BOOLQ}.items():
        TASKS[name] = task
        bench = Bench(Job(name, "ptkit", 0, options))
        store, order = bench.parts["train"].rows, bench._order()
        ways = {"ptkit": ptkit_step(bench), "PEFT": peft_step(bench)}
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for index in range(WARM_UP + options.steps):
            groups = store.groups(order.step(index), share_loss=False)
            tokens = sum(store.length(i) for group in groups for i in group)
            for way, step in ways.items():
                started = time.perf_counter()
                step(groups)
                if index >= WARM_UP:
                    speeds[way].append(tokens / (time.perf_counter() - started))
        medians = {way: statistics.median(found) for way, found in speeds.items()}
        shown = ", ".join(f"{way} {speed:,.0f} tokens/s" for way, speed in medians.items())
        print(f"{name:6} {shown}, ratio {medians['ptkit'] / medians['PEFT']:.2f}", flush=True)


if __name__ == "__main__":
    main()
