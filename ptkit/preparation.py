"""What a check and a run share: a recipe's components, made, and its data, read and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ptkit import manifest
from ptkit.components import DatasetFormat, Metric, TaskHead, Tracker, Transform
from ptkit.data import Part, collect_labels, encode_part, read_parts
from ptkit.errors import PtkitError, RecipeError
from ptkit.isolation import blamed
from ptkit.models import Backbone, Tokenizer
from ptkit.recipe import PrefixSettings, Recipe
from ptkit.records import Record, Row
from ptkit.reporter import Reporter
from ptkit.rowstore import RowStore
from ptkit.settings import Component


@dataclass
class Prepared:
    """The components of a recipe, made, and its data, read and encoded; no weights."""

    recipe: Recipe
    backbone: Backbone
    head: TaskHead
    metrics: list[Metric]
    trackers: list[Tracker]
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def scored(self) -> Part | None:
        """The part that the scores are of: test, else validation."""
        return self.parts.get("test") or self.parts.get("validation")


def _made(component: Component, base: type[Any]) -> Any:
    assert isinstance(component, base)
    return component


def prefix_shape(settings: PrefixSettings, backbone: Backbone) -> tuple[int, int | None]:
    """Virtual tokens a layer, and the width of the projection, if there is one.

    As set, or those of the adapter that the prefix starts from; of a text, its number of tokens.
    """
    if settings.start is not None:
        return manifest.prefix_shape(settings.start.path)
    length = settings.length or len(prefix_tokens(settings, backbone.tokenizer))
    if not settings.projection:
        return length, None
    return length, settings.projection_hidden_size or backbone.geometry.hidden_size


def prefix_tokens(settings: PrefixSettings, tokenizer: Tokenizer) -> list[int]:
    """The text that the prefix starts from; none without one. Raises `PtkitError` for no tokens."""
    if settings.init_text is None:
        return []
    tokens = tokenizer.encode(settings.init_text)
    if not tokens:
        raise PtkitError(f"prefix.init_text: {settings.init_text!r} has no tokens; write a prompt")
    return tokens


class Watch(Protocol):
    """Sees every record with its rows as a part is encoded."""

    def __call__(self, part: Part, record: Record, rows: Sequence[Row]) -> None: ...


def prepare(recipe: Recipe, reporter: Reporter, watch: Watch | None = None) -> Prepared:
    """Make the components, read the data and encode it. Raises `PtkitError` for what doesn't fit.

    With ``watch``, which sees every row, the parts keep the lengths of their rows only.
    """
    for warning in recipe.plugin_warnings:
        reporter.warning(warning)
    form: DatasetFormat = _made(recipe.dataset.create(), DatasetFormat)
    metrics = [_made(choice.create(), Metric) for choice in recipe.metrics]
    named = {metric.name for metric in metrics}
    for control in form.controls:
        if control.name not in named:
            metrics.append(control(control.Settings()))
            metrics[-1].owner = form.owner
    trackers = [_made(choice.create(), Tracker) for choice in recipe.trackers]
    transforms = [_made(choice.create(), Transform) for choice in recipe.transforms]
    backbone: Backbone = _made(recipe.backbone.create(), Backbone)
    head: TaskHead = _made(recipe.task.create(), TaskHead)
    with blamed(backbone, "its geometry"):
        geometry = backbone.geometry
    if head.needs_lm_head and not geometry.causal:
        raise RecipeError(
            f"task.kind: {head.name!r} needs a causal model, but backbone.kind {backbone.name!r} "
            "has no LM head; use another backbone, or another task"
        )
    with blamed(backbone, "its tokenizer"):
        tokenizer = backbone.tokenizer
    parts = read_parts(form, transforms, seed=recipe.train.seed)
    if type(head).collect_labels is not TaskHead.collect_labels:
        labels = collect_labels(head, parts["train"])
        head = _made(recipe.task.create(labels=labels), TaskHead)
    for part in parts.values():
        what = f"encoding {part.name}"

        def show(done: int, what: str = what) -> None:
            reporter.progress(what, done, None, {})

        if watch is not None:
            part.rows = RowStore(keep=False)
        encode_part(
            part,
            head,
            tokenizer,
            geometry.max_positions,
            seed=recipe.train.seed,
            progress=show,
            watch=None if watch is None else partial(watch, part),
        )
        cut = int((part.rows.cuts > 0).sum())
        note = f", {cut:,} of them cut to the length limit" if cut else ""
        rows = f"{part.count:,} row{'' if part.count == 1 else 's'}"
        reporter.stage(f"{part.name}: {rows} of {part.source.name}{note}")
        if part.skipped:
            reporter.warning(f"{len(part.skipped):,} bad rows of {part.source.name} were skipped")
    return Prepared(recipe, backbone, head, metrics, trackers, parts)
