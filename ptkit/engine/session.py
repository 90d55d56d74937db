"""From a recipe to a finished run folder, and from a folder back to a model that can be used."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

import ptkit
from ptkit.components import Backbone, Component, DatasetFormat, Metric, TaskHead, Tracker, Transform
from ptkit.engine.adapter import Adapter, describe_backbone, load_adapter, save_adapter
from ptkit.engine.batching import Order
from ptkit.engine.checkpoint import folder_of, load_trainable, save_checkpoint
from ptkit.engine.data import Part, encode_part, read_parts, sha256
from ptkit.engine.environment import describe
from ptkit.engine.evaluate import best_constant, evaluate_loss, pairs_of, predict, score
from ptkit.engine.files import whole_file, write_json, write_text
from ptkit.engine.model import Model, pick_device, pick_dtype
from ptkit.engine.plot import plot_losses, read_events
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.reporter import Reporter
from ptkit.engine.tracking import Tracking
from ptkit.engine.train import Hooks, Progress, Trainable, make_optimizer, train
from ptkit.engine.tuned import Tuned
from ptkit.errors import CheckpointError, PtkitError
from ptkit.recipe import Recipe
from ptkit.records import HeadInfo, RunInfo
from ptkit.registry import Registry, load_plugins
from ptkit.settings import SourcePath

DEFAULT_PREFIX_LENGTH = 128  # as published for ADGEN


@dataclass(frozen=True)
class RunResult:
    """What a run left: its folder and the content of scores.json."""

    folder: Path
    scores: dict[str, dict[str, float]]

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


@dataclass
class _Objects:
    """The components of a recipe, made."""

    backbone: Backbone
    form: DatasetFormat
    transforms: list[Transform]
    head: TaskHead
    metrics: list[Metric]
    trackers: list[Tracker]
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def scored(self) -> Part | None:
        """The part that the scores are of: test, else validation."""
        return self.parts.get("test") or self.parts.get("validation")


def _of(component: Component, base: type[Any]) -> Any:
    assert isinstance(component, base)
    return component


def prepare(recipe: Recipe, reporter: Reporter) -> _Objects:
    """Make the components and read and encode the data; no weights are loaded."""
    form = _of(recipe.dataset.create(), DatasetFormat)
    metrics = [_of(choice.create(), Metric) for choice in recipe.metrics]
    named = {metric.name for metric in metrics}
    metrics += [c(c.Settings()) for c in form.controls if c.name not in named]
    objects = _Objects(
        backbone=_of(recipe.backbone.create(), Backbone),
        form=form,
        transforms=[_of(choice.create(), Transform) for choice in recipe.transforms],
        head=_of(recipe.task.create(), TaskHead),
        metrics=metrics,
        trackers=[_of(choice.create(), Tracker) for choice in recipe.trackers],
    )
    geometry, tokenizer = objects.backbone.geometry, objects.backbone.tokenizer
    objects.parts = read_parts(form, objects.transforms, seed=recipe.train.seed)
    labels = objects.head.collect_labels(objects.parts["train"].records)
    if labels:
        objects.head = _of(recipe.task.create(labels=labels), TaskHead)
    for part in objects.parts.values():
        what = f"encoding {part.name}"
        encode_part(
            part,
            objects.head,
            tokenizer,
            geometry.max_positions,
            lambda done, total, what=what: reporter.progress(what, done, total, {}),  # type: ignore[misc]
        )
        cut = sum(1 for row in part.rows if row.row.cut)
        reporter.stage(
            f"{part.name}: {len(part.records):,} rows of {part.source.name}"
            + (f", {cut:,} of them cut to the length limit" if cut else "")
        )
        if part.skipped:
            reporter.warning(
                f"{len(part.skipped):,} bad rows of {part.source.name} were skipped "
                "(listed in skipped.txt)"
            )
    return objects


def build_prefix(recipe: Recipe, backbone: Backbone, model: Model) -> PrefixEncoder:
    """The prefix encoder of a recipe, initialised as it says, on the model's device."""
    settings, geometry = recipe.prefix, backbone.geometry
    tokens: list[int] = []
    if settings.init == "text":
        tokens = backbone.tokenizer.encode(settings.init_text or "")
        if not tokens:
            raise PtkitError("prefix.init_text: has no tokens")
    length = settings.length or len(tokens) or DEFAULT_PREFIX_LENGTH
    hidden = None
    if settings.projection:
        hidden = settings.projection_hidden_size or geometry.hidden_size
    prefix = PrefixEncoder(
        geometry, length, projection_hidden_size=hidden, dropout=settings.dropout
    )
    prefix.initialize(
        std=0.0 if settings.init == "zero" else settings.init_std, seed=recipe.train.seed
    )
    if tokens:  # a shorter text is repeated, a longer one cut
        repeated = (tokens * (length // len(tokens) + 1))[:length]
        prefix.initialize_from(model.keys_and_values(repeated))
    return prefix.to(model.device)


def load_model(backbone: Backbone, device: str) -> Model:
    """The frozen model of a backbone on a device, ready for rows."""
    chosen = pick_device(device)
    tokenizer = backbone.tokenizer
    return Model(
        backbone.load(chosen, pick_dtype(backbone.settings.dtype, chosen)),
        backbone.geometry,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
    )


def _build_head(head: TaskHead, backbone: Backbone, model: Model, seed: int) -> nn.Module | None:
    geometry = backbone.geometry
    module = head.build(
        HeadInfo(geometry.hidden_size, geometry.vocab_size, geometry.causal, seed)
    )
    return None if module is None else module.to(model.device)


def _run_folder(recipe: Recipe, out: str | Path | None) -> Path:
    if out is None:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        return Path("runs") / f"{recipe.name}-{stamp}"
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PtkitError(f"{folder}: exists and is not empty; choose another folder with --out")
    return folder


def _portable(value: Any) -> Any:
    """A resolved recipe without absolute paths: of a path, the name is kept."""
    if isinstance(value, Mapping):
        return {key: _portable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_portable(entry) for entry in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def run(
    recipe: Recipe | str | Path,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> RunResult:
    """Train the adapter that a recipe describes, and show what it is worth.

    ``out``: the run folder, by default ``runs/<recipe>-<time>``; ``device``: "auto", "cpu", "cuda".
    Raises `PtkitError` for anything that the user can mend.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    reporter = reporter or Reporter()
    folder = _run_folder(recipe, out)
    info = RunInfo(str(folder), recipe.resolved())
    hooks = recipe.registry.manager.hook
    try:
        return _run(recipe, folder, device, reporter)
    except BaseException as error:
        hooks.ptkit_on_run_error(run=info, error=error)
        raise


def _run(recipe: Recipe, folder: Path, device: str, reporter: Reporter) -> RunResult:
    settings = recipe.train
    device = pick_device(device)
    objects = prepare(recipe, reporter)
    backbone, head = objects.backbone, objects.head
    model = load_model(backbone, device)
    reporter.stage(
        f"backbone: {backbone.name} {backbone.settings.source.name}, "
        f"{backbone.geometry.parameters:,} frozen parameters, "
        f"{str(model.dtype).removeprefix('torch.')} on {device}"
    )
    module = _build_head(head, backbone, model, settings.seed)
    trainable = Trainable(build_prefix(recipe, backbone, model), module)
    share = trainable.count() / (trainable.count() + backbone.geometry.parameters)
    reporter.stage(f"trainable: {trainable.count():,} parameters ({share:.4%})")

    environment = describe(recipe.registry, device)
    environment["data"] = {
        part.name: {
            "source": part.source.name,
            "sha256": sha256(part.source.path),
            "rows": len(part.records),
            "skipped": len(part.skipped),
        }
        for part in objects.parts.values()
    }
    environment["trainable_parameters"] = trainable.count()
    environment["frozen_parameters"] = backbone.geometry.parameters
    info = RunInfo(str(folder), recipe.resolved(), environment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "recipe.toml", recipe.to_toml())
        write_json(folder / "environment.json", environment)
        _write_skipped(folder, objects)
    except OSError as error:
        raise PtkitError(f"{folder}: can't be written: {error.strerror}") from error
    recipe.registry.manager.hook.ptkit_before_run(run=info)
    tracking = Tracking(folder / "events.jsonl", objects.trackers, info, reporter.warning)

    scored = objects.scored
    before = None
    if scored is not None:
        what = f"answering {scored.name}, untuned"
        before = predict(
            model, head, module, scored, backbone.tokenizer, lambda d, t: reporter.progress(what, d, t, {})
        )
    _train(recipe, objects, model, trainable, folder, tracking, reporter)

    manifest = {
        "ptkit": ptkit.__version__,
        "backbone": describe_backbone(backbone),
        "task": {"kind": head.name, "labels": list(head.labels)},
        "recipe": _portable(recipe.resolved()),
        "versions": environment["packages"] | environment["plugins"],
    }
    head_tensors = {} if module is None else dict(module.state_dict())
    save_adapter(folder / "adapter", trainable.prefix, head_tensors, manifest)

    scores: dict[str, dict[str, float]] = {}
    if scored is not None:
        assert before is not None
        scores = _score(recipe, objects, scored, before, model, trainable, folder, reporter)
        tracking.event("scores", scores)
    tracking.finish()
    plot_losses(read_events(folder / "events.jsonl"), folder / "loss.png", recipe.name)
    recipe.registry.manager.hook.ptkit_after_run(run=info, scores=scores)
    reporter.finished(folder)
    return RunResult(folder, scores)


def _write_skipped(folder: Path, objects: _Objects) -> None:
    skipped = [str(row) for part in objects.parts.values() for row in part.skipped]
    if skipped:
        write_text(folder / "skipped.txt", "\n".join(skipped) + "\n")


def _train(
    recipe: Recipe,
    objects: _Objects,
    model: Model,
    trainable: Trainable,
    folder: Path,
    tracking: Tracking,
    reporter: Reporter,
) -> None:
    """Run the loop and leave the best checkpoint's weights in ``trainable``."""
    settings, head = recipe.train, objects.head
    store = objects.parts["train"].rows
    order = Order(store.records, settings.batch_size, seed=settings.seed, epochs=settings.epochs)
    total = settings.max_steps or order.steps
    assert total is not None
    validation = objects.parts.get("validation")
    optimizer = make_optimizer(trainable, settings)
    latest: dict[str, float] = {}
    if settings.gradient_checkpointing:
        model.enable_checkpointing()

    def validate() -> float:
        assert validation is not None
        with model.using(trainable.keys_and_values()):
            return evaluate_loss(model, head, trainable.module, validation, settings)

    def event(kind: str, values: dict[str, Any]) -> None:
        tracking.event(kind, values)
        if kind == "validation":
            latest["validation"] = values["loss"]
        elif kind == "train":
            latest["loss"] = values["loss"]
        if kind == "train" or values["step"] == total:
            reporter.progress("training", values["step"], total, dict(latest))

    if validation is not None:
        untuned = evaluate_loss(model, head, trainable.module, validation, settings)
        tracking.event("untuned", {"step": 0, "loss": untuned})
        latest["untuned"] = untuned
        reporter.stage(f"untuned loss on {validation.name}: {untuned:.4f}")
    started = time.perf_counter()
    progress = train(
        model,
        trainable,
        head,
        store,
        settings,
        total,
        order,
        Hooks(
            event=event,
            validate=None if validation is None else validate,
            save=lambda p: save_checkpoint(
                folder / "checkpoints", trainable, optimizer, p, keep=settings.keep
            ),
        ),
        optimizer,
        Progress(),
    )
    seconds = time.perf_counter() - started
    reporter.stage(f"trained {total:,} steps in {seconds:.0f} s")
    if progress.best_step is not None:
        load_trainable(folder_of(folder / "checkpoints", progress.best_step), trainable)
        reporter.stage(
            f"best checkpoint: step {progress.best_step}, validation loss {progress.best_loss:.4f}"
        )


def _score(
    recipe: Recipe,
    objects: _Objects,
    scored: Part,
    before: Sequence[Any],
    model: Model,
    trainable: Trainable,
    folder: Path,
    reporter: Reporter,
) -> dict[str, dict[str, float]]:
    """Answer with the prefix, score before, constant and after, and write predictions and scores."""
    head, metrics = objects.head, objects.metrics
    what = f"answering {scored.name}, tuned"
    model.set_prefix(trainable.keys_and_values())
    after = predict(
        model,
        head,
        trainable.module,
        scored,
        objects.backbone.tokenizer,
        lambda done, total: reporter.progress(what, done, total, {}),
    )
    with whole_file(folder / "predictions.jsonl") as partial, partial.open("w", encoding="utf-8") as f:
        for record, untuned, tuned in zip(scored.records, before, after, strict=True):
            shown = {
                "origin": str(record.origin),
                "prompt": getattr(record, "prompt", None),
                "reference": head.reference(record),
                "before": untuned,
                "after": tuned,
            }
            f.write(json.dumps(shown, ensure_ascii=False, default=str) + "\n")
    constant = best_constant(
        head, metrics, objects.parts["train"], scored, seed=recipe.train.seed
    )
    pairs = pairs_of(head, scored, after)
    scores = {"before": score(metrics, pairs_of(head, scored, before))}
    if constant is not None:
        scores["constant"] = constant[1]
    scores["after"] = score(metrics, pairs)
    write_json(folder / "scores.json", scores)
    for metric in metrics:
        for text in metric.warnings(pairs):
            reporter.warning(f"{metric.name}: {text}")
    reporter.scores(
        scores, None if constant is None else str(constant[0]), scored.name, len(scored.records)
    )
    return scores


def load(
    backbone: Backbone | str | Path,
    adapter: Adapter | str | Path | None = None,
    *,
    kind: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    registry: Registry | None = None,
) -> Tuned:
    """A frozen model, with an adapter if one is given, ready to use.

    ``backbone``: a model folder, a named source such as "nano", or a `Backbone`. ``kind``: which backbone
    plugin reads it; by default the one that the adapter was made with, or the only one installed.
    Raises `CheckpointError` if the adapter was made for something else.
    """
    registry = registry or load_plugins()
    loaded = adapter if isinstance(adapter, Adapter) or adapter is None else load_adapter(adapter)
    if not isinstance(backbone, Backbone):
        if kind is None:
            kind = _default_kind(loaded, registry)
        component = registry.find("backbone", kind).component
        source = str(backbone)
        named = registry.resolve_source(source)
        path = named or Path(source).expanduser()
        if not path.exists():
            raise CheckpointError(f"{source}: no such model folder, and no plugin knows that name")
        settings = component.Settings(
            source=SourcePath(source, path, named=named is not None), dtype=dtype
        )
        backbone = _of(component(settings), Backbone)
    head = module = None
    if loaded is not None:
        loaded.check_fits(backbone)
        task = loaded.manifest["recipe"]["task"]
        head_class = registry.find("task", task["kind"]).component
        options = {key: value for key, value in task.items() if key != "kind"}
        head = _of(
            head_class(head_class.Settings(**options), labels=loaded.labels),  # type: ignore[call-arg]
            TaskHead,
        )
    model = load_model(backbone, device)
    if head is not None and loaded is not None:
        module = _build_head(head, backbone, model, seed=0)
        if module is not None:
            module.load_state_dict(loaded.head)
            module.requires_grad_(False)
    return Tuned(backbone, model, loaded, head, module)


def _default_kind(adapter: Adapter | None, registry: Registry) -> str:
    if adapter is not None:
        return str(adapter.manifest["backbone"]["kind"])
    kinds = registry.names("backbone")
    if len(kinds) != 1:
        raise PtkitError(f"load() needs kind=, one of: {', '.join(kinds) or 'none is installed'}")
    return kinds[0]
