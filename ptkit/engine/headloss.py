"""A head's loss of a micro-batch: checked, its faults told with the origin of the row, and added
up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ptkit.components import Loss, TaskHead
from ptkit.engine.loss import at_least_float32
from ptkit.engine.model import Model
from ptkit.isolation import blamed, fault
from ptkit.records import EncodedRow
from ptkit.rowstore import RowStore


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


def head_loss(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    store: RowStore,
    rows: Sequence[EncodedRow],
    groups: int,
) -> Loss:
    """The loss of ``rows``, which are ``groups`` loss groups. Raises `PluginError` for what the
    head does wrong."""
    states = model.states(rows)
    with blamed(head, "loss()", partial(_culprits, model, head, module, store, rows)):
        return _checked(head, head.loss(module, states, rows), groups)


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
