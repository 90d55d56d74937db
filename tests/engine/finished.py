"""Run folders as a finished run leaves them, made by hand: nothing is trained."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

RECIPE = """\
ptkit = 1
metrics = [
    {{ kind = "rouge-zh" }},
]

[backbone]
kind = "chatglm2"
source = "nano"

[prefix]
length = 16
init = "normal"

[dataset]
kind = "adgen"
train = "data/train.json"
validation = "data/validation.json"

[task]
kind = "generation"
max_source_tokens = 64
max_target_tokens = 64

[train]
max_steps = {steps}
learning_rate = {rate}
seed = 0
"""
MEANS = {"before": 20.0, "constant": 30.0, "after": 60.0}
TEXTS = {
    "before": "这件上衣采用了简约的设计，，，，设计",
    "after": "这件{colour}的上衣，宽松的版型穿着舒适，显得随性又大方。",
}


def predictions(rows: int, *, seed: int = 0, lift: float = 0.0) -> list[dict[str, Any]]:
    """Rows with two scores each; "overlap" is left out of every seventh row."""
    draw = random.Random(seed)
    found = []
    for index in range(rows):
        scores = {}
        for column, mean in MEANS.items():
            mean += lift if column == "after" else 0.0
            value = min(100.0, max(0.0, draw.gauss(mean, 15)))
            scores[column] = {"rouge-1": value, "overlap": value / 2}
            if index % 7 == 6:
                del scores[column]["overlap"]
        colour = ("红色", "蓝色", "白色")[index % 3]
        found.append(
            {
                "origin": f"data/validation.json:{index + 1}",
                "prompt": f"类型#上衣*版型#宽松*颜色#{colour}",
                "reference": f"宽松的版型，{colour}的上衣，轻松遮肉，日常出街都合适。",
                "before": TEXTS["before"],
                "after": TEXTS["after"].format(colour=colour),
                "scores": scores,
            }
        )
    return found


def totals(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """scores.json of rows: means over the rows that have a score."""
    found: dict[str, dict[str, float]] = {}
    for column in MEANS:
        for metric in ("rouge-1", "overlap"):
            values = [s[metric] for row in rows if metric in (s := row["scores"].get(column, {}))]
            if values:
                found.setdefault(column, {})[metric] = math.fsum(values) / len(values)
    return found


def events(steps: int, *, validation: bool = True, fall: float = 2.0) -> list[dict[str, Any]]:
    draw = random.Random(0)
    found: list[dict[str, Any]] = []
    if validation:
        found.append({"event": "untuned", "step": 0, "loss": 4.0})
    for step in range(1, steps + 1):
        loss = 4.0 - fall * (1 - math.exp(-4 * step / steps)) + draw.gauss(0, 0.1)
        found.append({"event": "train", "step": step, "loss": loss, "seconds": 0.25})
        if validation and step % max(1, steps // 10) == 0:
            level = 4.1 - fall * (1 - math.exp(-4 * step / steps))
            found.append({"event": "validation", "step": step, "loss": level})
    return found


def lengths(rows: int) -> dict[str, Any]:
    def series(middle: int, top: int) -> dict[str, Any]:
        bins = range(top // 2 + 1)
        counts = [round(1000 * math.exp(-(((2 * i - middle) / 9) ** 2))) for i in bins]
        return {"width": 2, "counts": counts, "mean": middle, "median": middle, "max": top}

    def part(rows: int, cut: int, **lengths: tuple[int, int]) -> dict[str, Any]:
        return {
            "rows": rows,
            "cut_rows": cut,
            "cut_tokens": 9 * cut,
            "cut_targets": 2 * cut,
            "counted_every": 1,
            "series": {name: series(*numbers) for name, numbers in lengths.items()},
        }

    parts = {"train": part(1000, 12, prompt=(30, 64), target=(44, 65))}
    if rows:
        parts["validation"] = part(rows, 0, prompt=(34, 60), target=(40, 62))
    return {"limits": {"prompt": 64, "target": 64, "input": 64}, "parts": parts}


def make_run(
    folder: Path,
    rows: list[dict[str, Any]] | None = None,
    *,
    steps: int = 40,
    rate: float = 0.02,
    fall: float = 2.0,
    sha256: str = "b" * 64,
) -> Path:
    """A finished run; ``rows``: its predictions, None if there was nothing to score."""
    (folder / "adapter").mkdir(parents=True)
    data = {"train": {"source": "data/train.json", "sha256": "a" * 64, "rows": 1000, "skipped": 0}}
    recipe = RECIPE.format(steps=steps, rate=rate)
    if rows is None:
        recipe = recipe.replace('validation = "data/validation.json"\n', "")
    else:
        data["validation"] = {
            "source": "data/validation.json",
            "sha256": sha256,
            "rows": len(rows),
            "skipped": 0,
        }
        write_lines(folder / "predictions.jsonl", rows)
        write(folder / "scores.json", totals(rows))
        units = dict.fromkeys(("rouge-1", "overlap"), "percent, 0–100")
        answer = "宽松的版型，百搭的颜色，日常出街都合适。"
        write(folder / "scoring.json", {"constant": answer, "units": units, "warnings": []})
    write(folder / "lengths.json", lengths(len(rows or [])))
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    backbone = {
        "kind": "chatglm2",
        "name": "nano",
        "geometry": {"layers": 4, "kv_groups": 2, "head_size": 32, "hidden_size": 128},
        "tokenizer": "c" * 64,
        "fingerprint": "d" * 64,
    }
    write(
        folder / "environment.json",
        {
            "ptkit": "0.1.0",
            "python": "3.11.7",
            "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
            "plugins": {"ptkit-adgen": "0.1.0"},
            "device": "cpu",
            "threads": 2,
            "dtype": "float32",
            "trainable_parameters": 8192,
            "frozen_parameters": 1759360,
            "backbone": backbone,
            "data": data,
        },
    )
    write_lines(folder / "events.jsonl", events(steps, validation=rows is not None, fall=fall))
    write(
        folder / "adapter" / "adapter.json",
        {
            "format": 1,
            "prefix": {"length": 16, "projection_hidden_size": None},
            "backbone": backbone,
            "task": {"kind": "generation", "labels": []},
        },
    )
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_lines(path: Path, values: list[Any]) -> None:
    lines = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(lines, encoding="utf-8")


def change(path: Path, **entries: Any) -> None:
    """Set entries of a JSON file; None removes one."""
    value = json.loads(path.read_text(encoding="utf-8")) | entries
    write(path, {key: entry for key, entry in value.items() if entry is not None})
