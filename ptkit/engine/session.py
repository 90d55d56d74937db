"""From a recipe to a finished run folder; every stage can be repeated, so a run can be resumed at
any of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torch import nn

import ptkit
from ptkit.batching import Order
from ptkit.components import Backbone, LoadedBackbone, TaskHead
from ptkit.data import Part
from ptkit.engine.adapter import describe_backbone, save_adapter
from ptkit.engine.card import write_card
from ptkit.engine.checkpoint import (
    folder_of,
    load_optimizer,
    load_trainable,
    newest_checkpoint,
    read_progress,
    save_checkpoint,
)
from ptkit.engine.environment import describe
from ptkit.engine.evaluate import (
    Failures,
    Scores,
    best_constant,
    evaluate_loss,
    metric_warnings,
    pairs_of,
    predict,
    score_rows,
)
from ptkit.engine.files import clear_partials, whole_file, write_json, write_text
from ptkit.engine.lengths import describe_lengths
from ptkit.engine.model import Model, pick_device, pick_dtype
from ptkit.engine.plot import plot_losses
from ptkit.engine.probe import probe
from ptkit.engine.report import write_report
from ptkit.engine.resume import check_same_run, check_unused
from ptkit.engine.start import build_prefix, continue_head, starting_adapter
from ptkit.engine.stopping import Interrupted, StopSignals
from ptkit.engine.tracking import Tracking, read_events
from ptkit.engine.train import (
    NotFinite,
    Progress,
    Trainable,
    Training,
    Watcher,
    make_optimizer,
    train,
)
from ptkit.errors import PluginError, PtkitError
from ptkit.isolation import blamed, check_type
from ptkit.preparation import prepare
from ptkit.recipe import Recipe
from ptkit.records import EncodedRow, HeadInfo, RunInfo
from ptkit.reporter import Reporter

CHECKPOINTS = "checkpoints"
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class RunResult:
    """What a run left: its folder and the content of scores.json."""

    folder: Path
    scores: dict[str, dict[str, float]]

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


def load_model(
    backbone: Backbone, device: str, progress: Callable[[int, int], None] | None = None
) -> Model:
    """The frozen model of a backbone on a device, ready for rows.

    ``progress`` gets the number of tensors that are loaded, and of all.
    """
    chosen = pick_device(device)
    tokenizer = backbone.tokenizer
    with blamed(backbone, "load()"):
        loaded = backbone.load(chosen, pick_dtype(backbone.settings.dtype, chosen), progress)
        check_type(backbone, "load()", loaded, LoadedBackbone, "a ptkit.LoadedBackbone")
    return Model(
        loaded,
        backbone.geometry,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        stop_ids=tokenizer.stop_ids,
    )


def build_head(
    head: TaskHead,
    backbone: Backbone,
    model: Model,
    seed: int,
    rows: Iterable[EncodedRow] = (),
) -> nn.Module | None:
    """The head's trainable module, if it has one, on the model's device.

    ``rows``: those that it will be trained on.
    """
    shape = backbone.geometry
    info = HeadInfo(shape.hidden_size, shape.vocab_size, shape.causal, seed, rows)
    with blamed(head, "build()"):
        module = head.build(info)
        wanted = "a torch module or None"
        check_type(head, "build()", module, nn.Module | None, wanted)
    return None if module is None else module.to(model.device).eval()


def run(
    recipe: Recipe | str | Path,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train the adapter that a recipe describes, and show what it is worth.

    ``out``: the run folder, by default ``runs/<recipe>-<time>``; ``device``: "auto", "cpu", "cuda";
    ``resume``: go on in ``out`` from its newest checkpoint, with exactly the result of a run that
    was never stopped. Ctrl-C and SIGTERM save a checkpoint and raise `Interrupted`; a second one
    stops at once.

    >>> import ptkit
    >>> recipe = ptkit.Recipe.load("quickstart.toml", overrides=["train.max_steps=20"])
    >>> result = ptkit.run(recipe, out="runs/first")
    >>> list(result.scores)  # each is a score by name, such as result.scores["after"]["bleu-4"]
    ['before', 'constant', 'after']
    >>> tuned = ptkit.load("nano", result.adapter)

    Raises `PtkitError` for anything that the user can mend.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    if resume and out is None:
        raise PtkitError("--resume needs --out with the folder of the run to go on with")
    folder = Path(out) if out is not None else _default_folder(recipe)
    check_unused(folder, resume=resume)
    info = RunInfo(str(folder), recipe.resolved())
    try:
        with StopSignals() as signals:
            return _Run(recipe, folder, device, signals, reporter or Reporter(), resume).run()
    except BaseException as error:
        recipe.registry.manager.hook.ptkit_on_run_error(run=info, error=error)
        raise


def _default_folder(recipe: Recipe) -> Path:
    return Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"


class _Run(Watcher):
    """One run, stage by stage."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        device: str,
        signals: StopSignals,
        reporter: Reporter,
        resume: bool,  # noqa: FBT001
    ) -> None:
        self.recipe = recipe
        self.settings = recipe.train
        self.folder = folder
        self.device = pick_device(device)
        self.signals = signals
        self.reporter = reporter
        self.resume = resume
        self.checkpoints = folder / CHECKPOINTS
        self.latest: dict[str, float] = {}
        self.failed: list[str] = []  # what went wrong outside of metrics, and ended nothing

    def run(self) -> RunResult:
        hooks = self.recipe.registry.manager.hook
        try:
            self.prepared = prepare(self.recipe, self.reporter)
            self._load()
            self._open_folder()
            hooks.ptkit_before_run(run=self.info)
            before = self._answer("untuned")  # with a head as it starts, in a resumed run too
            self._measure_untuned()
            self._restore()
            self._train()
            self._save_adapter()
            scores = self._score(before)
            plot_losses(
                read_events(self.folder / EVENTS), self.folder / "loss.png", self.recipe.name
            )
            write_card(self.folder)
            write_report(self.folder)
        except Interrupted as stop:
            raise Interrupted(stop.number, *self._how_to_resume()) from None
        finally:
            if hasattr(self, "tracking"):
                self.tracking.finish()
        hooks.ptkit_after_run(run=self.info, scores=scores)
        self.reporter.finished(self.folder)
        return RunResult(self.folder, scores)

    # ---------------------------------------------------------------------------------- set-up

    def _load(self) -> None:
        backbone, recipe = self.prepared.backbone, self.recipe
        start = starting_adapter(recipe, backbone, self.reporter)  # before loading
        self.model = load_model(backbone, self.device, self._show_loading)
        probe(self.model)
        frozen = backbone.geometry.parameters
        dtype = str(self.model.dtype).removeprefix("torch.")
        self.reporter.stage(
            f"backbone: {backbone.name} {backbone.settings.source.name}, "
            f"{frozen:,} frozen parameters, {dtype} on {self.device}"
        )
        for note in backbone.notes:
            self.reporter.stage(note)
        rows = self.prepared.parts["train"].rows
        module = build_head(self.prepared.head, backbone, self.model, self.settings.seed, rows)
        self.trainable = Trainable(build_prefix(recipe, backbone, self.model, start), module)
        if start is not None:
            self.reporter.stage(continue_head(start, self.prepared.head, module))
        count = self.trainable.count()
        self.reporter.stage(f"trainable: {count:,} parameters ({count / (count + frozen):.4%})")
        self.environment = {
            **describe(recipe.registry, self.device),
            "dtype": dtype,
            "trainable_parameters": count,
            "frozen_parameters": frozen,
            "backbone": describe_backbone(backbone),
            **({} if start is None else {"start": {"checksum": start.checksum}}),
            "data": {
                part.name: {
                    "source": part.source.name,
                    "sha256": part.sha256,
                    "rows": part.count,
                    "skipped": len(part.skipped),
                }
                for part in self.prepared.parts.values()
            },
        }
        self.info = RunInfo(str(self.folder), recipe.resolved(), self.environment)

    def _show_loading(self, done: int, total: int) -> None:
        self.reporter.progress("loading", done, total, {})

    def _open_folder(self) -> None:
        """Write what the run is, or check that a resumed one is the same; start the events."""
        checkpoint = None
        if self.resume:
            clear_partials(self.folder)
            for warning in check_same_run(self.folder, self.recipe, self.environment):
                self.reporter.warning(warning)
            checkpoint = newest_checkpoint(self.checkpoints)
        self.progress = Progress() if checkpoint is None else read_progress(checkpoint)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PtkitError(f"{self.folder}: can't be made: {error.strerror}") from error
        if not (self.folder / "environment.json").exists():
            write_text(self.folder / "recipe.toml", self.recipe.to_toml())
            skipped = [str(row) for part in self.prepared.parts.values() for row in part.skipped]
            if skipped:
                write_text(self.folder / "skipped.txt", "\n".join(skipped) + "\n")
            lengths = describe_lengths(self.prepared.head, self.prepared.parts.values())
            write_json(self.folder / "lengths.json", lengths)
            write_json(self.folder / "environment.json", self.environment)
        store = self.prepared.parts["train"].rows
        settings = self.settings
        order = Order(
            store.records, settings.batch_size, seed=settings.seed, epochs=settings.epochs
        )
        total = settings.max_steps or order.steps
        assert total is not None
        self.training = Training(
            self.model,
            self.trainable,
            self.prepared.head,
            store,
            settings,
            order,
            total,
            make_optimizer(self.trainable, settings),
        )
        self.checkpoint = checkpoint
        self.tracking = Tracking(
            self.folder / EVENTS,
            self.prepared.trackers,
            self.info,
            self.reporter.failure,
            upto=self.progress.step,
        )

    # ---------------------------------------------------------------------------------- training

    def _measure_untuned(self) -> None:
        """The validation loss without a prefix, for comparison."""
        validation = self.prepared.parts.get("validation")
        if validation is None:
            return
        untuned = self._validation_loss(validation)
        self.latest["untuned"] = untuned
        self.reporter.stage(f"untuned loss on {validation.name}: {untuned:.4f}")
        if self.progress.step == 0:
            self.tracking.event("untuned", {"step": 0, "loss": untuned})

    def _restore(self) -> None:
        """Take up the weights and the optimiser's state of the checkpoint that is resumed."""
        if self.checkpoint is None:
            return
        load_trainable(self.checkpoint, self.trainable)
        load_optimizer(self.checkpoint, self.trainable, self.training.optimizer)
        steps = f"{self.training.total:,} steps in all"
        self.reporter.stage(f"resumed from {self.checkpoint.name}, {steps}")

    def _train(self) -> None:
        """Run the loop and leave the best checkpoint's weights in ``trainable``."""
        if self.settings.gradient_checkpointing:
            self.model.enable_checkpointing()
        started, first = time.perf_counter(), self.progress.step
        self.signals.deferred = True
        try:
            progress = train(self.training, self, self.progress)
        except NotFinite as error:
            raise PtkitError(*self._not_finite(error)) from None
        finally:
            self.signals.deferred = False
        if self.signals.received is not None:
            raise Interrupted(self.signals.received)
        seconds = time.perf_counter() - started
        self.reporter.stage(f"trained {progress.step - first:,} steps in {seconds:.0f} s")
        if progress.step < self.training.total:
            self.reporter.stage(
                f"stopped early at step {progress.step}: no better validation loss in "
                f"{progress.since_best} tries"
            )
        if progress.best_step is not None:
            load_trainable(folder_of(self.checkpoints, progress.best_step), self.trainable)
            self.reporter.stage(
                f"best checkpoint: step {progress.best_step}, "
                f"validation loss {progress.best_loss:.4f}"
            )

    def _validation_loss(self, part: Part) -> float:
        return evaluate_loss(
            self.model, self.prepared.head, self.trainable.module, part, self.settings
        )

    def event(self, kind: str, values: dict[str, Any]) -> None:
        self.tracking.event(kind, values)
        self.latest["loss" if kind == "train" else kind] = values["loss"]
        order = ("loss", "validation", "untuned")
        shown: dict[str, float] = {k: self.latest[k] for k in order if k in self.latest}
        validated_next = (
            values["step"] == self.training.total and "validation" in self.prepared.parts
        )
        if (kind == "train" and not validated_next) or (
            kind == "validation" and self.progress.ended
        ):
            self.reporter.progress("training", values["step"], self.training.total, shown)

    def validate(self) -> float | None:
        validation = self.prepared.parts.get("validation")
        if validation is None:
            return None
        with self.model.using(self.trainable.keys_and_values()):
            return self._validation_loss(validation)

    def save(self, progress: Progress) -> None:
        save_checkpoint(
            self.checkpoints,
            self.trainable,
            self.training.optimizer,
            progress,
            keep=self.settings.keep,
        )

    def stop_requested(self) -> bool:
        return self.signals.received is not None

    def _how_to_resume(self) -> list[str]:
        if not hasattr(self, "tracking"):
            return ["stopped before training began: nothing was written"]
        newest = newest_checkpoint(self.checkpoints)
        saved = "before the first step" if newest is None else f"with {newest.name} saved"
        recipe = self.folder / "recipe.toml"  # with what --set changed
        return [f"stopped {saved}; go on with: ptkit run {recipe} --out {self.folder} --resume"]

    def _not_finite(self, error: NotFinite) -> list[str]:
        origins = self.prepared.parts["train"].origins
        store = self.training.store
        rows = error.rows or [r for group in self.training.groups(error.step - 1) for r in group]
        found = sorted({store[row].record for row in rows})
        shown = ", ".join(str(origins[index]) for index in found[:20])
        more = f" and {len(found) - 20} more" if len(found) > 20 else ""
        kind = (
            "rows with such a loss"
            if error.rows
            else "no row alone has such a loss; the step's rows"
        )
        newest = newest_checkpoint(self.checkpoints)
        last = "no checkpoint was written" if newest is None else f"the last good one is {newest}"
        return [
            f"{error}; {kind}: {shown}{more}",
            f'lower train.learning_rate, or use backbone.dtype = "float32" or "bfloat16"; {last}',
        ]

    # ---------------------------------------------------------------------------------- results

    def _answer(self, how: str) -> list[Any] | None:
        """Predictions for the scored part with the prefix that the model has now."""
        part = self.prepared.scored
        if part is None:
            return None
        return predict(
            self.model,
            self.prepared.head,
            self.trainable.module,
            part,
            self.prepared.backbone.tokenizer,
            lambda done, total: self.reporter.progress(
                f"answering {part.name}, {how}", done, total, {}
            ),
        )

    def _save_adapter(self) -> None:
        head, module = self.prepared.head, self.trainable.module
        manifest = {
            "ptkit": ptkit.__version__,
            "backbone": self.environment["backbone"],
            "task": {"kind": head.name, "labels": list(head.labels)},
            "recipe": self.recipe.resolved(portable=True),
            "versions": {**self.environment["packages"], **self.environment["plugins"]},
        }
        tensors = {} if module is None else dict(module.state_dict())
        save_adapter(self.folder / "adapter", self.trainable.prefix, tensors, manifest)

    def _score(self, before: list[Any] | None) -> dict[str, dict[str, float]]:
        """Answer with the prefix; write predictions.jsonl and scores.json."""
        part, head, metrics = self.prepared.scored, self.prepared.head, self.prepared.metrics
        if part is None or before is None:
            self.reporter.warning("no scores: the recipe names neither dataset.validation nor test")
            return {}
        self.model.set_prefix(self.trainable.keys_and_values())
        after = self._answer("tuned")
        assert after is not None
        failures = Failures()
        constant = self._constant(part, failures)
        pairs = pairs_of(head, part, after)
        found = {"before": score_rows(metrics, pairs_of(head, part, before), failures)}
        if constant is not None:
            found["constant"] = constant[1]
        found["after"] = score_rows(metrics, pairs, failures)
        found = failures.scores(found)
        self._write_predictions(part, before, after, found)
        answer = None if constant is None else str(constant[0])
        warnings = [*self.failed, *metric_warnings(metrics, pairs, failures)]
        scoring = {"constant": answer, "units": found["after"].units, "warnings": warnings}
        write_json(self.folder / "scoring.json", scoring)
        scores = {name: scored.total for name, scored in found.items()}
        write_json(self.folder / "scores.json", scores)
        for text in warnings:
            failed = text in failures.texts or text in self.failed
            show = self.reporter.failure if failed else self.reporter.warning
            show(text)
        self.reporter.scores(scores, answer, part.name, part.count)
        self.tracking.event("scores", {"step": self.progress.step, **scores})
        return scores

    def _constant(self, part: Part, failures: Failures) -> tuple[Any, Scores] | None:
        """The best constant answer; a head that can't name any costs that column alone."""
        head, train = self.prepared.head, self.prepared.parts["train"]
        seed = self.settings.seed
        try:
            return best_constant(
                head, self.prepared.metrics, train.sample, part, seed=seed, failures=failures
            )
        except PluginError as error:
            self.failed += [f"{line}; there are no scores of a constant" for line in error.lines]
            return None

    def _write_predictions(
        self, part: Part, before: Sequence[Any], after: Sequence[Any], scores: Mapping[str, Scores]
    ) -> None:
        path = self.folder / "predictions.jsonl"
        rows = zip(part.records or [], before, after, strict=True)
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            for index, (record, untuned, tuned) in enumerate(rows):
                line = {
                    "origin": str(record.origin),
                    "prompt": getattr(record, "prompt", None),
                    "reference": self.prepared.head.reference(record),
                    "before": untuned,
                    "after": tuned,
                    "scores": {name: found.rows[index] for name, found in scores.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
