"""What a recipe will do to its data, before any weights are loaded, as ``ptkit check`` shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ptkit.batching import Order, micro_batches, shared_stem
from ptkit.components import TaskHead
from ptkit.counting import (
    Equal,
    Lengths,
    Tally,
    lengths,
    percentile,
    repeats,
    shared,
)
from ptkit.data import Part
from ptkit.memory import (
    BYTES,
    Fit,
    Memory,
    MicroBatch,
    by_layers,
    gib,
    largest,
    memory_of_machine,
    prefix_parameters,
)
from ptkit.models import Backbone
from ptkit.preparation import Prepared, prefix_shape, prepare
from ptkit.recipe import Recipe
from ptkit.records import Geometry, Record, Row
from ptkit.reporter import Reporter
from ptkit.samples import Sample, sample_of

STEPS_LOOKED_AT = 2000  # for tokens and micro-batches a step
MESSAGES = 5  # of rejected rows
PROCESSES = (2, 4, 8)  # that may share a base
MANY_EPOCHS = 20
MANY_CUT = 0.01  # share of the rows
MANY_ANSWERS = 200_000  # tokens


@dataclass(frozen=True)
class PartReport:
    """A part of the data. ``records`` are the rows of the file, ``sequences`` what they became.

    ``cut``: sequences that lost tokens; ``cut_both``: those that lost some of prompt and target.
    ``repeats``: records that equal an earlier one of the part; ``shared``: those that train has.
    """

    name: str
    source: str
    records: int
    sequences: int
    skipped: int
    messages: list[str]
    lengths: list[Lengths]
    cut: int
    cut_both: int
    repeats: Equal
    shared: Equal | None
    first: list[Sample]


@dataclass(frozen=True)
class Plan:
    """Training in numbers. Means and the padding are of the first ``steps_looked_at`` steps.

    ``padding``: the per cent of a step that would be padding if rows were padded to its longest.
    ``stem``: the tokens that all rows begin with and that are computed once a micro-batch.
    """

    steps: int
    epochs: float
    records_per_step: int
    tokens_per_step: float
    targets_per_step: float
    micro_batches_per_step: float
    padding: float
    steps_looked_at: int
    stem: int


@dataclass(frozen=True)
class Report:
    """The result of a check.

    ``recipe``: its path, or its name. ``trainable``: parameters of the prefix; ``head_trains``:
    whether a module of the head trains besides. ``estimates``: peaks for CPU and GPU, with no layer
    and with all layers computed again, for the ``largest`` micro-batch; ``memory``: the setting;
    ``fits``: how that goes here, a line each as text. ``warnings``, ``suggestions``: a line each.
    """

    recipe: str
    backbone: str
    parts: list[PartReport]
    plan: Plan
    prefix_length: int
    trainable: int
    head_trains: bool
    frozen: int
    largest: MicroBatch
    estimates: list[Memory]
    memory: str
    fits: list[Fit]
    warnings: list[str]
    suggestions: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            **asdict(self),
            "largest": {
                "rows": len(self.largest.lengths),
                "tokens": self.largest.tokens,
                "longest": max(self.largest.lengths),
                "targets": self.largest.targets,
            },
            "estimates": [memory.as_dict() for memory in self.estimates],
            "fits": [
                {
                    "device": fit.memory.device,
                    "name": fit.name,
                    "available": fit.available,
                    "fits": fit.fits,
                    "recomputed": fit.memory.recomputed,
                    "total": fit.memory.total,
                    "text": str(fit),
                }
                for fit in self.fits
            ],
        }


def check(
    recipe: Recipe,
    reporter: Reporter,
    *,
    shown: int = 2,
    gpu: Callable[[], tuple[str, int] | None] = lambda: None,
) -> Report:
    """Read and encode the data of a recipe, and count. ``shown``: training records to show whole.
    ``gpu``: asked, when the data is read, for the name and the free bytes of a GPU, if there is
    one.

    Raises `PtkitError` as a run would.
    """
    tallies: dict[str, Tally] = {}

    def watch(part: Part, record: Record, rows: Sequence[Row]) -> None:
        if part.name not in tallies:
            tallies[part.name] = Tally(part, shown if part.name == "train" else 0)
        tallies[part.name].add(record, rows)

    prepared = prepare(recipe, reporter, watch)
    backbone, head = prepared.backbone, prepared.head
    geometry = backbone.geometry
    length, projection = prefix_shape(recipe.prefix, backbone)
    trainable = prefix_parameters(geometry, length, projection)
    plan, batches = _plan(recipe, head, geometry, tallies["train"])
    parts = [_part_report(tally, tallies["train"], prepared) for tally in tallies.values()]
    cpu, cuda = (_estimates(backbone, batches, length, trainable, d) for d in ("cpu", "cuda"))
    fits = _fits(recipe.train.memory, cpu, cuda, gpu(), batches, geometry, length)
    advice = suggestions(list(tallies.values()), head, backbone)
    if recipe.train.shard_base:
        shared = {n: _estimates(backbone, batches, length, trainable, "cuda", n) for n in PROCESSES}
        each = [f"{gib(found[0].total)} with {n}" for n, found in shared.items()]
        advice.append(
            "train.shard_base: the memory above is for one process; of several each takes, with no "
            f"layer computed again on GPUs, {', '.join(each)}"
        )
    return Report(
        recipe.name if recipe.path is None else str(recipe.path),
        f"{backbone.name} {backbone.settings.source.name}",
        parts,
        plan,
        length,
        trainable,
        type(head).build is not TaskHead.build,
        geometry.parameters,
        largest(batches, geometry, length, "cpu"),
        [found[count] for found in (cpu, cuda) for count in (0, -1)],
        recipe.train.memory,
        fits,
        _warnings(recipe, head, parts, plan, length),
        advice,
    )


def _part_report(tally: Tally, train: Tally, prepared: Prepared) -> PartReport:
    part = tally.part
    sides = tally.sides()
    lost = [cut > 0 for _, cut in sides.values()]
    return PartReport(
        part.name,
        part.source.name,
        part.count,
        len(part.rows),
        len(part.skipped),
        [str(row) for row in part.skipped[:MESSAGES]],
        [lengths(what, left, cut) for what, (left, cut) in sides.items()],
        int(np.logical_or.reduce(lost).sum()),
        int(np.logical_and.reduce(lost).sum()) if len(lost) > 1 else 0,
        repeats(tally),
        None if tally is train else shared(tally, train),
        [
            sample_of(record, rows, tally.kind, prepared.head, prepared.backbone.tokenizer)
            for record, rows in tally.first
        ],
    )


# ------------------------------------------------------------------------------------------ plan


def _plan(
    recipe: Recipe, head: TaskHead, geometry: Geometry, train: Tally
) -> tuple[Plan, list[MicroBatch]]:
    """Training in numbers, and the micro-batches of the steps that were looked at."""
    settings, store = recipe.train, train.part.rows
    order = Order(store.records, settings.batch_size, seed=settings.seed, epochs=settings.epochs)
    steps = settings.max_steps or order.steps
    assert steps is not None
    seen = steps * settings.batch_size if order.end is None else order.end
    stem, dropout = len(shared_stem(store, geometry, settings)), settings.backbone_dropout > 0
    batches: list[MicroBatch] = []
    tokens = targets = padded = 0
    looked_at = min(steps, STEPS_LOOKED_AT)
    for step in range(looked_at):
        groups = store.groups(order.step(step), share_loss=head.rows_share_loss)
        sizes = [[store.length(row) for row in group] for group in groups]
        totals = [sum(group) for group in sizes]
        tokens += sum(totals)
        rows = [length for group in sizes for length in group]
        padded += len(rows) * max(rows)
        for batch in micro_batches(groups, totals, settings.tokens_per_micro_batch):
            trained = sum(train.trained(row) for group in batch for row in groups[group])
            targets += trained
            lengths = tuple(length for group in batch for length in sizes[group])
            batches.append(MicroBatch(lengths, trained, dropout, stem))
    plan = Plan(
        steps,
        seen / store.records,
        settings.batch_size,
        tokens / looked_at,
        targets / looked_at,
        len(batches) / looked_at,
        100 * (1 - tokens / padded),
        looked_at,
        stem,
    )
    return plan, batches


def _estimates(
    backbone: Backbone,
    batches: Sequence[MicroBatch],
    prefix: int,
    trainable: int,
    device: str,
    processes: int = 1,
) -> list[Memory]:
    """`by_layers` on a device, "cpu" or "cuda"; ``processes`` share the weights."""
    geometry, chosen = backbone.geometry, backbone.settings.dtype
    default = "float32" if device == "cpu" else "bfloat16"
    return by_layers(
        geometry,
        largest(batches, geometry, prefix, device),
        prefix=prefix,
        trainable=trainable,
        device=device,
        dtype=chosen if chosen in BYTES else default,
        quantization=backbone.quantization,
        on_host=backbone.parameters_on_host if device == "cuda" else 0,
        processes=processes,
    )


def _fits(
    use: str,
    cpu: list[Memory],
    cuda: list[Memory],
    gpu: tuple[str, int] | None,
    batches: Sequence[MicroBatch],
    geometry: Geometry,
    prefix: int,
) -> list[Fit]:
    rows = [len(largest(batches, geometry, prefix, d).lengths) for d in ("cpu", "cuda")]
    found = [Fit.of("CPU of this computer", use, memory_of_machine(), cpu, rows[0])]
    name, free = ("a GPU", None) if gpu is None else gpu
    return [*found, Fit.of(name, use, free, cuda, rows[1])]


# ---------------------------------------------------------------------------------------- advice


def suggestions(tallies: Sequence[Tally], head: TaskHead, backbone: Backbone) -> list[str]:
    """A line for each limit that cuts 1 % of a part's rows or more: what it would have to be."""
    limits, room = head.limits(), backbone.geometry.max_positions
    keys = {"prompt": limits.source, "input": limits.source, "target": limits.target}
    found = []
    for what, key in keys.items():
        sides = [(t.part.name, *t.sides()[what]) for t in tallies if what in t.sides()]
        cut_rows = [
            f"{100 * share:.1f} % of the {name} rows"
            for name, _, cut in sides
            if (share := float((cut > 0).mean())) >= MANY_CUT
        ]
        if not cut_rows:
            continue
        line = f"the {what} is cut in {' and '.join(cut_rows)}"
        if key is None:
            found.append(f"{line}; raise the limit of task {head.name!r}")
            continue
        limit = getattr(head.settings, key)
        # a target may have an eos that doesn't count, so what it lacks is added to the limit
        wanted = np.concatenate(
            [
                np.where(cut > 0, limit + cut if what == "target" else left + cut, 0)
                for _, left, cut in sides
            ]
        )
        whole, most = int(wanted.max()), percentile(wanted, 99)
        line += f"; task.{key} = {whole} (now {limit}) would keep all"
        if limit < most < whole:
            line += f", {most} would keep 99 %"
        if whole > room:
            line += f"; the backbone takes {room:,} tokens in all"
        found.append(line)
    return found


def _warnings(
    recipe: Recipe, head: TaskHead, parts: Sequence[PartReport], plan: Plan, prefix: int
) -> list[str]:
    by_name = {part.name: part for part in parts}
    train, settings = by_name["train"], recipe.train
    found = recipe.plugin_warnings
    for part in parts:
        if part.shared is not None and part.shared.count:
            first, second = part.shared.examples[0]
            found.append(
                f"{part.shared.count:,} of {part.records:,} {part.name} rows are training rows, "
                f"too ({second} = {first}): their scores show memory, not skill; remove them"
            )
        if part.skipped:
            found.append(f"{part.skipped:,} bad rows of {part.name} are skipped")
    if "validation" not in by_name:
        found.append(
            "there is no validation data, so no best checkpoint is picked"
            + ("" if "test" in by_name else " and nothing is scored")
            + "; set dataset.validation, or dataset.split = 0.1"
        )
    if settings.batch_size > train.records:
        found.append(
            f"train.batch_size = {settings.batch_size} is more than the {train.records:,} training "
            "rows, so that a step has rows twice; lower it"
        )
    if plan.epochs > MANY_EPOCHS:
        found.append(
            f"every training row is seen {plan.epochs:.0f} times; more than {MANY_EPOCHS} mostly "
            "learns them by heart: lower train.max_steps or train.epochs, or set train.patience"
        )
    if train.records < prefix:
        found.append(
            f"the prefix has more virtual tokens ({prefix}) than there are training rows "
            f"({train.records:,}); a shorter prefix.length is likely to do better"
        )
    scored = by_name.get("test") or by_name.get("validation")
    answer = head.limits().answer
    if scored is not None and scored.records * answer >= MANY_ANSWERS:
        found.append(
            f"{scored.records:,} {scored.name} rows are answered twice, before and after, with up "
            f"to {answer} tokens each: up to {2 * scored.records * answer:,} tokens; "
            f"dataset.limit.{scored.name} takes fewer rows"
        )
    return found
