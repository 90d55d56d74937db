"""From a recipe to a finished run folder; every stage can be repeated, so a run can be resumed at
any of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ptkit.data import Part
from ptkit.engine.card import write_card
from ptkit.engine.checkpoint import (
    CHECKPOINTS,
    folder_of,
    load_optimizer,
    load_trainable,
    save_checkpoint,
)
from ptkit.engine.endings import explain_not_finite, how_to_resume
from ptkit.engine.evaluate import evaluate_loss, predict
from ptkit.engine.fitting import set_up, told_if_not_compiled
from ptkit.engine.loading import build_head, load_model
from ptkit.engine.model import pick_device
from ptkit.engine.opening import describe_run, make_training, open_folder
from ptkit.engine.plot import plot_losses
from ptkit.engine.probe import probe
from ptkit.engine.processes import (
    FailedElsewhere,
    LostProcess,
    Processes,
    joined,
    lost_connection,
)
from ptkit.engine.report import write_report
from ptkit.engine.results import Results
from ptkit.engine.resume import free_folder
from ptkit.engine.sharding import shard
from ptkit.engine.start import build_prefix, continue_head, starting_adapter
from ptkit.engine.stopping import Interrupted, StopSignals
from ptkit.engine.tracking import Tracking, read_events
from ptkit.engine.train import (
    NotFinite,
    Progress,
    Trainable,
    Watcher,
    train,
)
from ptkit.engine.watching import tell
from ptkit.errors import PluginError, PtkitError
from ptkit.preparation import prepare
from ptkit.recipe import Recipe
from ptkit.records import RunInfo
from ptkit.reporter import Reporter

EVENTS = "events.jsonl"


@dataclass(frozen=True)
class RunResult:
    """What a run left: its folder and the content of scores.json."""

    folder: Path
    scores: dict[str, dict[str, float]]

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


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
    stops at once. Where a launcher such as torchrun started several processes, they share the run;
    scores are returned to the first one only, which writes all files.

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
    with joined(device) as processes:
        reporter = reporter if reporter and processes.leads else Reporter()
        folder = processes.first(lambda: free_folder(recipe.name, out, resume=resume))
        info = RunInfo(str(folder), recipe.resolved())
        try:
            with StopSignals() as signals:
                return _Run(recipe, folder, device, signals, reporter, resume, processes).run()
        except BaseException as error:
            if processes.leads:
                tell(
                    recipe.registry,
                    "ptkit_on_run_error",
                    reporter.failure,
                    run=info,
                    error=error,
                )
            raise


class _Run(Watcher):
    """One run, stage by stage, in one of its processes."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        device: str,
        signals: StopSignals,
        reporter: Reporter,
        resume: bool,  # noqa: FBT001
        processes: Processes,
    ) -> None:
        self.recipe = recipe
        self.settings = recipe.train
        self.folder = folder
        self.device = pick_device(device)
        self.signals = signals
        self.reporter = reporter
        self.resume = resume
        self.processes = processes
        self.checkpoints = folder / CHECKPOINTS
        self.latest: dict[str, float] = {}
        self.tracking: Tracking | None = None  # only the leading process has one

    def run(self) -> RunResult:
        try:
            with self.processes.alike():
                self.prepared = prepare(self.recipe, self.reporter)
            self._load()
            self._open_folder()
            self._tell("ptkit_before_run", run=self.info)
            before = self._answer("untuned")  # with a head as it starts, in a resumed run too
            self._measure_untuned()
            self._restore()
            self._train()
            results = Results(self.prepared, self.folder, self.reporter)
            if self.processes.leads:
                results.save_adapter(self.trainable, self.environment)
            self.model.set_prefix(self.trainable.keys_and_values())
            after = self._answer("tuned")
            scores = self._finish(results, before, after) if self.processes.leads else {}
        except Interrupted as stop:
            raise self._interrupted(stop.number) from None
        except (LostProcess, PluginError, RuntimeError) as error:
            if self.processes.size == 1 or not lost_connection(error):
                raise
            if self.signals.received is not None:  # as the others were, some of them earlier
                raise self._interrupted(self.signals.received) from None
            begun = hasattr(self, "training")
            more = [how_to_resume(self.folder, self.processes.size)] if begun else []
            raise self.processes.lost(error, *more) from error
        finally:
            if self.tracking is not None:
                self.tracking.finish()
        self._tell("ptkit_after_run", run=self.info, scores=scores)
        self.reporter.finished(self.folder)
        return RunResult(self.folder, scores)

    def _finish(
        self, results: Results, before: list[Any] | None, after: list[Any] | None
    ) -> dict[str, dict[str, float]]:
        """Write the scores and what shows them; no other process is needed any more."""
        scores: dict[str, dict[str, float]] = {}
        if before is None or after is None:
            self.reporter.warning("no scores: the recipe names neither dataset.validation nor test")
        else:
            scores = results.score(before, after)
            self._track("scores", {"step": self.progress.step, **scores})
        plot_losses(read_events(self.folder / EVENTS), self.folder / "loss.png", self.recipe.name)
        write_card(self.folder)
        write_report(self.folder)
        return scores

    def _interrupted(self, number: int) -> Interrupted:
        if not self.processes.leads:
            return Interrupted(number)
        if self.tracking is None:
            return Interrupted(number, "stopped before training began: nothing was written")
        return Interrupted(number, how_to_resume(self.folder, self.processes.size))

    def _tell(self, hook: str, **values: Any) -> None:
        if self.processes.leads:
            tell(self.recipe.registry, hook, self.reporter.failure, **values)

    def _track(self, kind: str, values: dict[str, Any]) -> None:
        if self.tracking is not None:
            self.tracking.event(kind, values)

    # ---------------------------------------------------------------------------------- set-up

    def _load(self) -> None:
        backbone, recipe = self.prepared.backbone, self.recipe
        spread = self.settings.shard_base and self.processes.size > 1
        with self.processes.alike():
            start = starting_adapter(recipe, backbone, self.reporter)  # before loading
            self.model = load_model(backbone, self.device, self._show_loading, whole=not spread)
        if spread:
            lock_step = shard(self.model, self.processes, self.device)
            self.processes = replace(self.processes, lock_step=lock_step)
        probe(self.model)
        self.model.make_dropouts(self.settings.backbone_dropout)
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
        self.environment = describe_run(
            self.prepared, self.device, dtype, count, self.processes.size, start
        )
        self.info = RunInfo(str(self.folder), recipe.resolved(), self.environment)

    def _show_loading(self, done: int, total: int) -> None:
        self.reporter.progress("loading", done, total, {})

    def _open_folder(self) -> None:
        """Write what the run is, or check that a resumed one is the same; start the events."""
        self.checkpoint, self.progress = self.processes.first(
            lambda: open_folder(
                self.folder, self.prepared, self.environment, self.reporter, resume=self.resume
            )
        )
        self.training = make_training(self.prepared, self.model, self.trainable, self.processes)
        if self.processes.leads:
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
            self._track("untuned", {"step": 0, "loss": untuned})

    def _restore(self) -> None:
        """Take up the weights and the optimiser's state of the checkpoint that is resumed."""
        if self.checkpoint is None:
            return
        load_trainable(self.checkpoint, self.trainable, self.processes)
        optimizer = self.training.optimizer
        load_optimizer(self.checkpoint, self.trainable, optimizer, self.processes)
        steps = f"{self.training.total:,} steps in all"
        self.reporter.stage(f"resumed from {self.checkpoint.name}, {steps}")

    def _train(self) -> None:
        """Run the loop and leave the best checkpoint's weights in ``trainable``."""
        self._fit_memory()
        started, first = time.perf_counter(), self.progress.step
        self.signals.deferred = True
        try:
            with told_if_not_compiled(self.training):
                progress = train(self.training, self, self.progress)
        except NotFinite as error:
            if not self.processes.leads:
                raise FailedElsewhere from error
            origins = self.prepared.parts["train"].origins
            lines = explain_not_finite(error, self.training, origins, self.folder)
            raise PtkitError(*lines) from None
        finally:
            self.signals.deferred = False
            self.model.drop_graphs()
        if number := self._signal():
            raise Interrupted(number)
        seconds = time.perf_counter() - started
        self.reporter.stage(f"trained {progress.step - first:,} steps in {seconds:.0f} s")
        if progress.step < self.training.total:
            self.reporter.stage(
                f"stopped early at step {progress.step}: no better validation loss in "
                f"{progress.since_best} tries"
            )
        if progress.best_step is not None:
            best = folder_of(self.checkpoints, progress.best_step)
            load_trainable(best, self.trainable, self.processes)
            self.reporter.stage(
                f"best checkpoint: step {progress.best_step}, "
                f"validation loss {progress.best_loss:.4f}"
            )

    def _fit_memory(self) -> None:
        """Let as many layers be computed again as train.memory says, and tell how that goes."""
        found = set_up(self.training, self.prepared.backbone, self.progress.budget(self.settings))
        if found.fits is False:
            self.reporter.warning(f"memory: {found}")
        elif found.memory.recomputed or self.device == "cuda":
            self.reporter.stage(f"memory: {found}")

    def _validation_loss(self, part: Part) -> float:
        return evaluate_loss(
            self.model,
            self.prepared.head,
            self.trainable.module,
            part,
            self.settings,
            self.progress.budget(self.settings),
            partial(self.halved, self.progress.step),
            self.processes,
        )

    def halved(self, step: int, tokens: int) -> None:
        self.progress.tokens_per_micro_batch = tokens  # for the rest of the run, resumed or not
        values = {"step": step, "tokens_per_micro_batch": tokens}
        self._track("out-of-memory", values)
        self.reporter.warning(
            f"step {step}: memory ran out; it is done again, and from now on {tokens:,} tokens at "
            f"most go through the model at once; train.tokens_per_micro_batch = {tokens} or "
            'train.memory = "small" avoids that'
        )

    def event(self, kind: str, values: dict[str, Any]) -> None:
        self._track(kind, values)
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
        optimizer, keep = self.training.optimizer, self.settings.keep
        write = partial(save_checkpoint, self.checkpoints, self.trainable, optimizer, progress)
        self.processes.first(lambda: write(keep=keep))

    def stop_requested(self) -> bool:
        return self._signal() != 0

    def _signal(self) -> int:
        """The signal that asked any of the processes to stop, 0 for none."""
        return self.processes.largest(self.signals.received or 0)

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
            self.processes,
        )
