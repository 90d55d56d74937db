"""What the contract check of task heads asks of losses: sums and weights, layouts, gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ptkit.components import Loss, TaskHead
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.states import States
from ptkit.models import Backbone
from ptkit.records import EncodedRow
from ptkit.rowstore import RowStore
from ptkit.testing.faults import Subject
from ptkit.testing.tiny import tiny_model

_TOLERANCE = 1e-5  # of float32 sums in another order, relative above 1
_PREFIX_LENGTH = 3
_SUMS_HINT = "return ptkit.Loss(sums, weights) with one entry a group, and let the engine divide"


@contextmanager
def one_thread() -> Iterator[None]:
    """So small a model only waits for further threads, on a busy machine thirty times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Bench:
    """A head, its module and its rows on a tiny model in both layouts, with one prefix."""

    def __init__(
        self,
        subject: Subject,
        head: TaskHead,
        module: nn.Module | None,
        store: RowStore,
        backbone: Backbone,
    ) -> None:
        self.subject = subject
        self.head = head
        self.module = module
        self.store = store
        self.backbone = backbone
        self.packed = tiny_model(backbone)
        self.padded = tiny_model(backbone, layout="padded")
        prefix = PrefixEncoder(backbone.geometry, _PREFIX_LENGTH)
        prefix.initialize(std=0.5, seed=1)
        self.prefix = [t.detach().requires_grad_() for pair in prefix() for t in pair]
        # the groups of a step: those of a record share one where the head says so
        self.groups = store.groups(range(store.records), share_loss=head.rows_share_loss)

    @contextmanager
    def prefix_of(self, model: Model) -> Iterator[None]:
        with model.using(list(zip(self.prefix[::2], self.prefix[1::2], strict=True))):
            yield

    def states(self, model: Model, rows: Sequence[EncodedRow]) -> States:
        with self.prefix_of(model):
            return model.states(rows)

    def rows_of(self, groups: Sequence[Sequence[int]]) -> list[EncodedRow]:
        return [self.store[index] for group in groups for index in group]

    def check_untouched(self, what: str, call: Callable[[States], Any]) -> None:
        """``call`` must leave the hidden states of all rows as they are."""
        with torch.no_grad():
            states = self.states(self.packed, list(self.store))
            hidden = states.hidden.clone()
            self.subject.call(what, lambda: call(states))
        if not torch.equal(states.hidden, hidden):
            raise self.subject.fault(
                f"{what} changed the hidden states in place; others still need them, work on a copy"
            )

    def loss(self, groups: Sequence[Sequence[int]], model: Model | None = None) -> Loss:
        """The head's loss of ``groups``, with its graph, checked for shape and sense."""
        rows = self.rows_of(groups)
        given = list(rows)
        states = self.states(model or self.packed, rows)
        loss = self.subject.call("loss()", lambda: self.head.loss(self.module, states, given))
        if given != rows:
            raise self.subject.fault("loss() changed its list of rows; work on a copy")
        if not isinstance(loss, tuple) or len(loss) != 2:
            raise self.subject.fault(f"loss() gave a {type(loss).__name__}; {_SUMS_HINT}")
        for name, values in zip(("sums", "weights"), loss, strict=True):
            if not isinstance(values, Tensor) or tuple(values.shape) != (len(groups),):
                got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise self.subject.fault(
                    f"loss() gave {name} of shape {got} for {len(groups)} groups; no head adds up "
                    f"or averages by itself: {_SUMS_HINT}"
                )
            if not bool(values.isfinite().all()):
                raise self.subject.fault(
                    f"loss() gave {name} that are not finite: {values.tolist()}"
                )
        sums, weights = loss
        if bool((weights < 0).any()):
            raise self.subject.fault(f"loss() gave negative weights: {weights.tolist()}")
        return Loss(sums, weights)


def check_losses(bench: Bench) -> None:
    """A loss must not depend on the batch, its order, its layout or on checkpointing."""
    subject, groups = bench.subject, bench.groups
    rows = list(bench.store)
    bench.check_untouched(
        "loss()", lambda states: bench.head.loss(bench.module, states, list(rows))
    )
    whole = bench.loss(groups)
    if not bool((whole.weights > 0).any()):
        raise subject.fault(
            "loss() gave no record any weight; check it with records that have answers"
        )
    if whole.weights.requires_grad:
        raise subject.fault("loss() gave weights that depend on the model; weights only count")
    if not _close(whole, bench.loss(groups)):
        raise subject.fault(
            "loss() gives other values the second time; keep no state between rows, and no dropout "
            "in the module"
        )
    _check_alone(bench, whole)
    _check_gradients(bench, whole)


def _check_alone(bench: Bench, whole: Loss) -> None:
    """Every group beside itself, in reverse order and alone: always the same sums and weights."""
    subject, groups = bench.subject, bench.groups
    single = [bench.loss([group]) for group in groups]
    alone = Loss(torch.cat([x.sums for x in single]), torch.cat([x.weights for x in single]))
    twice = bench.loss([*groups, *groups])
    expected = Loss(torch.cat([whole.sums] * 2), torch.cat([whole.weights] * 2))
    doubled = _close(twice, expected)
    spread = len(groups) > 1 and _equal(whole.sums, whole.sums.mean().expand_as(whole.sums))
    halved = not doubled and _equal(2 * twice.sums, expected.sums)
    if halved or (spread and not _close(alone, whole)):
        raise subject.fault(
            f"loss() averages by itself: {_total(whole)} for all rows, {_total(twice)} for them "
            f"twice, {_total(alone)} for each alone; {_SUMS_HINT}"
        )
    for index, (group, found) in enumerate(zip(groups, single, strict=True)):
        if not _close(found, Loss(whole.sums[index, None], whole.weights[index, None])):
            row = bench.store[group[0]]
            raise subject.fault(
                f"the loss of record {row.record} (row {row.part}) is {_told(found, 0)} alone, but "
                f"{_told(whole, index)} packed beside other rows: it reads beyond its own tokens "
                "or counts padding; use states.at, first, last, mean, or the mask of padded()"
            )
    if not doubled:
        raise subject.fault(
            "the loss changes when rows come twice in a batch; a group begins at each row whose "
            "part is 0, also if its record is that of the row before"
        )
    reverse = bench.loss(groups[::-1])
    if not _close(Loss(reverse.sums.flip(0), reverse.weights.flip(0)), whole):
        raise subject.fault("the losses are not in the order of the rows, which come in any order")


def _check_gradients(bench: Bench, whole: Loss) -> None:
    """Loss and gradients packed, padded and with checkpointing."""
    subject = bench.subject
    names = {id(tensor): f"the prefix of layer {i // 2}" for i, tensor in enumerate(bench.prefix)}
    trained = list(bench.prefix)
    if bench.module is not None:
        named = {n: p for n, p in bench.module.named_parameters() if p.requires_grad}
        names |= {id(parameter): f"{name} of the module" for name, parameter in named.items()}
        trained += named.values()
    checkpointed = tiny_model(bench.backbone)
    checkpointed.enable_checkpointing()
    reference: list[Tensor] | None = None
    for what, model in {
        "": bench.packed,
        "the model pads rows instead of packing them": bench.padded,
        "gradient checkpointing is on": checkpointed,
    }.items():
        with bench.prefix_of(model):  # the backward pass of checkpointing runs the layers again
            loss = bench.loss(bench.groups, model)
            graph = loss.sums.requires_grad
            found = _gradients(loss, trained) if graph else ()
        if not _close(loss, whole):
            raise subject.fault(
                f"the loss changes when {what}: {loss.sums.tolist()} instead of "
                f"{whole.sums.tolist()}; look at hidden states through ptkit.States only, and see "
                "that the backbone passes with a head of ptkit's own"
            )
        if not graph:
            raise subject.fault(
                "loss() gave sums without a graph, so that nothing trains; don't detach()"
            )
        gradients = []
        for tensor, gradient in zip(trained, found, strict=True):
            if gradient is None:
                raise subject.fault(
                    f"{names[id(tensor)]} gets no gradient; use it in loss(), and don't detach the "
                    "hidden states"
                )
            gradients.append(gradient)
        reference = reference or gradients
        for tensor, gradient, expected in zip(trained, gradients, reference, strict=True):
            if not _equal(gradient, expected):
                raise subject.fault(f"the gradient of {names[id(tensor)]} changes when {what}")


def _gradients(loss: Loss, trained: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(loss.sums.sum() / loss.weights.sum(), trained, allow_unused=True)


def _equal(left: Tensor, right: Tensor) -> bool:
    scale = max(1.0, float(right.detach().abs().max()))
    return float((left - right).detach().abs().max()) <= _TOLERANCE * scale


def _close(left: Loss, right: Loss) -> bool:
    return _equal(left.sums, right.sums) and _equal(left.weights, right.weights)


def _total(loss: Loss) -> str:
    return f"{loss.sums.sum().item():.6g}"


def _told(loss: Loss, index: int) -> str:
    return f"{loss.sums[index].item():.6g} (weight {loss.weights[index].item():.6g})"
