"""The one training loop, and the gradients of one optimiser step."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ptkit.batching import Order, micro_batches
from ptkit.components import Loss, TaskHead
from ptkit.data import RowStore
from ptkit.engine.attention import KeyValue
from ptkit.engine.loss import at_least_float32
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.errors import PtkitError
from ptkit.isolation import blamed, fault
from ptkit.recipe import TrainSettings
from ptkit.records import EncodedRow


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
    def loss(self) -> float:
        return float(self.numerator / self.weight)


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The generator of a step's dropout: the same for every split, retry and resumed run."""
    digest = hashlib.sha256(f"dropout:{seed}:{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def combine(loss: Loss, weights: Tensor, average: str) -> tuple[Tensor, Tensor]:
    """A micro-batch's share of the step's loss, as numerator and denominator.

    ``weights`` [n]: the record weight of each group. By token: sum(w·sums) / sum(w·weights); by
    row: sum(w·sums/weights) / sum(w), where groups without any weight count nothing.
    """
    sums, counts = at_least_float32(loss.sums), at_least_float32(loss.weights)
    if average == "token":
        return (weights * sums).sum(), (weights * counts).sum()
    some = counts > 0
    means = torch.where(some, sums / torch.where(some, counts, 1.0), 0.0)
    return (weights * means).sum(), (weights * some).sum()


def _culprits(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    store: RowStore,
    rows: Sequence[EncodedRow],
) -> str:
    """The origins of the records whose own loss fails, or of all in the micro-batch."""
    if store.origins is None:
        return ""
    records = list(dict.fromkeys(row.record for row in rows))
    found = []
    for record in records:
        own = [row for row in rows if row.record == record]
        try:
            with torch.no_grad():
                head.loss(module, model.states(own), own)
        except (Exception, SystemExit):
            found.append(record)
    shown = found or records
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return ", ".join(str(store.origins[record]) for record in shown[:3]) + more


def _checked(head: TaskHead, loss: Loss, groups: int) -> Loss:
    if not isinstance(loss, tuple) or len(loss) != 2:
        got = type(loss).__name__
        raise fault(head, f"loss() must return ptkit.Loss(sums, weights), got {got}")
    for name, values in zip(("sums", "weights"), loss, strict=True):
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if shape != [groups]:
            raise fault(
                head,
                f"loss() must return {name} of shape [{groups}], one entry a loss group, "
                f"got {shape}",
            )
    return loss


def total_loss(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    store: RowStore,
    groups: Sequence[Sequence[int]],
    settings: TrainSettings,
    each: Callable[[Tensor], None] | None = None,
) -> Totals:
    """The loss over ``groups``, split by memory; ``each`` gets the numerator of every
    micro-batch."""
    measure = sum if model.layout == "packed" else max
    lengths = [measure(store.length(i) for i in group) for group in groups]
    split = micro_batches(groups, lengths, settings.tokens_per_micro_batch, model.layout)
    total = weight = torch.zeros((), device=model.device)
    tokens = 0
    for batch in split:
        rows = [store[i] for group in batch for i in groups[group]]
        weights = torch.tensor([store[groups[group][0]].weight for group in batch])
        states = model.states(rows)
        with blamed(head, "loss()", partial(_culprits, model, head, module, store, rows)):
            loss = _checked(head, head.loss(module, states, rows), len(batch))
        numerator, denominator = combine(
            loss, weights.float().to(model.device), settings.loss_average
        )
        if each is not None:
            each(numerator)
        total = total + numerator.detach()
        weight = weight + denominator
        tokens += sum(len(row.tokens) for row in rows)
    return Totals(total, weight, tokens, len(split))


def step_gradients(
    model: Model,
    trainable: Trainable,
    head: TaskHead,
    store: RowStore,
    groups: Sequence[Sequence[int]],
    settings: TrainSettings,
    step: int,
) -> Totals:
    """Set the gradient of the step's loss on every trainable parameter.

    The prefix runs once; micro-batches add up gradients on detached copies of its keys and values,
    which go through the prefix encoder in one backward pass at the end. So the result does not
    depend on how the step is split. Sums are divided at the end, which also keeps float16 gradients
    from vanishing.
    """
    for parameter in trainable.parameters():
        parameter.grad = None
    generator = step_generator(settings.seed, step, model.device)
    made = [tensor for pair in trainable.prefix(generator) for tensor in pair]
    leaves = [tensor.detach().requires_grad_() for tensor in made]
    pairs = list(zip(leaves[::2], leaves[1::2], strict=True))

    def backward(numerator: Tensor) -> None:
        numerator.backward()
        model.set_prefix(pairs)  # the casts of the last micro-batch went with its graph

    module = trainable.module
    if module is not None:
        module.train()
    with model.using(pairs):
        totals = total_loss(model, head, module, store, groups, settings, backward)
    if module is not None:
        module.eval()
    for leaf in (*leaves, *(() if module is None else module.parameters())):
        if leaf.grad is not None:
            leaf.grad.div_(totals.weight)
    dead = sorted({index // 2 for index, leaf in enumerate(leaves) if leaf.grad is None})
    if dead:
        raise RuntimeError(f"the prefix of layers {dead} got no gradient: attention bypasses it")
    torch.autograd.backward(made, [leaf.grad for leaf in leaves])
    return totals


def learning_rate(settings: TrainSettings, step: int, total: int) -> float:
    """The rate of optimiser step ``step`` (from 0): linear warm-up, then the schedule down to 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    done = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
    }[settings.schedule]
    return settings.learning_rate * factor


def make_optimizer(trainable: Trainable, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019) over all that trains.

    A parameter group's ``share`` is its learning rate over that of the prefix.
    """
    head = [] if trainable.module is None else list(trainable.module.parameters())
    share = settings.head_learning_rate / settings.learning_rate
    groups = [{"params": list(trainable.prefix.parameters()), "share": 1.0}]
    if head:
        groups.append({"params": head, "share": share})
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


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

    def groups(self, step: int) -> list[list[int]]:
        return self.store.groups(self.order.step(step), share_loss=self.head.rows_share_loss)


class Watcher:
    """What the loop tells the run; see `ptkit.engine.session`."""

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """A step or a validation is done."""

    def validate(self) -> float | None:
        """The validation loss now; None without validation data."""
        return None

    def save(self, progress: Progress) -> None:
        """Write a checkpoint."""

    def stop_requested(self) -> bool:
        """Whether to save and stop after this step."""
        return False


def train(training: Training, watcher: Watcher, progress: Progress) -> Progress:
    """Train from ``progress.step`` to the end, an early stop, or a requested one.

    A checkpoint is written after the events of its step, so that a resumed run repeats none and
    loses none. Raises `PtkitError` for a loss or gradient that is not finite, before it reaches the
    weights.
    """
    settings, trainable, total = training.settings, training.trainable, training.total
    every = settings.eval_every or max(1, total // 10)
    save_every = settings.save_every or every
    while not progress.ended:
        started = time.perf_counter()
        step, groups = progress.step, training.groups(progress.step)
        torch.manual_seed(
            settings.seed + step
        )  # for heads that draw; the prefix has its own generator
        rate = learning_rate(settings, step, total)
        for group in training.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        totals = step_gradients(
            training.model, trainable, training.head, training.store, groups, settings, step
        )
        norm = torch.nn.utils.clip_grad_norm_(
            trainable.parameters(), settings.clip_norm or math.inf
        )
        loss, gradient = totals.loss, float(norm)
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            raise NotFinite(step + 1, loss, gradient, rows_not_finite(training, groups))
        training.optimizer.step()
        progress.step += 1
        watcher.event(
            "train",
            {
                "step": progress.step,
                "loss": loss,
                "learning_rate": rate,
                "gradient_norm": gradient,
                "tokens": totals.tokens,
                "micro_batches": totals.micro_batches,
                "seconds": time.perf_counter() - started,
            },
        )
        progress.ended = progress.step == total
        new_best = False
        if progress.ended or progress.step % every == 0:
            new_best = _validate(watcher, settings, progress)
        stop = watcher.stop_requested()
        if new_best or progress.ended or stop or progress.step % save_every == 0:
            watcher.save(progress)
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
    """The rows of the groups whose own loss is NaN or infinite."""
    found: list[int] = []
    with training.model.using(training.trainable.keys_and_values()):
        for group in groups:
            rows = [training.store[index] for index in group]
            loss = training.head.loss(training.trainable.module, training.model.states(rows), rows)
            if not bool(torch.isfinite(loss.sums).all()):
                found.extend(group)
    return found
