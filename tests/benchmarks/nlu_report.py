"""The results of `nlu_quality.py`: read from their file, and as a table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PREFIX = ("ptkit", "ptkit-zero", "ptkit-text")
METHODS = ("majority", "probe", "peft-prefix", *PREFIX, "lora", "full")
RESAMPLES = 2000


class Key(NamedTuple):
    """What a result belongs to. ``dropout``: inside ptkit's frozen base; None for other methods."""

    task: str
    method: str
    seed: int
    dropout: float | None

    @classmethod
    def of(cls, task: str, method: str, seed: int, dropout: float) -> Key:
        return cls(task, method, seed, dropout if method in PREFIX else None)


Found = dict[Key, dict[str, Any]]


def read(path: Path) -> Found:
    """All results of a file; the last one of a job counts. A line without dropout had none."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines]
    return {
        Key.of(r["task"], r["method"], r["seed"], r.get("backbone_dropout") or 0.0): r for r in runs
    }


def line(key: Key, result: Mapping[str, Any]) -> str:
    """A result as `read` takes it."""
    named = {"task": key.task, "method": key.method, "seed": key.seed}
    if key.dropout is not None:
        named["backbone_dropout"] = key.dropout
    return json.dumps({**named, **result}) + "\n"


def scored(rows: Any) -> Any:
    """Percent, of rows [..., n, 1] their mean, of counts [..., n, 3] (right, found, there) F1."""
    if rows.shape[-1] == 1:
        return 100 * rows[..., 0].mean(-1)
    right, found, there = np.moveaxis(rows.sum(-2), -1, 0)
    return 200 * right / np.maximum(found + there, 1)


def interval(ours: list[Any], theirs: list[Any]) -> tuple[float, float]:
    """The paired 95 % bootstrap interval of the difference of mean scores, over rows and seeds.

    A resample draws rows and, with as many as there are, seeds: the same for both methods.
    """
    one, other = (np.array(found, dtype=float) for found in (ours, theirs))  # [seeds, n, 1 or 3]
    draw, (seeds, rows) = np.random.default_rng(0), one.shape[:2]
    differences = []
    for _ in range(RESAMPLES):
        some = np.ix_(draw.integers(0, seeds, seeds), draw.integers(0, rows, rows))
        differences.append((scored(one[some]) - scored(other[some])).mean())
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


Runs = dict[str, dict[int, dict[str, Any]]]
"""By method and seed."""


def way(runs: Runs, method: str) -> str:
    """The share of the way from the probe to full fine-tuning, of the means and of each seed."""
    three = [runs.get(name, {}) for name in ("probe", method, "full")]
    seeds = sorted(set.intersection(*map(set, three)))
    scores = [[found[seed]["score"] for seed in seeds] for found in three]

    def share(low: float, score: float, high: float) -> str:
        return f"{100 * (score - low) / (high - low):.0f}" if high > low else "–"

    if not seeds:
        return ""
    each = " ".join(share(*some) for some in zip(*scores, strict=True))
    total = share(*map(statistics.mean, scores))
    return f"   way {total} %" + (f" ({each})" if len(seeds) > 1 else "")


def against(runs: Runs, method: str, other: str = "peft-prefix") -> str:
    """The mean difference and its interval, over the seeds that both have."""
    ours, theirs = runs[method], runs.get(other, {})
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return ""
    difference = statistics.mean(ours[s]["score"] - theirs[s]["score"] for s in seeds)
    low, high = interval([ours[s]["rows"] for s in seeds], [theirs[s]["rows"] for s in seeds])
    return f"   − PEFT {difference:+.1f} ({low:+.1f} … {high:+.1f}, {_seeds(len(seeds))})"


def _seeds(count: int) -> str:
    return f"{count} seed" + ("s" if count > 1 else "")


def summary(found: Found, titles: Mapping[str, str], dropout: float) -> Iterator[str]:
    """The tables. ``titles``: those of the tasks; ``dropout``: of ptkit's runs, which others of
    theirs are left out."""
    for task, title in titles.items():
        runs: Runs = {}
        for method in METHODS:
            own = {
                key.seed: run
                for key, run in sorted(found.items(), key=lambda item: item[0].seed)
                if key[:2] == (task, method) and key.dropout in (None, dropout)
            }
            if own:
                runs[method] = own
        if not runs:
            continue
        rows = len(next(iter(next(iter(runs.values())).values()))["rows"])
        yield f"\n{task} ({title}, {rows} test rows)"
        for method, own in runs.items():
            scores = [run["score"] for run in own.values()]
            spread = f"± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            first, seconds = next(iter(own.values())), [run["seconds"] for run in own.values()]
            text = f"  {method:12} {statistics.mean(scores):6.2f} {spread:6} {_seeds(len(own)):7}"
            text += f" {first['trainable']:>10,} trained {statistics.mean(seconds):4.0f} s"
            if method not in ("majority", "probe", "full"):
                text += way(runs, method)
            yield text + (against(runs, method) if method in PREFIX else "")
