"""Nothing is lost when a run stops: whatever stops it, the resumed run ends with the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from ptkit_tasks.generation import Generation

import ptkit
from ptkit.engine import files
from ptkit.engine.session import run
from ptkit.engine.stopping import Interrupted, StopSignals
from ptkit.engine.tracking import read_events
from ptkit.errors import PtkitError
from ptkit.recipe import Recipe
from ptkit.registry import Owner, Registry

from .recording import RecordingReporter

MakeRecipe = Callable[..., Recipe]
TRAIN = {"max_steps": 8, "eval_every": 2, "save_every": 3, "batch_size": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def losses(folder: Path) -> list[Any]:
    """Every event but for its seconds."""
    return [
        {key: value for key, value in event.items() if not key.endswith("seconds")}
        for event in read_events(folder / "events.jsonl")
    ]


def assert_same_run(folder: Path, reference: Path) -> None:
    assert contents(folder / "adapter") == contents(reference / "adapter")
    assert losses(folder) == losses(reference)
    for name in ("scores.json", "predictions.jsonl"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes()
    assert not list(folder.rglob("*.partial"))


class StopAt(RecordingReporter):
    """Sends this process a signal, once, when ``when`` says so."""

    def __init__(self, when: Callable[[str, int], bool], number: int = signal.SIGINT) -> None:
        super().__init__()
        self.when = when
        self.number = number

    def progress(self, what: str, done: int, total: int | None, values: Any) -> None:
        if self.number and self.when(what, done):
            number, self.number = self.number, 0
            os.kill(os.getpid(), number)


class CrashError(BaseException):
    """Stands for a kill: nothing in the program may catch it."""


class Filesystem:
    """Counts writes, syncs, renames and removals, and fails at one of them, before or after it is
    done."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fail_at: int, failure: BaseException
    ) -> None:
        self.calls = 0
        self.fail_at = fail_at
        self.failure = failure
        for module, name in (
            (os, "fsync"),
            (Path, "replace"),
            (files.shutil, "rmtree"),
            (safetensors.torch, "save_file"),
            (Path, "write_text"),
        ):
            monkeypatch.setattr(module, name, self.wrap(getattr(module, name)))

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.fail_at:
                raise self.failure
            result = real(*args, **kwargs)
            self.calls += 1
            if self.calls == self.fail_at:
                raise self.failure
            return result

        return wrapped


@pytest.fixture
def reference(make_recipe: MakeRecipe, tmp_path: Path) -> Path:
    return run(make_recipe(train=TRAIN), out=tmp_path / "reference", device="cpu").folder


def test_a_crash_at_every_write_and_rename_is_survived(
    make_recipe: MakeRecipe, tmp_path: Path, reference: Path
) -> None:
    """A kill at the n-th file operation of a run, for every n, each resumed to the same bytes."""
    with pytest.MonkeyPatch.context() as patch:
        counting = Filesystem(patch, 0, CrashError())
        run(make_recipe(train=TRAIN), out=tmp_path / "count", device="cpu")
    total = counting.calls
    assert total > 100
    for fail_at in range(1, total + 1, 1 if os.environ.get("PTKIT_SLOW_TESTS") else 9):
        folder = tmp_path / f"crash-{fail_at}"
        # half of the time cleaning up fails too, as it does when a process is killed
        with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
            if fail_at % 2:
                patch.setattr(files.shutil, "rmtree", lambda *a, **k: None)
                patch.setattr(Path, "unlink", lambda *a, **k: None)
            Filesystem(patch, fail_at, CrashError())
            run(make_recipe(train=TRAIN), out=folder, device="cpu")
            raise CrashError  # the clean-up that was left out made the run shorter
        folder.mkdir(exist_ok=True)
        run(make_recipe(train=TRAIN), out=folder, device="cpu", resume=True)
        assert_same_run(folder, reference)


@pytest.mark.parametrize("step", [1, 3, 4, 8])
def test_a_signal_saves_and_the_resumed_run_ends_the_same(
    make_recipe: MakeRecipe, tmp_path: Path, reference: Path, step: int
) -> None:
    folder = tmp_path / "run"
    reporter = StopAt(lambda what, done: what == "training" and done == step)
    with pytest.raises(Interrupted) as stopped:
        run(make_recipe(train=TRAIN), out=folder, device="cpu", reporter=reporter)
    assert stopped.value.exit_code == 130
    message = f"ptkit run {folder}/recipe.toml --out {folder} --resume"
    assert message in str(stopped.value)
    assert f"step-{step:06d} saved" in str(stopped.value)
    assert (folder / "checkpoints" / f"step-{step:06d}").is_dir()
    run(make_recipe(train=TRAIN), out=folder, device="cpu", resume=True)
    assert_same_run(folder, reference)


def test_sigterm_before_training_stops_at_once(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    class Impatient(RecordingReporter):
        def stage(self, text: str) -> None:
            if text.startswith("backbone"):
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="before training began: nothing was written") as stopped:
        run(make_recipe(), out=tmp_path / "run", device="cpu", reporter=Impatient())
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "run").exists()


def test_a_stop_while_scoring_is_resumed_too(
    make_recipe: MakeRecipe, tmp_path: Path, reference: Path
) -> None:
    folder = tmp_path / "run"
    reporter = StopAt(lambda what, done: what.endswith(", tuned"))
    with pytest.raises(Interrupted, match="step-000008 saved"):
        run(make_recipe(train=TRAIN), out=folder, device="cpu", reporter=reporter)
    run(make_recipe(train=TRAIN), out=folder, device="cpu", resume=True)
    assert_same_run(folder, reference)


def test_a_finished_run_can_be_resumed(
    make_recipe: MakeRecipe, tmp_path: Path, reference: Path
) -> None:
    before = contents(reference / "adapter")
    reporter = RecordingReporter()
    run(make_recipe(train=TRAIN), out=reference, device="cpu", resume=True, reporter=reporter)
    assert contents(reference / "adapter") == before
    assert any("trained 0 steps" in text for text in reporter.stages)


def test_the_second_signal_has_its_usual_effect() -> None:
    with StopSignals() as signals:
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_left_alone_in_other_threads() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[Any] = []

    def enter() -> None:
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_patience_ends_training_early_and_the_resumed_run_too(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    train = {"max_steps": 60, "eval_every": 1, "patience": 3, "learning_rate": 3.0}
    reporter = RecordingReporter()
    whole = run(
        make_recipe(train=train), out=tmp_path / "whole", device="cpu", reporter=reporter
    ).folder
    validations = [
        e["loss"] for e in read_events(whole / "events.jsonl") if e["event"] == "validation"
    ]
    assert len(validations) < 60
    best = validations.index(min(validations))
    assert len(validations) == best + 1 + 3
    assert any("stopped early at step" in text for text in reporter.stages)

    reporter = StopAt(lambda what, done: what == "training" and done == len(validations) - 1)
    with pytest.raises(Interrupted):
        run(make_recipe(train=train), out=tmp_path / "run", device="cpu", reporter=reporter)
    run(make_recipe(train=train), out=tmp_path / "run", device="cpu", resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"train": {**TRAIN, "learning_rate": 0.5}},
            "was started with train.learning_rate = 0.02, now it is 0.5",
        ),
        ({"prefix": {"length": 4}}, "was started with prefix.length = 3, now it is 4"),
        ({"backbone": {"seed": 3}}, "was started with backbone.seed = 0, now it is 3"),
    ],
)
def test_another_recipe_is_refused_with_what_differs(
    make_recipe: MakeRecipe, reference: Path, sections: dict[str, Any], line: str
) -> None:
    sections = {"train": TRAIN, **sections}
    with pytest.raises(PtkitError) as refused:
        run(make_recipe(**sections), out=reference, device="cpu", resume=True)
    assert f"{reference}: {line}" in refused.value.lines
    assert refused.value.lines[-1] == "start a new run in another folder, or undo the change"


def test_other_data_is_refused(make_recipe: MakeRecipe, tmp_path: Path, reference: Path) -> None:
    with (tmp_path / "train.json").open("a", encoding="utf-8") as file:
        file.write('{"content": "x", "summary": "y"}\n')
    with pytest.raises(PtkitError) as refused:
        run(make_recipe(train=TRAIN), out=reference, device="cpu", resume=True)
    assert any("data.train.rows 20, now it is 21" in line for line in refused.value.lines)
    assert any("data.train.sha256" in line for line in refused.value.lines)


def test_another_thread_count_is_a_warning(make_recipe: MakeRecipe, reference: Path) -> None:
    path = reference / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps({**environment, "threads": 77}))
    reporter = RecordingReporter()
    run(make_recipe(train=TRAIN), out=reference, device="cpu", resume=True, reporter=reporter)
    assert any("threads was 77, now it is" in text for text in reporter.warnings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such run folder, so there is nothing to resume"),
        (lambda folder: (folder.mkdir(), (folder / "x").write_text("")), "is no run folder"),
    ],
)
def test_what_is_no_run_is_not_resumed(
    make_recipe: MakeRecipe, tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path / "run")
    with pytest.raises(PtkitError, match=message):
        run(make_recipe(), out=tmp_path / "run", device="cpu", resume=True)


def test_resume_needs_a_folder(make_recipe: MakeRecipe) -> None:
    with pytest.raises(PtkitError, match="--resume needs --out"):
        run(make_recipe(), resume=True)


@pytest.mark.parametrize(
    "name", ["progress.json", "trainable.safetensors", "optimizer.safetensors"]
)
def test_a_damaged_checkpoint_is_named(make_recipe: MakeRecipe, reference: Path, name: str) -> None:
    damaged = reference / "checkpoints" / "step-000008" / name
    damaged.write_bytes(b"half")
    with pytest.raises(PtkitError) as refused:
        run(make_recipe(train=TRAIN), out=reference, device="cpu", resume=True)
    assert str(damaged) in str(refused.value)
    assert "remove the folder to resume before it" in str(refused.value)


@pytest.mark.parametrize("when", [3, 40, 70])
def test_a_full_disk_is_one_line_and_the_run_can_go_on(
    make_recipe: MakeRecipe, tmp_path: Path, reference: Path, when: int
) -> None:
    folder = tmp_path / "run"
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PtkitError) as stopped:
        Filesystem(patch, when, full)
        run(make_recipe(train=TRAIN), out=folder, device="cpu")
    assert "can't be written: No space left on device" in str(stopped.value)
    assert len(stopped.value.lines) == 1
    run(make_recipe(train=TRAIN), out=folder, device="cpu", resume=True)
    assert_same_run(folder, reference)


def test_a_folder_that_cannot_be_made_is_one_line(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PtkitError, match="can't be made: Not a directory"):
        run(make_recipe(), out=tmp_path / "file" / "run", device="cpu")


def test_a_loss_that_is_not_finite_stops_with_the_rows(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(train={**TRAIN, "learning_rate": 1e38, "clip_norm": 0.0})
    with pytest.raises(PtkitError) as stopped:
        run(recipe, out=tmp_path / "run", device="cpu")
    first, second = stopped.value.lines
    assert first.startswith("step ")
    assert "rows" in first
    assert "train.json:" in first
    assert "lower train.learning_rate" in second
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_events_cut_off_by_a_crash_are_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "train", "step": 1}\n{"event": "tra')
    assert read_events(path) == [{"event": "train", "step": 1}]


class Scaled(Generation):
    """Generation with a number of its own to train; it answers nothing once that has moved."""

    name = "scaled"

    def build(self, info: ptkit.HeadInfo) -> Any:
        return torch.nn.Linear(1, 1)

    def loss(self, module: Any, states: Any, rows: Any) -> ptkit.Loss:
        sums, weights = super().loss(None, states, rows)
        return ptkit.Loss(sums + weights * (module.weight - 3).square().sum(), weights)

    def predict(self, model: Any, module: Any, rows: Any) -> Any:
        return [[round(1000 * float(module.weight)) % 50 + 5] for _ in rows]


class ScaledPlugin:
    @ptkit.hookimpl
    def ptkit_register_task_heads(self) -> list[type[ptkit.TaskHead]]:
        return [Scaled]


def test_a_resumed_run_is_untuned_before_as_the_whole_one_was(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry
) -> None:
    """The answers before are those of a head as it starts, not of the checkpoint's."""
    registry.register(ScaledPlugin(), Owner("scaled", "ptkit-scaled", "1.0"))
    recipe = make_recipe(train=TRAIN, task={"kind": "scaled"})
    torch.manual_seed(0)
    whole = run(recipe, out=tmp_path / "whole", device="cpu").folder
    reporter = StopAt(lambda what, done: what == "training" and done == 4)
    torch.manual_seed(0)
    with pytest.raises(Interrupted):
        run(recipe, out=tmp_path / "run", device="cpu", reporter=reporter)
    torch.manual_seed(0)
    run(recipe, out=tmp_path / "run", device="cpu", resume=True)
    assert_same_run(tmp_path / "run", whole)
    lines = (whole / "predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["before"] != json.loads(lines[0])["after"]
