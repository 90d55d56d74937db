"""A CRF beside a plain layer: entity F1 with the same prefix, rows, order and steps.

    python tests/benchmarks/crf.py DATA --model MINILM [--sets ecommerce,weibo] [--rows 1500]

``DATA``: a folder with ecommerce-ner/{train,dev,test}.txt and weibo-ner/{train,dev,test}.conll.
``--model``: a folder that the backbone ``encoder`` reads, such as all-MiniLM-L6-v2. The heads are
``token-classification``, each word by itself; the same adapter with its best well-formed BIO tags
(``constrained = true``); and ``crf-entities`` of examples/ptkit-crf, which must be installed. Every
job trains with a learning rate of the head and a seed, keeps its last step, and scores the rows of
dev and test. Per head the rate with the best mean on dev counts, of those that all seeds have; the
scores shown are those of test. Jobs are appended to ``--out``, a line each; those that it already
holds are not run again. ``--summary`` only prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ecommerce": ("ecommerce-ner/{}.txt", {}),
    "weibo": ("weibo-ner/{}.conll", {"word_pattern": "(.+?)[0-9]{1,2}"}),
}
TASKS: dict[str, dict[str, Any]] = {
    "token": {"kind": "token-classification"},
    "crf": {"kind": "crf-entities"},
}
# what is decoded from the adapter of a task: its name in the table, and the setting
DECODINGS: dict[str, dict[str, list[str]]] = {
    "token": {"token": [], "token, BIO": ["task.constrained=true"]},
    "crf": {"crf": []},
}
Counts = list[list[int]]  # a row each: entities that are right, found, there


class Job(NamedTuple):
    """``rate``: the learning rate of the head; ``transition``: that of tags beside it, of a CRF."""

    data: str
    task: str
    rate: float
    transition: float
    seed: int


def recipe(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    path, dataset = SETS[job.data]
    task: dict[str, Any] = {**TASKS[job.task], "max_tokens": 256}
    if job.task == "crf":
        task["transition_rate"] = job.transition
    return {
        "ptkit": 1,
        "backbone": {"kind": "encoder", "source": str(options.model.resolve())},
        "prefix": {"length": options.length, "dropout": 0.1},
        "dataset": {
            "kind": "conll",
            "train": str((options.data / path.format("train")).resolve()),
            "joiner": "",
            "limit": {"train": options.rows},
            **dataset,
        },
        "task": task,
        "train": {
            "epochs": options.epochs,
            "batch_size": 32,
            "learning_rate": options.prefix_rate,
            "head_learning_rate": job.rate,
            "seed": job.seed,
        },
    }


def work(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    import ptkit

    torch.set_num_threads(options.threads)
    made = ptkit.Recipe.from_dict(recipe(job, options), folder=Path(), name="crf")
    parts = {name: records(made, job, name, options) for name in ("dev", "test")}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = ptkit.run(made, out=Path(folder) / "run", device=options.device)
        seconds = round(time.perf_counter() - started, 1)
        for name, overrides in DECODINGS[job.task].items():
            tuned = ptkit.load(
                options.model,
                run.adapter,
                kind="encoder",
                device=options.device,
                overrides=overrides,
            )
            assert tuned.head is not None
            started = time.perf_counter()
            counts = {
                part: [
                    count(prediction, tuned.head.reference(record))
                    for record, prediction in zip(rows, tuned.predict(rows), strict=True)
                ]
                for part, rows in parts.items()
            }
            found[name] = {"seconds": round(time.perf_counter() - started, 1), **counts}
    return {**job._asdict(), "seconds": seconds, "found": found}


def records(made: Any, job: Job, name: str, options: argparse.Namespace) -> list[Any]:
    """The first rows of a part that has answers."""
    import ptkit

    form = made.dataset.create()
    path = options.data / SETS[job.data][0].format(name)
    rows = [row for row in form.read(path, path.name) if not isinstance(row, ptkit.BadRow)]
    return rows[: options.test]


def count(prediction: Sequence[Any], reference: Sequence[Any]) -> list[int]:
    found, there = (
        {(entity["type"], entity["start"], entity["end"]) for entity in entities}
        for entities in (prediction, reference)
    )
    return [len(found & there), len(found), len(there)]


# ------------------------------------------------------------------------------------ summary


def f1(counts: Any) -> float:
    """Of counts [n, 3], in percent; as the metric ``entity-f1`` has it."""
    right, found, there = np.asarray(counts).sum(0)
    return float(200 * right / max(found + there, 1))


def interval(ours: Sequence[Counts], theirs: Sequence[Counts]) -> tuple[float, float]:
    """The paired 95 % bootstrap interval of the difference of mean F1, over rows and seeds.

    A resample draws rows and, with as many as there are, seeds: the same for both heads.
    """
    one, other = np.array(ours), np.array(theirs)  # [seeds, rows, 3]
    draw = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        seeds = draw.integers(0, len(one), len(one))
        rows = draw.integers(0, one.shape[1], one.shape[1])
        differences.append(
            statistics.mean(f1(one[s][rows]) - f1(other[s][rows]) for s in seeds.tolist())
        )
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def summary(jobs: Sequence[dict[str, Any]]) -> Iterator[str]:
    for data in SETS:
        own = [job for job in jobs if job["data"] == data]
        if not own:
            continue
        best: dict[str, dict[int, dict[str, Any]]] = {}
        yield f"\n{data}: entity F1 on dev by the head's rate (and that of the CRF's tags)"
        for task, names in DECODINGS.items():
            for name in names:
                tried: dict[tuple[float, float], dict[int, dict[str, Any]]] = {}
                for job in own:
                    if job["task"] == task:
                        setting = (job["rate"], job["transition"])
                        tried.setdefault(setting, {})[job["seed"]] = {**job["found"][name], **job}
                means = {
                    setting: statistics.mean(f1(run["dev"]) for run in runs.values())
                    for setting, runs in tried.items()
                }
                for setting, runs in sorted(tried.items()):
                    rates = f"{setting[0]:g}" + (f" x {setting[1]:g}" if task == "crf" else "")
                    yield f"  {name:10} {rates}: {means[setting]:.2f} ({len(runs)} seeds)"
                # a rate that was tried with fewer seeds is shown, but not chosen
                seeds = max((len(runs) for runs in tried.values()), default=0)
                whole = [setting for setting in means if len(tried[setting]) == seeds]
                if whole:
                    best[name] = tried[max(whole, key=means.__getitem__)]
        rows = len(next(iter(next(iter(best.values())).values()))["test"])
        yield f"{data}: entity F1 on {rows} test rows at the best rate"
        for name, runs in best.items():
            scores = [f1(run["test"]) for run in runs.values()]
            spread = f"± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            seconds = statistics.mean(run["found"][name]["seconds"] for run in runs.values())
            trained = statistics.mean(run["seconds"] for run in runs.values())
            yield (
                f"  {name:10} {statistics.mean(scores):6.2f} {spread:7} "
                f"[{', '.join(f'{score:.2f}' for score in scores)}] "
                f"train {trained:.0f} s, answer {seconds:.0f} s"
            )
        for name, runs in best.items():
            if name != "crf" and "crf" in best:
                both = sorted(runs.keys() & best["crf"].keys())
                low, high = interval(
                    [best["crf"][seed]["test"] for seed in both],
                    [runs[seed]["test"] for seed in both],
                )
                yield f"  crf - {name}: {low:+.2f} … {high:+.2f} (95 %, {len(both)} seeds)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--out", type=Path, default=Path("crf.jsonl"))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--head-rates", default="1e-3,1e-2")
    parser.add_argument("--transition-rates", default="10", help="of the CRF, beside the head's")
    parser.add_argument("--prefix-rate", type=float, default=3e-2)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=1500, help="training rows at most")
    parser.add_argument("--test", type=int, default=1000, help="rows of dev and test at most")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--length", type=int, default=64, help="of the prefix")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    done: dict[Job, dict[str, Any]] = {}
    if options.out.exists():
        for line in options.out.read_text("utf-8").splitlines():
            row = json.loads(line)
            done[Job(*(row[name] for name in Job._fields))] = row
    jobs = [
        Job(data, task, float(rate), float(transition), seed)
        for seed in map(int, options.seeds.split(","))
        for data in options.sets.split(",")
        for rate in options.head_rates.split(",")
        for task in options.tasks.split(",")
        for transition in (options.transition_rates.split(",") if task == "crf" else ["1"])
    ]
    with options.out.open("a", encoding="utf-8") as file:
        for job in [] if options.summary else jobs:
            if job in done:
                continue
            done[job] = work(job, options)
            file.write(json.dumps(done[job]) + "\n")
            file.flush()
            scores = {
                name: f"{f1(found['dev']):.2f} {f1(found['test']):.2f}"
                for name, found in done[job]["found"].items()
            }
            print(*job, scores, f"{done[job]['seconds']} s", flush=True)
    for line in summary(list(done.values())):
        print(line)


if __name__ == "__main__":
    main()
