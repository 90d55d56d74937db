"""Memory that runs out in a step: fewer tokens go through the model at once, with the same
result."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_tasks.generation import Generation

from ptkit.batching import Order
from ptkit.components import Loss, TaskHead
from ptkit.data import Part
from ptkit.engine import session
from ptkit.engine.checkpoint import read_progress
from ptkit.engine.evaluate import evaluate_loss
from ptkit.engine.feeding import Feeder, StepData
from ptkit.engine.model import Model
from ptkit.engine.optimizing import make_optimizer
from ptkit.engine.outofmemory import OutOfMemory, within_memory
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.session import run
from ptkit.engine.tracking import read_events
from ptkit.engine.train import Progress, Trainable, Training, Watcher, train
from ptkit.isolation import out_of_memory
from ptkit.recipe import Recipe, TrainSettings
from ptkit.records import IGNORE, Origin, Row
from ptkit.rowstore import Origins, RowStore
from ptkit.settings import SourcePath
from ptkit.testing import TinyBackbone, tiny_model

from .recording import RecordingReporter

HEAD = Generation(Generation.Settings())
STEPS = 6


def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def no_cpu_memory() -> None:
    torch.empty(2**50)  # what torch raises on a CPU is a plain RuntimeError


def cublas_without_memory() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def limit_tokens(
    model: Model,
    most: int,
    fail: Callable[[], None] = no_gpu_memory,
    *,
    training_only: bool = False,
) -> None:
    """Let the body run out of memory above ``most`` tokens."""

    def check(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > most and (torch.is_grad_enabled() or not training_only):
            fail()

    model.body.register_forward_pre_hook(check, with_kwargs=True)


class Recorder(Watcher):
    def __init__(self) -> None:
        self.losses: list[float] = []
        self.micro_batches: list[int] = []
        self.told: list[tuple[int, int]] = []

    def event(self, kind: str, values: dict[str, Any]) -> None:
        self.losses.append(values["loss"])
        self.micro_batches.append(values["micro_batches"])

    def halved(self, step: int, tokens: int) -> None:
        self.told.append((step, tokens))


def store_of(lengths: list[int]) -> RowStore:
    draw = torch.Generator().manual_seed(5)
    store = RowStore()
    store.origins = Origins()
    for index, length in enumerate(lengths):
        tokens = torch.randint(5, 30, (length,), generator=draw).tolist()
        half = length // 2
        store.append([Row(tuple(tokens), (*[IGNORE] * half, *tokens[half:]))])
        store.origins.append(Origin("train.json", index + 1))
    return store


LENGTHS = [3 + index * 7 % 10 for index in range(16)]


def trained(
    budget: int,
    prepare: Callable[[Model], None] = lambda model: None,
    *,
    head: TaskHead = HEAD,
    progress: Progress | None = None,
) -> tuple[Recorder, Progress, dict[str, torch.Tensor]]:
    """Six steps of eight rows; the losses, the budget, and the adapter."""
    backbone = TinyBackbone(TinyBackbone.Settings())
    model = tiny_model(backbone)
    prepare(model)
    trainable = Trainable(PrefixEncoder(backbone.geometry, 3, dropout=0.1))
    trainable.prefix.initialize(std=1.0, seed=1)
    settings = TrainSettings(max_steps=STEPS, tokens_per_micro_batch=budget, batch_size=8)
    order = Order(16, 8, seed=0)
    optimizer = make_optimizer(trainable, settings)
    recorder, progress = Recorder(), progress or Progress()
    training = Training(
        model, trainable, head, store_of(LENGTHS), settings, order, STEPS, optimizer
    )
    train(training, recorder, progress)
    return recorder, progress, {n: p.detach() for n, p in trainable.named_parameters().items()}


@pytest.mark.parametrize("fail", [no_gpu_memory, no_cpu_memory, cublas_without_memory])
def test_losses_and_adapter_are_those_of_an_undisturbed_run(fail: Callable[[], None]) -> None:
    """Steps have 55 to 63 tokens, so that half of 160 would split none."""
    whole, _, expected = trained(160)
    assert whole.micro_batches == [1] * STEPS
    got, progress, adapter = trained(160, lambda model: limit_tokens(model, 45, fail))
    assert got.told == [(1, 40)]
    assert progress.tokens_per_micro_batch == 40
    assert min(got.micro_batches) > 1
    assert got.losses == pytest.approx(whole.losses, abs=1e-6)
    for name, tensor in adapter.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)
    # and bitwise those of a run that is split so from the start
    split, _, same = trained(40)
    assert split.losses == got.losses
    assert all(torch.equal(adapter[name], same[name]) for name in same)


def test_it_is_halved_again_and_again() -> None:
    got, progress, _ = trained(40, lambda model: limit_tokens(model, 12))
    assert got.told == [(1, 20), (1, 10)]  # rows have up to 12 tokens
    assert progress.tokens_per_micro_batch == 10
    again, _, _ = trained(40, lambda model: limit_tokens(model, 12), progress=copy.copy(progress))
    assert again.told == []  # a resumed run starts with the lower budget


def test_memory_that_runs_out_in_the_backward_pass() -> None:
    class Large(Generation):
        def loss(self, module: Any, states: Any, rows: Any) -> Loss:
            sums, weights = super().loss(module, states, rows)
            if len(rows) > 6:
                sums.register_hook(lambda _: no_gpu_memory())
            return Loss(sums, weights)

    head = Large(Generation.Settings())
    whole, _, expected = trained(160)
    got, _, adapter = trained(160, head=head)
    assert got.told == [(1, 40)]
    assert got.losses == pytest.approx(whole.losses, abs=1e-6)
    for name, tensor in adapter.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=0)


def test_a_head_that_draws_draws_the_same_in_a_step_that_is_repeated() -> None:
    class Noisy(Generation):
        failing = False

        def loss(self, module: Any, states: Any, rows: Any) -> Loss:
            sums, weights = super().loss(module, states, rows)
            noise = torch.rand(())
            if self.failing:
                self.failing = False
                no_gpu_memory()
            return Loss(sums * noise, weights)

    fails, fine = Noisy(Generation.Settings()), Noisy(Generation.Settings())
    fails.failing = True
    got, progress, adapter = trained(10_000, head=fails)
    assert progress.tokens_per_micro_batch is not None
    expected, _, same = trained(progress.tokens_per_micro_batch, head=fine)
    assert got.losses == expected.losses
    assert all(torch.equal(adapter[name], same[name]) for name in same)


def test_a_row_that_does_not_fit_alone() -> None:
    with pytest.raises(OutOfMemory) as error:
        trained(10_000, lambda model: limit_tokens(model, 9))
    first = next(i for i in Order(16, 8, seed=0).step(0) if LENGTHS[i] > 9)
    assert str(error.value) == (
        f"train.json:{first + 1}: has {LENGTHS[first]} tokens, which don't fit into memory even "
        'alone; shorten it with the settings of the task, set train.memory = "small" if it '
        "isn't, or take a smaller or quantised base model"
    )


def test_rows_that_share_a_loss_and_do_not_fit() -> None:
    """They can't be split either; without known origins the record's number is told."""
    store = RowStore()
    store.append([Row((5, 6, 7), (1,)), Row((5, 6, 8, 9), (0,))])

    class Together(Generation):
        rows_share_loss = True

    part = Part("validation", SourcePath("v.json", Path("v.json")), lambda: iter(()), rows=store)
    model = tiny_model(TinyBackbone())
    limit_tokens(model, 6)
    settings = TrainSettings(max_steps=1)
    with pytest.raises(OutOfMemory, match=r"^record 0: its 2 rows of one loss have 7 tokens, whic"):
        evaluate_loss(
            model, Together(Generation.Settings()), None, part, settings, 100, lambda tokens: None
        )


def test_the_validation_loss_too() -> None:
    store, model = store_of(LENGTHS), tiny_model(TinyBackbone())
    part = Part("validation", SourcePath("v.json", Path("v.json")), lambda: iter(()), rows=store)
    settings, told = TrainSettings(max_steps=1), list[int]()
    whole = evaluate_loss(model, HEAD, None, part, settings, 200, told.append)
    assert told == []
    limit_tokens(model, 50)
    got = evaluate_loss(model, HEAD, None, part, settings, 200, told.append)
    assert got == pytest.approx(whole, abs=1e-6)
    assert told == [100, 50]  # 118 tokens in all


def test_other_errors_are_no_lack_of_memory() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not out_of_memory(ValueError("can't allocate memory"))

    def wrong(tokens: int) -> None:
        raise RuntimeError(f"wrong with {tokens}")

    with pytest.raises(RuntimeError, match="wrong with 7"):
        within_memory(7, wrong, lambda tokens: None)


def test_a_run_tells_it_once_and_a_resumed_one_remembers(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events, console and checkpoint know; steps of four rows have 90 tokens and more."""
    whole = run(make_recipe(), out=tmp_path / "whole", device="cpu").folder
    load = session.load_model

    def limited(*args: Any, **kwargs: Any) -> Model:
        model = load(*args, **kwargs)
        limit_tokens(model, 64, training_only=True)
        return model

    monkeypatch.setattr(session, "load_model", limited)
    reporter = RecordingReporter()
    folder = run(make_recipe(), out=tmp_path / "run", device="cpu", reporter=reporter).folder
    events = read_events(folder / "events.jsonl")
    told = [event for event in events if event["event"] == "out-of-memory"]
    assert told == [{"event": "out-of-memory", "step": 1, "tokens_per_micro_batch": 64}]
    assert [text for text in reporter.warnings if "memory ran out" in text] == [
        "step 1: memory ran out; it is done again, and from now on 64 tokens at most go through "
        'the model at once; train.tokens_per_micro_batch = 64 or train.memory = "small" avoids '
        "that"
    ]
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    assert read_progress(newest).tokens_per_micro_batch == 64
    reference = [e["loss"] for e in read_events(whole / "events.jsonl") if e["event"] == "train"]
    losses = [e["loss"] for e in events if e["event"] == "train"]
    assert losses == pytest.approx(reference, abs=1e-5)
    again = RecordingReporter()
    run(make_recipe(), out=folder, device="cpu", resume=True, reporter=again)
    assert not any("memory ran out" in text for text in again.warnings)


def test_steps_that_a_thread_made_ahead_are_split_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: two steps wait with the old budget when memory runs out."""

    class Ahead(Feeder):
        def __init__(
            self, make: Callable[[int], StepData], first: int, last: int, *, ahead: bool
        ) -> None:
            assert not ahead  # of a CPU
            super().__init__(make, first, last, ahead=True)

    expected, _, same = trained(40)
    monkeypatch.setattr("ptkit.engine.train.Feeder", Ahead)
    got, _, adapter = trained(160, lambda model: limit_tokens(model, 45))
    assert got.told == [(1, 40)]
    assert got.losses == expected.losses
    assert got.micro_batches == expected.micro_batches
    assert all(torch.equal(adapter[name], same[name]) for name in same)
    assert not [t for t in threading.enumerate() if t.name == "ptkit-feeder"]
