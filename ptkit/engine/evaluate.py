"""Losses, predictions and scores of a data part, with and without the prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import fsum
from typing import Any, NamedTuple

import torch
from torch import nn

from ptkit.components import Metric, RowMetric, TaskHead, Tokenizer
from ptkit.data import Part
from ptkit.engine.generate import batches
from ptkit.engine.model import Model
from ptkit.engine.train import total_loss
from ptkit.errors import PluginError
from ptkit.recipe import TrainSettings
from ptkit.records import EncodedRow, Pair, Record

ROWS_AT_ONCE = 256  # rows that are sorted by length and predicted in batches, before the next


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

        def show(done: int, start: int = start) -> None:
            if progress is not None:
                progress(start + done, len(rows))

        outputs += predict_rows(model, head, module, rows[start : start + ROWS_AT_ONCE], show)
    return [
        head.decode(
            record,
            [rows[i].row for i in part.rows.rows_of(index)],
            [outputs[i] for i in part.rows.rows_of(index)],
            tokenizer,
        )
        for index, record in enumerate(part.records or [])
    ]


@torch.no_grad()
def predict_rows(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    rows: Sequence[EncodedRow],
    progress: Callable[[int], None] | None = None,
) -> list[Any]:
    """One output a row, in order; rows of like length are predicted together, longest first.

    ``progress`` gets the number of rows so far. Raises `PluginError` if the head miscounts.
    """
    outputs: list[Any] = [None] * len(rows)
    done = 0
    lengths = [len(row.tokens) for row in rows]
    for batch in batches(lengths, head.limits().answer, model.batch_tokens):
        found = head.predict(model, module, [rows[index] for index in batch])
        if len(found) != len(batch):
            raise PluginError(
                f"task {head.name!r}: predict() must return one output a row, "
                f"got {len(found)} for {len(batch)} rows"
            )
        for index, output in zip(batch, found, strict=True):
            outputs[index] = output
        done += len(batch)
        if progress is not None:
            progress(done)
    return outputs


def pairs_of(head: TaskHead, part: Part, predictions: Sequence[Any]) -> list[Pair]:
    """Predictions beside references, for metrics."""
    return [
        Pair(record, prediction, head.reference(record))
        for record, prediction in zip(part.records or [], predictions, strict=True)
    ]


class Scores(NamedTuple):
    """What the metrics say of some predictions.

    ``total``: score by name, in the metrics' order. ``rows``: for each pair the scores of the
    metrics that score single rows; a name is missing where its metric doesn't apply. ``units``:
    unit by name.
    """

    total: dict[str, float]
    rows: list[dict[str, float]]
    units: dict[str, str]


def score_rows(metrics: Sequence[Metric], pairs: Sequence[Pair]) -> Scores:
    """All scores, of the whole and of its rows; a row is scored once by each metric.

    Raises `PluginError` if two metrics give a score of the same name.
    """
    total: dict[str, float] = {}
    rows: list[dict[str, float]] = [{} for _ in pairs]
    units: dict[str, str] = {}
    for metric in metrics:
        if isinstance(metric, RowMetric):
            found = [metric.score_row(pair) for pair in pairs]
            for row, scores in zip(rows, found, strict=True):
                row.update(scores or {})
            if type(metric).score is RowMetric.score:
                means = _means([scores for scores in found if scores is not None])
            else:
                means = metric.score(pairs)
        else:
            means = metric.score(pairs)
        for name, value in means.items():
            if name in total:
                raise PluginError(f"metric {metric.name!r}: another metric already gives {name!r}")
            total[name] = float(value)
            units[name] = metric.unit
    return Scores(total, rows, units)


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """As `RowMetric.score`, of scores that are known already."""
    return {name: fsum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def score(metrics: Sequence[Metric], pairs: Sequence[Pair]) -> dict[str, float]:
    """All scores by name, in the metrics' order; metrics that don't apply give none."""
    return score_rows(metrics, pairs).total


def best_constant(
    head: TaskHead, metrics: Sequence[Metric], train: Sequence[Record], part: Part, *, seed: int
) -> tuple[Any, Scores] | None:
    """The constant answer with the best first score, and its scores: what knowing nothing is worth.

    ``train``: training records, or a sample of them.
    """
    best: tuple[Any, Scores] | None = None
    for constant in head.constants(train, seed=seed):
        scores = score_rows(metrics, pairs_of(head, part, [constant] * part.count))
        if scores.total and (best is None or _first(scores) > _first(best[1])):
            best = (constant, scores)
    return best


def _first(scores: Scores) -> float:
    return next(iter(scores.total.values()))
