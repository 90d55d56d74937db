"""Losses, predictions and scores of a data part, with and without the prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ptkit.components import Metric, TaskHead, Tokenizer
from ptkit.engine.data import Part
from ptkit.engine.model import Model
from ptkit.engine.train import total_loss
from ptkit.errors import PluginError
from ptkit.records import EncodedRow, Pair, Record
from ptkit.recipe import TrainSettings

ROWS_AT_ONCE = 256  # rows handed to a head's predict(); generation sorts and batches within


@torch.no_grad()
def evaluate_loss(
    model: Model, head: TaskHead, module: nn.Module | None, part: Part, settings: TrainSettings
) -> float:
    """The loss of a part with the prefix that the model has now, averaged as training's."""
    groups = part.rows.groups(range(part.rows.records), share_loss=head.rows_share_loss)
    return total_loss(model, head, module, part.rows, groups, settings).loss


@torch.no_grad()
def predict(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    part: Part,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """One prediction a record, in order."""
    outputs: list[Any] = []
    rows: list[EncodedRow] = list(part.rows)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[start : start + ROWS_AT_ONCE]
        found = head.predict(model, module, batch)
        if len(found) != len(batch):
            raise PluginError(
                f"task {head.name!r}: predict() must return one output a row, "
                f"got {len(found)} for {len(batch)} rows"
            )
        outputs.extend(found)
        if progress is not None:
            progress(len(outputs), len(rows))
    return [
        head.decode(
            record,
            [rows[i].row for i in part.rows.rows_of(index)],
            [outputs[i] for i in part.rows.rows_of(index)],
            tokenizer,
        )
        for index, record in enumerate(part.records or [])
    ]


def pairs_of(head: TaskHead, part: Part, predictions: Sequence[Any]) -> list[Pair]:
    """Predictions beside references, for metrics."""
    return [
        Pair(record, prediction, head.reference(record))
        for record, prediction in zip(part.records or [], predictions, strict=True)
    ]


def score(metrics: Sequence[Metric], pairs: Sequence[Pair]) -> dict[str, float]:
    """All scores by name, in the metrics' order; metrics that don't apply give none."""
    scores: dict[str, float] = {}
    for metric in metrics:
        for name, value in metric.score(pairs).items():
            if name in scores:
                raise PluginError(f"metric {metric.name!r}: another metric already gives {name!r}")
            scores[name] = float(value)
    return scores


def best_constant(
    head: TaskHead, metrics: Sequence[Metric], train: Sequence[Record], part: Part, *, seed: int
) -> tuple[Any, dict[str, float]] | None:
    """The constant answer with the best first score, and its scores: what knowing nothing is worth.

    ``train``: training records, or a sample of them.
    """
    best: tuple[Any, dict[str, float]] | None = None
    for constant in head.constants(train, seed=seed):
        scores = score(metrics, pairs_of(head, part, [constant] * part.count))
        if scores and (best is None or next(iter(scores.values())) > next(iter(best[1].values()))):
            best = (constant, scores)
    return best
