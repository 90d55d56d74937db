"""The one training loop, and the gradients of one optimiser step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptkit.batching import Order, shared_stem
from ptkit.components import TaskHead
from ptkit.engine.attention import KeyValue
from ptkit.engine.feeding import Batch, Feeder, StepData, split
from ptkit.engine.headloss import combine, head_loss
from ptkit.engine.model import Model
from ptkit.engine.optimizing import Clock, Guard, Reading, learning_rate
from ptkit.engine.outofmemory import told_as, within_memory
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.processes import ALONE, Processes
from ptkit.engine.transfer import to_device
from ptkit.errors import PtkitError
from ptkit.recipe import TrainSettings
from ptkit.rowstore import RowStore


@dataclass
class Trainable:
    """All that trains: the prefix, and the head's module if it has one."""

    prefix: PrefixEncoder
    module: nn.Module | None = None

    def named_parameters(self) -> dict[str, nn.Parameter]:
        named = {f"prefix.{name}": p for name, p in self.prefix.named_parameters()}
        if self.module is not None:
            named |= {f"head.{name}": p for name, p in self.module.named_parameters()}
        return named

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def keys_and_values(self) -> list[KeyValue]:
        """The prefix as it is used outside training: without dropout, detached."""
        found: list[KeyValue] = self.prefix()
        return found


class Totals(NamedTuple):
    """The loss over a step or a data set, before the division; scalars stay on the device."""

    numerator: Tensor
    weight: Tensor
    tokens: int
    micro_batches: int

    @property
    def mean(self) -> Tensor:
        return self.numerator / self.weight

    @property
    def loss(self) -> float:
        """`mean` as a number, which waits for the device."""
        return float(self.mean)


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of a step's dropout: the same for every split, retry and resumed run."""
    digest = hashlib.sha256(f"dropout:{seed}:{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def total_loss(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    store: RowStore,
    batches: Iterable[Batch],
    settings: TrainSettings,
    each: Callable[[Tensor], None] | None = None,
) -> Totals:
    """The loss over micro-batches; ``each`` gets the numerator of every one.

    Raises `OutOfMemory` for a micro-batch that doesn't fit.
    """
    total = weight = torch.zeros((), device=model.device)
    tokens = count = 0
    for rows, row_weights, size in batches:
        groups = len(row_weights)
        with told_as(rows, store, tokens=size, groups=groups):
            loss = head_loss(model, head, module, store, rows, groups)
            weights = to_device(row_weights, model.device)
            numerator, denominator = combine(loss, weights, settings.loss_average)
            if each is not None:
                each(numerator)
        total = total + numerator.detach()
        weight = weight + denominator
        tokens += sum(rows.lengths)
        count += 1
    return Totals(total, weight, tokens, count)


def step_gradients(
    model: Model,
    trainable: Trainable,
    head: TaskHead,
    store: RowStore,
    groups: Sequence[Sequence[int]],
    settings: TrainSettings,
    step: int,
    micro_batches: Iterable[Batch] | None = None,
    processes: Processes = ALONE,
) -> Totals:
    """Set the gradient of the step's loss on every trainable parameter.

    The prefix runs once; micro-batches add up gradients on a detached copy of its keys and values,
    which go through the prefix encoder in one backward pass at the end. So the result does not
    depend on how the step is split. Sums are divided at the end, which also keeps float16 gradients
    from vanishing. ``micro_batches``: those of ``groups``, if they are made already.

    Nothing here waits for the device. Raises `OutOfMemory` for a micro-batch that doesn't fit, and
    can then be called again.
    """
    if micro_batches is None:
        micro_batches = split(store, groups, settings.tokens_per_micro_batch, model.layout)
    for parameter in trainable.parameters():
        parameter.grad = None
    generator = step_generator(settings.seed, step, model.device)
    made = trainable.prefix.stacked(generator)
    leaf = made.detach().requires_grad_()

    def backward(numerator: Tensor) -> None:
        numerator.backward()
        model.set_prefix(leaf)  # the cast of the last micro-batch went with its graph

    module = trainable.module
    if module is not None:
        module.train()
    try:
        with model.using(leaf), model.dropping(settings, step), processes.in_step(gradients=True):
            totals = total_loss(model, head, module, store, micro_batches, settings, backward)
    finally:
        if module is not None:
            module.eval()
    trained = [leaf, *(() if module is None else module.parameters())]
    totals = processes.add_up(totals, trained)
    for tensor in trained:
        if tensor.grad is not None:
            tensor.grad.div_(totals.weight)
    if leaf.grad is None:
        raise RuntimeError("the prefix got no gradient: attention bypasses it")
    made.backward(leaf.grad)
    return totals


@dataclass
class Progress:
    """Where a run stands; everything that a checkpoint must know besides tensors."""

    step: int = 0
    best_step: int | None = None
    best_loss: float = math.inf
    since_best: int = 0
    """Validations since the best one."""
    ended: bool = False
    """Whether training is over, by its steps or by its patience."""
    tokens_per_micro_batch: int | None = None
    """What the recipe's setting was lowered to because memory ran out; None: it is as set."""

    def budget(self, settings: TrainSettings) -> int:
        """How many tokens go through the model at once."""
        return self.tokens_per_micro_batch or settings.tokens_per_micro_batch

    def as_dict(self) -> dict[str, Any]:
        best = self.best_loss if math.isfinite(self.best_loss) else None
        return {**asdict(self), "best_loss": best}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        best = data["best_loss"]
        return cls(**{**data, "best_loss": math.inf if best is None else best})


@dataclass
class Training:
    """What the loop works on. ``total``: optimiser steps of the whole run."""

    model: Model
    trainable: Trainable
    head: TaskHead
    store: RowStore
    settings: TrainSettings
    order: Order
    total: int
    optimizer: torch.optim.AdamW
    processes: Processes = ALONE

    @property
    def stem(self) -> tuple[int, ...]:
        """The tokens that all rows begin with, which the model gets once for all of a pass."""
        return shared_stem(self.store, self.model.geometry, self.settings)

    @property
    def ahead(self) -> bool:
        """Whether the host goes on while the device works."""
        return self.model.device.type == "cuda"

    def all_groups(self, step: int) -> list[list[int]]:
        """The loss groups of a step, rows each."""
        return self.store.groups(self.order.step(step), share_loss=self.head.rows_share_loss)

    def groups(self, step: int) -> list[list[int]]:
        """Those of `all_groups` that this process works on."""
        return self.processes.share(
            self.all_groups(step), lambda group: sum(self.store.length(row) for row in group)
        )

    def data(self, step: int, tokens: int) -> StepData:
        """A step's micro-batches of up to ``tokens`` tokens, ready to be copied to the device."""
        groups, model = self.groups(step), self.model
        pinned = model.device.type == "cuda"
        made = list(split(self.store, groups, tokens, model.layout, pinned=pinned))
        for batch in made:
            identities = self.settings.backbone_dropout > 0
            batch.rows.prepare(stem=model.stem, identities=identities)
        return StepData(step, groups, tokens, made)

    def gradients(self, data: StepData, tokens: int) -> Totals:
        """`step_gradients` of a step in micro-batches of up to ``tokens`` tokens."""
        if data.budget != tokens:
            data = self.data(data.step, tokens)
        # for heads that draw, on every device; the prefix has its own generator
        torch.manual_seed(self.settings.seed + data.step)
        return step_gradients(
            self.model,
            self.trainable,
            self.head,
            self.store,
            data.groups,
            self.settings,
            data.step,
            data.batches,
            self.processes,
        )


class Watcher:
    """What the loop tells the run; see `ptkit.engine.session`."""

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """A step or a validation is done."""

    def halved(self, step: int, tokens: int) -> None:
        """Memory ran out in ``step``; from now on ``tokens`` go through the model at once."""

    def validate(self) -> float | None:
        """The validation loss now; None without validation data."""
        return None

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""

    def stop_requested(self) -> bool:
        """Whether to save and stop after this step."""
        return False


@dataclass(frozen=True)
class Queued:
    """A step that the device may still be working on; ``found``: its loss and gradient norm."""

    given: StepData
    totals: Totals
    found: Reading
    rate: float
    waited: float
    clock: Clock

    def look(self, training: Training) -> dict[str, Any]:
        """What the step's event says; the loop's only wait for the device."""
        loss, gradient = self.found.read()
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            rows = rows_not_finite(training, self.given.groups)
            raise NotFinite(self.given.step + 1, loss, gradient, rows)
        return {
            "step": self.given.step + 1,
            "loss": loss,
            "learning_rate": self.rate,
            "gradient_norm": gradient,
            "tokens": self.totals.tokens,
            "micro_batches": self.totals.micro_batches,
            "seconds": self.clock(),
            "wait_seconds": self.waited,
        }


def train(training: Training, watcher: Watcher, progress: Progress) -> Progress:
    """Train from ``progress.step`` to the end, an early stop, or a requested one.

    A step is only queued when the next one is prepared, so that a GPU has no pause between them;
    its loss is looked at while the next one runs. A checkpoint is written after the events of its
    step, so that a resumed run repeats none and loses none. Raises `PtkitError` for a loss or
    gradient that is not finite, which never reaches the weights.
    """
    settings, trainable, total = training.settings, training.trainable, training.total
    every = settings.eval_every or max(1, total // 10)
    save_every = settings.save_every or every

    def data(step: int) -> StepData:
        return training.data(step, progress.budget(settings))

    queued: Queued | None = None  # the last step, whose loss nobody has looked at

    def look() -> None:
        """Wait for what is queued, and tell it."""
        nonlocal queued
        if queued is not None:
            done, queued = queued, None
            watcher.event("train", done.look(training))

    def halved(tokens: int) -> None:
        look()
        progress.tokens_per_micro_batch = tokens
        watcher.halved(progress.step + 1, tokens)

    clock, guard = Clock(), Guard(training.optimizer, training.model.device)
    with Feeder(data, progress.step, total, ahead=training.ahead) as feeder:
        while not progress.ended:
            given = feeder.next()
            rate = learning_rate(settings, progress.step, total)
            for group in training.optimizer.param_groups:
                group["lr"] = rate * group["share"]
            work = partial(training.gradients, given)
            totals = within_memory(progress.budget(settings), work, halved)
            norm = torch.nn.utils.clip_grad_norm_(
                trainable.parameters(), settings.clip_norm or math.inf
            )
            found = guard.step(totals.mean, norm)
            progress.step += 1
            look()  # at the step before, while the device works on this one
            queued = Queued(given, totals, found, rate, feeder.waited, clock)
            progress.ended = progress.step == total
            validated = progress.ended or progress.step % every == 0
            saved = progress.step % save_every == 0
            if validated or saved or not training.ahead:
                look()
            stop = watcher.stop_requested()
            if not (validated or saved or stop):
                continue
            look()
            new_best = validated and _validate(watcher, settings, progress)
            stop = stop or watcher.stop_requested()
            if new_best or progress.ended or stop or saved:
                watcher.save(progress)
            clock.restart()
            if stop:
                return progress
    return progress


def _validate(watcher: Watcher, settings: TrainSettings, progress: Progress) -> bool:
    """Measure the validation loss; whether it is a new best. Ends the run when patience is out."""
    loss = watcher.validate()
    if loss is None:
        return False
    new_best = loss < progress.best_loss
    if new_best:
        progress.best_loss, progress.best_step, progress.since_best = loss, progress.step, 0
    else:
        progress.since_best += 1
    if settings.patience is not None and progress.since_best >= settings.patience:
        progress.ended = True
    watcher.event("validation", {"step": progress.step, "loss": loss})
    return new_best


class NotFinite(PtkitError):
    """A loss or gradient that is NaN or infinite; ``rows`` are those whose own loss is, if any."""

    def __init__(self, step: int, loss: float, gradient: float, rows: Sequence[int]) -> None:
        super().__init__(f"step {step}: the loss is {loss} and the gradient norm is {gradient}")
        self.step = step
        self.rows = tuple(rows)


@torch.no_grad()
def rows_not_finite(training: Training, groups: Sequence[Sequence[int]]) -> list[int]:
    """The rows of the groups whose own loss is NaN or infinite, those of all processes."""
    found: list[int] = []
    model, processes = training.model, training.processes
    with model.using(training.trainable.keys_and_values()), processes.in_step(gradients=False):
        for group in groups:
            rows = [training.store[index] for index in group]
            loss = training.head.loss(training.trainable.module, model.states(rows), rows)
            if not bool(torch.isfinite(loss.sums).all()):
                found.extend(group)
    return [row for some in processes.gather(found) for row in some]
