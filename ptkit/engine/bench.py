"""How fast a recipe trains and answers on a device, and how much memory that takes; beside PEFT's
prefix tuning, if wanted."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from statistics import fmean
from typing import Any

import torch

from ptkit.batching import Order
from ptkit.components import TaskHead
from ptkit.engine.environment import describe
from ptkit.engine.figures import Answers, Result, Steps, Work
from ptkit.engine.fitting import compiles, set_up, told_if_not_compiled
from ptkit.engine.generate import generate
from ptkit.engine.loading import build_head, load_model
from ptkit.engine.matmuls import MatmulRate, measure_matmuls, step_flops
from ptkit.engine.measuring import PeakMemory, release_memory, synchronize
from ptkit.engine.model import pick_device, pick_dtype
from ptkit.engine.optimizing import make_optimizer
from ptkit.engine.peer import Peer, PeerError, check_installed
from ptkit.engine.probe import probe
from ptkit.engine.questions import Questions, endless, questions_of
from ptkit.engine.start import build_prefix, continue_head, starting_adapter
from ptkit.engine.train import Progress, Trainable, Training, Watcher, train
from ptkit.preparation import Prepared, prepare
from ptkit.recipe import Recipe
from ptkit.records import IGNORE, EncodedRow, Sampling
from ptkit.reporter import Reporter
from ptkit.rowstore import RowStore

WARM_PROMPTS, WARM_TOKENS = 8, 2  # answered before answering is measured
COMPARED = ("torch", "transformers", "peft")
NO_TOKEN = -1
WARMUP, WARMUP_COMPILED = 3, 30  # steps


class Clock(Watcher):
    """Takes the time of each step of the training loop, up to its event."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self.reporter, self.total = reporter, total
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.halvings: list[int] = []
        self.last = time.perf_counter()

    def event(self, kind: str, values: dict[str, Any]) -> None:
        if kind != "train":
            return
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.losses.append(values["loss"])
        self.last = now
        self.reporter.progress("training", len(self.seconds), self.total, {})

    def halved(self, step: int, tokens: int) -> None:
        self.halvings.append(tokens)


class Bench:
    """One benchmark, stage by stage; ``steps`` are measured behind ``warmup`` others (not given: 3,
    or 30 where steps are compiled, of one size after another)."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        device: str = "auto",
        steps: int = 10,
        warmup: int | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.recipe, self.reporter = recipe, reporter or Reporter()
        self.device = pick_device(device)
        self.prepared: Prepared = prepare(recipe, self.reporter)
        self.store: RowStore = self.prepared.parts["train"].rows
        order = Order(
            self.store.records,
            recipe.train.batch_size,
            seed=recipe.train.seed,
            epochs=recipe.train.epochs,
        )
        compiled = compiles(
            recipe.train, recipe.train.max_steps or order.steps, torch.device(self.device)
        )
        self.warmup = warmup or (WARMUP_COMPILED if compiled else WARMUP)
        self.total = self.warmup + steps
        # the measured steps alone: nothing is validated or saved between them
        changes = {"max_steps": self.total, "epochs": None, "patience": None, "compile": compiled}
        changes |= {"eval_every": self.total, "save_every": self.total}
        self.settings = recipe.train.model_copy(update=changes)
        self.backbone, self.head = self.prepared.backbone, self.prepared.head
        self.dtype = pick_dtype(self.backbone.settings.dtype, self.device)
        self.order = Order(self.store.records, self.settings.batch_size, seed=self.settings.seed)
        self.work = self._work()

    def groups(self, step: int) -> list[list[int]]:
        return self.store.groups(self.order.step(step), share_loss=self.head.rows_share_loss)

    def _work(self) -> Work:
        steps = [
            [self.store[i] for group in self.groups(step) for i in group]
            for step in range(self.warmup, self.total)
        ]
        tokens = [sum(len(row.tokens) for row in rows) for rows in steps]
        targets = [sum(_targets(self.head, row) for row in rows) for rows in steps]
        shape = self.backbone.geometry
        flops = [step_flops(shape, t, m) for t, m in zip(tokens, targets, strict=True)]
        return Work(fmean(map(len, steps)), fmean(tokens), fmean(targets), fmean(flops))

    def measure_matmuls(self) -> MatmulRate:
        """Of as many tokens as a micro-batch holds."""
        self.reporter.stage(f"measuring matmuls in {self.dtype} on {self.device}")
        tokens = max(1, min(round(self.work.tokens), self.settings.tokens_per_micro_batch))
        share = tokens / self.work.tokens
        rate = measure_matmuls(
            self.backbone.geometry,
            tokens,
            round(self.work.targets * share),
            dtype=self.dtype,
            device=self.device,
        )
        release_memory()
        return rate

    # ---------------------------------------------------------------------------------- ptkit

    def load(self) -> None:
        """The recipe's model and what trains, as a run makes them."""
        start = starting_adapter(self.recipe, self.backbone, self.reporter)
        self.model = load_model(self.backbone, self.device, self._show_loading)
        probe(self.model)
        module = build_head(
            self.head, self.backbone, self.model, self.settings.seed, list(self.store)
        )
        prefix = build_prefix(self.recipe, self.backbone, self.model, start)
        self.trainable = Trainable(prefix, module)
        if start is not None:
            self.reporter.stage(continue_head(start, self.head, module))
        self.first_values = {
            name: p.detach().clone() for name, p in self.trainable.named_parameters().items()
        }
        self.flat = prefix.flat().detach().float().cpu().clone()

    def _show_loading(self, done: int, total: int) -> None:
        self.reporter.progress("loading", done, total, {})

    def reset(self) -> None:
        """What trains is again as it was before the first step."""
        with torch.no_grad():
            for name, parameter in self.trainable.named_parameters().items():
                parameter.copy_(self.first_values[name])

    def unload(self) -> None:
        """Let go of ptkit's model, so that PEFT has the device to itself; the head's module
        stays."""
        self.module = self.trainable.module
        del self.model, self.trainable
        release_memory()

    def train(self) -> Steps:
        """The recipe's own training loop."""
        training = Training(
            self.model,
            self.trainable,
            self.head,
            self.store,
            self.settings,
            self.order,
            self.total,
            make_optimizer(self.trainable, self.settings),
        )
        self.fit = set_up(training, self.backbone, self.settings.tokens_per_micro_batch)
        self.reporter.stage(f"memory: {self.fit}")
        with PeakMemory(self.device) as memory, told_if_not_compiled(training):
            clock = Clock(self.reporter, self.total)
            train(training, clock, Progress())
            synchronize(self.device)
        self.model.drop_graphs()
        self.reset()
        budget = min([self.settings.tokens_per_micro_batch, *clock.halvings])
        return Steps(
            clock.seconds[0],
            clock.seconds[self.warmup :],
            clock.losses,
            memory.bytes,
            f"{budget:,} tokens",
        )

    @torch.no_grad()
    def loss(self) -> float:
        """Of the first step's rows, before training."""
        sums = weights = torch.zeros((), device=self.device)
        with self.model.using(self.trainable.keys_and_values()):
            for group in self.groups(0):
                rows = [self.store[i] for i in group]
                loss = self.head.loss(self.trainable.module, self.model.states(rows), rows)
                if self.head.needs_lm_head:
                    sums, weights = sums + loss.sums.sum(), weights + loss.weights.sum()
                else:
                    sums, weights = sums + (loss.sums / loss.weights).sum(), weights + 1
        return float(sums / weights)

    # ---------------------------------------------------------------------------------- answers

    def questions(self) -> Questions:
        """Of the scored rows, or of the training rows if there are none; see `questions_of`."""
        part = self.prepared.scored or self.prepared.parts["train"]
        return questions_of(self.head, list(part.rows))

    def answer(self, questions: Questions) -> Answers:
        """By ptkit, as it answers in a run, but to the lengths that are wanted."""

        def ours(some: Questions) -> list[list[int]]:
            return generate(
                self.model,
                some.prompts,
                Sampling(max_new_tokens=max(some.lengths)),
                batch_tokens=self.model.batch_tokens,
                limits=some.lengths,
            )

        with self.model.using(self.trainable.keys_and_values()), endless(self.model):
            return self._answer(questions, ours)

    def _answer(
        self, questions: Questions, answer: Callable[[Questions], list[list[int]]]
    ) -> Answers:
        answer(questions.first(WARM_PROMPTS, WARM_TOKENS))
        with PeakMemory(self.device) as memory:
            synchronize(self.device)
            started = time.perf_counter()
            ids = answer(questions)
            synchronize(self.device)
            seconds = time.perf_counter() - started
        return Answers(len(ids), sum(questions.lengths), seconds, memory.bytes, ids)

    # ---------------------------------------------------------------------------------- PEFT

    def peer(self, rows_at_once: int | None = None) -> Peer:
        """PEFT's model; ptkit's must be loaded before, and unloaded."""
        self.reporter.stage("loading the same weights for PEFT")
        return Peer(
            self.backbone,
            self.head,
            self.module,
            self.flat,
            self.settings,
            self.device,
            rows_at_once,
        )

    def train_peer(self, peer: Peer) -> Steps:
        """The same rows by PEFT, all of a step at once, or as many as memory allows.

        Raises `PeerError` if not even one fits.
        """
        with PeakMemory(self.device) as memory:
            while True:
                memory.restart()
                try:
                    seconds, losses = self._peer_steps(peer)
                except torch.OutOfMemoryError:
                    seconds = []
                if seconds:
                    break
                if not peer.halve(len(self.groups(0))):
                    raise PeerError("PEFT: not compared: it runs out of memory with a single row")
        rows = peer.rows_at_once or len(self.groups(0))
        at_once = f"{rows:,} row{'' if rows == 1 else 's'}"
        peer.reset()
        return Steps(seconds[0], seconds[self.warmup :], losses, memory.bytes, at_once)

    def _peer_steps(self, peer: Peer) -> tuple[list[float], list[float]]:
        seconds, losses = [], []
        last = time.perf_counter()
        for step in range(self.total):
            losses.append(peer.step(self.store, self.groups(step)))
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
            self.reporter.progress("training by PEFT", step + 1, self.total, {})
        synchronize(self.device)
        return seconds, losses

    def answer_peer(self, peer: Peer, questions: Questions) -> Answers:
        return self._answer(questions, lambda some: peer.answer(some.prompts, some.lengths))


def bench(
    recipe: Recipe,
    *,
    device: str = "auto",
    steps: int = 10,
    warmup: int | None = None,
    against_peft: bool = False,
    answers: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
) -> Result:
    """Measure the training steps of a recipe on its data and device, and what answering takes.

    ``against_peft``: the same work by PEFT; what it can't do is a note of the result. ``answers``:
    the scored rows are answered, each with as many tokens as its reference answer and end mark
    have, because random weights never end. ``command``: the line that asked for all this, for the
    result. Raises `PtkitError` as a run would, and for a PEFT that is not installed or a head that
    generates nothing.
    """
    if against_peft:
        check_installed()
    one = Bench(recipe, device=device, steps=steps, warmup=warmup, reporter=reporter)
    questions = one.questions() if answers else None
    rate = one.measure_matmuls()
    one.load()
    result = Result(
        str(recipe.path or recipe.name),
        command,
        one.device,
        one.dtype,
        one.backbone.quantization,
        one.backbone.geometry.parameters,
        one.trainable.count(),
        one.work,
        rate,
        environment(recipe, one.device),
    )
    result.ptkit.steps = one.train()
    result.estimated_bytes = one.fit.memory.total
    result.layers_recomputed = one.fit.memory.recomputed
    result.ptkit.loss = one.loss()
    if questions is not None:
        one.reporter.stage(f"answering {len(questions.prompts):,} rows")
        result.ptkit.answers = one.answer(questions)
    if against_peft:
        one.unload()
        try:
            _measure_peer(one, result, questions)
        except PeerError as error:
            result.notes += error.lines
        except torch.OutOfMemoryError:
            result.notes.append("PEFT: not compared further: the device has not enough memory")
    return result


def _measure_peer(one: Bench, result: Result, questions: Questions | None) -> None:
    peer = one.peer()
    if one.recipe.prefix.projection:
        result.notes.append("PEFT: trains a flat prefix; the recipe's has a projection besides")
    if one.backbone.quantization != "none":
        result.notes.append(
            f"PEFT: works on the same {one.backbone.quantization} linears, which are ptkit's"
        )
    if one.fit.memory.recomputed:
        result.notes.append(
            "PEFT: keeps all activations, because prefix tuning fails there with checkpointing"
        )
    result.peft.steps = one.train_peer(peer)
    if peer.same_prefix:
        result.peft.loss = peer.loss(one.store, one.groups(0))
    if questions is not None:
        one.reporter.stage(f"answering {len(questions.prompts):,} rows by PEFT")
        result.peft.answers = one.answer_peer(peer, questions)


def environment(recipe: Recipe, device: str) -> dict[str, Any]:
    """Versions, device and machine."""
    made = describe(recipe.registry, device)
    for package in COMPARED:
        try:
            made["packages"][package] = version(package)
        except PackageNotFoundError:
            made["packages"][package] = "not installed"
    return {**made, "processor": platform.processor() or platform.machine()}


def _targets(head: TaskHead, row: EncodedRow) -> int:
    return len(row.labels) - row.labels.count(IGNORE) if head.needs_lm_head else 0
