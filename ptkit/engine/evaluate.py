"""Losses, predictions and scores of a data part, with and without the prefix."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import chain
from math import fsum
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import nn

from ptkit.components import Metric, RowMetric, TaskHead
from ptkit.data import Part
from ptkit.engine.feeding import split
from ptkit.engine.generate import calls, window
from ptkit.engine.model import Model
from ptkit.engine.outofmemory import OutOfMemory, ran_out, release, within_memory
from ptkit.engine.processes import ALONE, Processes
from ptkit.engine.stopping import Interrupted
from ptkit.engine.train import Totals, total_loss
from ptkit.errors import PluginError, PtkitError, show_traceback
from ptkit.isolation import blamed, check_type, fault
from ptkit.models import Tokenizer
from ptkit.recipe import TrainSettings
from ptkit.records import EncodedRow, Origin, Pair, Record
from ptkit.rowstore import Origins

ROWS_AT_ONCE = 256  # rows that are sorted by length and predicted in batches, before the next

_log = logging.getLogger(__name__)


@torch.no_grad()
def evaluate_loss(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    part: Part,
    settings: TrainSettings,
    tokens: int,
    halved: Callable[[int], None],
    processes: Processes = ALONE,
) -> float:
    """The loss of a part with the prefix that the model has now, averaged as training's.

    ``tokens``: how many go through the model at once. ``halved`` is told a lower number when memory
    runs out, and the part is begun again.
    """
    store = part.rows
    groups = store.groups(range(store.records), share_loss=head.rows_share_loss)
    own = processes.share(groups, lambda group: sum(store.length(row) for row in group))

    def totals(budget: int) -> Totals:
        micro_batches = split(store, own, budget, model.layout)
        with processes.in_step(gradients=False):
            return total_loss(model, head, module, store, micro_batches, settings)

    return processes.add_up(within_memory(tokens, totals, halved)).loss


@torch.no_grad()
def predict(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    part: Part,
    tokenizer: Tokenizer,
    progress: Callable[[int, int], None] | None = None,
    processes: Processes = ALONE,
) -> list[Any]:
    """One prediction a record, in order.

    The records are dealt over ``processes``, each of which gets all predictions. ``progress`` gets
    how many rows of all are answered: as if the others had got as far as this one, which has about
    as much to do, and the total once they have.
    """
    outputs: list[Any] = []
    records, store, answer = part.records or [], part.rows, head.limits().answer
    own = processes.share(
        range(len(records)), lambda i: sum(store.length(row) + answer for row in store.rows_of(i))
    )
    rows: list[EncodedRow] = [store[row] for index in own for row in store.rows_of(index)]
    with processes.in_step(gradients=False):
        at_once = window(ROWS_AT_ONCE, model.device)
        for start in range(0, len(rows), at_once):

            def show(done: int, start: int = start) -> None:
                reached = (start + done) * len(store) // len(rows)
                if progress is not None and (processes.size == 1 or reached < len(store)):
                    progress(reached, len(store))

            some = rows[start : start + at_once]
            outputs += predict_rows(model, head, module, some, show, part.origins)
    found: list[Any] = []
    pairs = iter(zip(rows, outputs, strict=True))
    with blamed(head, "decode()", lambda: records[own[len(found)]].origin):
        for index in own:
            its = [next(pairs) for _ in store.rows_of(index)]
            its_rows, its_outputs = [row.row for row, _ in its], [output for _, output in its]
            found.append(head.decode(records[index], its_rows, its_outputs, tokenizer))
    if processes.size == 1:
        return found
    every = processes.gather(list(zip(own, found, strict=True)))
    if progress is not None:
        progress(len(store), len(store))
    return [prediction for _, prediction in sorted(chain(*every), key=itemgetter(0))]


@torch.no_grad()
def predict_rows(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    rows: Sequence[EncodedRow],
    progress: Callable[[int], None] | None = None,
    origins: Mapping[int, Origin] | Origins | None = None,
) -> list[Any]:
    """One output a row, in order; rows of like length are predicted together, longest first, and
    in two halves, one after the other, if they don't fit into memory.

    ``progress`` gets the number of rows so far; ``origins`` are those of the records, for messages.
    Raises `PluginError` if the head fails or miscounts, `OutOfMemory` for a row that does not fit
    even alone.
    """
    outputs: list[Any] = [None] * len(rows)
    done = 0
    lengths = [len(row.tokens) for row in rows]
    waiting = deque(calls(lengths, head.limits().answer, model))
    while waiting:
        batch = waiting.popleft()
        some = [rows[index] for index in batch]
        found, problem = _predicted(model, head, module, some, origins)
        if problem:
            release()
            if len(batch) == 1:
                record = some[0].record
                where = f"record {record}" if origins is None else str(origins[record])
                raise OutOfMemory(where, problem, tokens=lengths[batch[0]])
            half = -(-len(batch) // 2)
            waiting.extendleft((batch[half:], batch[:half]))
            _log.warning("out of memory: trying again with %d rows at once", half)
            continue
        got = len(found) if hasattr(found, "__len__") else type(found).__name__
        if got != len(batch):
            text = f"predict() must return one output a row, got {got} for {len(batch)} rows"
            raise fault(head, text)
        for index, output in zip(batch, found, strict=True):
            outputs[index] = output
        done += len(batch)
        if progress is not None:
            progress(done)
    return outputs


def _predicted(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    rows: Sequence[EncodedRow],
    origins: Mapping[int, Origin] | Origins | None,
) -> tuple[Any, str]:
    """What the head predicts, and nothing; or if memory runs out, what is wrong with the first."""
    try:
        with blamed(head, "predict()", partial(_failing, model, head, module, rows, origins)):
            return head.predict(model, module, rows), ""
    except OutOfMemory as error:  # of a prompt, which is the row's if it is the only one
        return None, error.problem
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
    return None, (
        f"has {len(rows[0].tokens):,} tokens, which don't fit into memory even alone; shorten it "
        "with the settings of the task, or take a smaller or quantised base model"
    )


def _failing(
    model: Model,
    head: TaskHead,
    module: nn.Module | None,
    rows: Sequence[EncodedRow],
    origins: Mapping[int, Origin] | Origins | None,
) -> str:
    """The origin of the first row that can't be predicted alone, or of the first of all."""
    if origins is None:
        return ""
    for row in rows:
        try:
            head.predict(model, module, [row])
        except (Exception, SystemExit):
            return str(origins[row.record])
    return str(origins[rows[0].record])


def pairs_of(head: TaskHead, part: Part, predictions: Sequence[Any]) -> list[Pair]:
    """Predictions beside references, for metrics."""
    pairs: list[Pair] = []
    records = part.records or []
    with blamed(head, "reference()", lambda: records[len(pairs)].origin):
        for record, prediction in zip(records, predictions, strict=True):
            pairs.append(Pair(record, prediction, head.reference(record)))
    return pairs


class Failures:
    """Metrics that failed, and what each did; the others are scored nonetheless."""

    def __init__(self) -> None:
        self.texts: dict[str, list[Metric]] = {}

    def add(self, metric: Metric, error: PtkitError) -> None:
        if isinstance(error, Interrupted):
            raise error
        show_traceback(error)
        for line in error.lines:
            self.texts.setdefault(f"{line}; its scores are left out", []).append(metric)

    def scores(self, found: Mapping[str, Scores]) -> dict[str, Scores]:
        """``found`` by column, without the metrics that failed in any of them."""
        failed = {id(metric) for metrics in self.texts.values() for metric in metrics}
        return {column: scores.without(failed) for column, scores in found.items()}


class Scores(NamedTuple):
    """What the metrics say of some predictions.

    ``total``: score by name, in the metrics' order. ``rows``: for each pair the scores of the
    metrics that score single rows; a name is missing where its metric doesn't apply. ``units``:
    unit by name. ``metrics``: the metric behind each name, of a row's scores too.
    """

    total: dict[str, float]
    rows: list[dict[str, float]]
    units: dict[str, str]
    metrics: dict[str, Metric]

    def without(self, failed: Collection[int]) -> Scores:
        """These scores without those of the metrics with the ids ``failed``."""
        kept = {name for name, metric in self.metrics.items() if id(metric) not in failed}
        return Scores(
            {name: value for name, value in self.total.items() if name in kept},
            [{n: value for n, value in row.items() if n in kept} for row in self.rows],
            {name: unit for name, unit in self.units.items() if name in kept},
            {name: metric for name, metric in self.metrics.items() if name in kept},
        )


def score_rows(
    metrics: Sequence[Metric], pairs: Sequence[Pair], failures: Failures | None = None
) -> Scores:
    """All scores, of the whole and of its rows; a row is scored once by each metric.

    Raises `PluginError` for a metric that fails, and for two that give a score of the same name;
    with ``failures``, such a metric is noted there and left out.
    """
    scores = Scores({}, [{} for _ in pairs], {}, {})
    for metric in metrics:
        try:
            total, rows = _scored(metric, pairs)
            for name in total:
                if name in scores.total:
                    raise PluginError(
                        f"metric {metric.name!r}: another metric already gives {name!r}"
                    )
        except PtkitError as error:
            if failures is None:
                raise
            failures.add(metric, error)
            continue
        scores.total.update(total)
        scores.units.update(dict.fromkeys(total, metric.unit))
        for all_scores, row in zip(scores.rows, rows, strict=False):
            all_scores.update(row)
        scores.metrics.update(dict.fromkeys([*total, *(n for row in rows for n in row)], metric))
    return scores


def _scored(
    metric: Metric, pairs: Sequence[Pair]
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """A metric's scores of all pairs, and of each if it scores single ones."""
    found: list[dict[str, float] | None] = []
    if isinstance(metric, RowMetric):
        with blamed(metric, "score_row()", lambda: pairs[len(found)].record.origin):
            for pair in pairs:
                row = metric.score_row(pair)
                if row is not None:
                    row = _plain(metric, "score_row()", row, pair.record.origin)
                found.append(row)
    rows = [row or {} for row in found]
    if isinstance(metric, RowMetric) and type(metric).score is RowMetric.score:
        some = [row for row in found if row is not None]
        with blamed(metric, "score_row()"):
            return _means(some), rows
    with blamed(metric, "score()"):
        total = metric.score(pairs)
    return _plain(metric, "score()", total), rows


def _plain(metric: Metric, what: str, scores: Any, where: object = "") -> dict[str, float]:
    """``scores`` as plain floats, if they are numbers by name."""
    check_type(metric, what, scores, Mapping, "a dict of name to score", where)
    try:
        return {str(name): float(value) for name, value in scores.items()}
    except (TypeError, ValueError) as error:
        text = f"{what} must return numbers, got {scores!r}"
        raise fault(metric, " ".join(text.split()), where) from error


def metric_warnings(
    metrics: Sequence[Metric], pairs: Sequence[Pair], failures: Failures
) -> list[str]:
    """What the metrics say that a reader must know, and which of them failed, each once."""
    texts: list[str] = []
    for metric in metrics:
        try:
            with blamed(metric, "warnings()"):
                found = metric.warnings(pairs)
            check_type(metric, "warnings()", found, list | tuple, "a list of strings")
            texts += map(str, found)
        except Interrupted:
            raise
        except PtkitError as error:
            show_traceback(error)
            texts += error.lines
    return list(dict.fromkeys([*failures.texts, *texts]))


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """As `RowMetric.score`, of scores that are known already."""
    return {name: fsum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def score(metrics: Sequence[Metric], pairs: Sequence[Pair]) -> dict[str, float]:
    """All scores by name, in the metrics' order; metrics that don't apply give none."""
    return score_rows(metrics, pairs).total


def best_constant(
    head: TaskHead,
    metrics: Sequence[Metric],
    train: Sequence[Record],
    part: Part,
    *,
    seed: int,
    failures: Failures | None = None,
) -> tuple[Any, Scores] | None:
    """The constant answer with the best first score, and its scores: what knowing nothing is worth.

    ``train``: training records, or a sample of them. Raises `PluginError` if the head fails, and
    for metrics as `score_rows` does.
    """
    best: tuple[Any, Scores] | None = None
    with blamed(head, "constants()"):
        constants = head.constants(train, seed=seed)
        check_type(head, "constants()", constants, Sequence, "a list of predictions")
    for constant in constants:
        answers = [constant] * part.count
        if callable(constant):
            with blamed(head, "constants()"):
                answers = [constant(record) for record in part.records or ()]
        pairs = pairs_of(head, part, answers)
        scores = score_rows(metrics, pairs, failures)
        if scores.total and (best is None or _first(scores) > _first(best[1])):
            best = (constant, scores)
    return best


def _first(scores: Scores) -> float:
    """The first score; negative where less is better."""
    name, value = next(iter(scores.total.items()))
    return -value if scores.metrics[name].lower_is_better else value
