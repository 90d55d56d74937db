"""Nothing in a step waits for the device but its end, where loss and gradient norm are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ptkit_tasks.generation import Generation
from torch.utils._python_dispatch import TorchDispatchMode

from ptkit.batching import Order
from ptkit.engine import train as train_module
from ptkit.engine.model import Model
from ptkit.engine.optimizing import make_optimizer
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.states import States
from ptkit.engine.train import (
    NotFinite,
    Progress,
    Trainable,
    Training,
    Watcher,
    step_gradients,
    train,
)
from ptkit.engine.transfer import to_device
from ptkit.recipe import TrainSettings
from ptkit.records import IGNORE, Row
from ptkit.rowstore import RowStore
from ptkit.testing import TinyBackbone

HEAD = Generation(Generation.Settings())
READING = {  # operations whose result, or its shape, the host has to know
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::unique_dim",
    "aten::_unique2",
}


class Reads(TorchDispatchMode):
    """Counts operations that wait for the device, also where the device is the CPU itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        indexed_by_mask = name.startswith("aten::index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], Sequence) else ())
        )
        if name in READING or indexed_by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def made(device: str) -> tuple[Model, Trainable, RowStore]:
    backbone = TinyBackbone(TinyBackbone.Settings(layers=3))
    model = Model(backbone.load(device, "float32"), backbone.geometry, pad_id=0, eos_id=2)
    prefix = PrefixEncoder(backbone.geometry, 5, dropout=0.1)
    prefix.initialize(std=1.0, seed=1)
    draw = torch.Generator().manual_seed(5)
    store = RowStore()
    for index in range(16):
        length = 3 + index * 7 % 10
        tokens = torch.randint(5, 30, (length,), generator=draw).tolist()
        half = length // 2
        store.append([Row(tuple(tokens), (*[IGNORE] * half, *tokens[half:]))])
    return model, Trainable(prefix.to(device)), store


@pytest.fixture
def tolist(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reads of tensors that no operation shows."""
    found: list[str] = []
    for name in ("tolist", "numpy", "cpu"):
        real = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any, _real: Any = real, _name: str = name) -> Any:
            found.append(_name)
            return _real(self, *args)

        monkeypatch.setattr(torch.Tensor, name, read)
    return found


def test_no_read_inside_a_step(tolist: list[str]) -> None:
    model, trainable, store = made("cpu")
    settings = TrainSettings(max_steps=1, tokens_per_micro_batch=40)
    groups = [[i] for i in range(16)]
    tolist.clear()
    with Reads() as reads:
        totals = step_gradients(model, trainable, HEAD, store, groups, settings, step=0)
    assert totals.micro_batches > 1
    assert reads.found == []
    assert tolist == []
    with reads:
        assert totals.loss > 0
    assert reads.found == ["aten::_local_scalar_dense"]  # so they would be seen


def test_one_read_a_step(tolist: list[str]) -> None:
    model, trainable, store = made("cpu")
    settings = TrainSettings(max_steps=3, batch_size=8)
    optimizer = make_optimizer(trainable, settings)
    training = Training(model, trainable, HEAD, store, settings, Order(16, 8, seed=0), 3, optimizer)
    tolist.clear()
    with Reads() as reads:
        train(training, Watcher(), Progress())
    assert reads.found == []
    assert tolist == ["tolist"] * 3


class Told(Watcher):
    def __init__(self, stop_after: int | None = None) -> None:
        self.lines: list[Any] = []
        self._stop_after = stop_after

    def event(self, kind: str, values: dict[str, Any]) -> None:
        kept = {name: value for name, value in values.items() if "seconds" not in name}
        self.lines.append((kind, kept))

    def validate(self) -> float:
        self.lines.append("validate")
        return 1.0

    def save(self, progress: Progress) -> None:
        self.lines.append(f"save {progress.step}")

    def stop_requested(self) -> bool:
        return self._stop_after == sum(line[0] == "train" for line in self.lines)


def told(monkeypatch: pytest.MonkeyPatch, *, ahead: bool) -> tuple[list[Any], torch.Tensor]:
    monkeypatch.setattr(Training, "ahead", ahead)
    model, trainable, store = made("cpu")
    settings = TrainSettings(max_steps=7, batch_size=4, eval_every=3, save_every=2)
    optimizer = make_optimizer(trainable, settings)
    training = Training(model, trainable, HEAD, store, settings, Order(16, 4, seed=0), 7, optimizer)
    watcher = Told()
    train(training, watcher, Progress())
    return watcher.lines, trainable.prefix.embedding.weight.detach().clone()


def test_a_host_that_goes_ahead_tells_and_trains_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines, weights = told(monkeypatch, ahead=False)
    found, same = told(monkeypatch, ahead=True)
    assert found == lines
    assert torch.equal(same, weights)
    assert [line if isinstance(line, str) else line[0] for line in lines] == [
        *("train", "train", "save 2", "train", "validate", "validation", "save 3"),
        *("train", "save 4", "train", "train", "validate", "validation", "save 6"),
        *("train", "validate", "validation", "save 7"),
    ]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_not_finite_never_reaches_the_weights(
    monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    monkeypatch.setattr(Training, "ahead", ahead)
    model, trainable, store = made("cpu")
    settings = TrainSettings(max_steps=6, batch_size=4, eval_every=6)
    optimizer = make_optimizer(trainable, settings)
    training = Training(model, trainable, HEAD, store, settings, Order(16, 4, seed=0), 6, optimizer)
    weights = trainable.prefix.embedding.weight
    before: list[torch.Tensor] = []
    real = train_module.step_gradients

    def spoiled(*args: Any, **rest: Any) -> Any:
        totals = real(*args, **rest)
        before.append(weights.detach().clone())
        if args[6] == 2:  # the third step
            totals = totals._replace(numerator=totals.numerator * float("inf"))
        return totals

    monkeypatch.setattr(train_module, "step_gradients", spoiled)
    watcher = Told()
    with pytest.raises(NotFinite) as raised:
        train(training, watcher, Progress())
    assert raised.value.step == 3
    assert [line[1]["step"] for line in watcher.lines] == [1, 2]
    assert len(before) == (4 if ahead else 3)  # a step more was queued
    assert torch.equal(weights, before[2])
    assert not torch.equal(before[2], before[1])


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stop_is_heeded_with_every_step_told(
    monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    monkeypatch.setattr(Training, "ahead", ahead)
    model, trainable, store = made("cpu")
    settings = TrainSettings(max_steps=6, batch_size=4, eval_every=6)
    optimizer = make_optimizer(trainable, settings)
    training = Training(model, trainable, HEAD, store, settings, Order(16, 4, seed=0), 6, optimizer)
    watcher = Told(stop_after=2)
    progress = train(training, watcher, Progress())
    assert progress.step == (3 if ahead else 2)
    assert [line[0] for line in watcher.lines[:-1]] == ["train"] * progress.step
    assert watcher.lines[-1] == f"save {progress.step}"


def test_what_heads_take_from_states_waits_for_nothing(tolist: list[str]) -> None:
    hidden = torch.arange(12.0).reshape(6, 2).requires_grad_()
    states = States(hidden, [1, 3, 2], None, causal=True)
    with Reads() as reads:
        padded, mask = states.padded()
        loss = (padded * mask[..., None]).sum() + states.at([[0], [1, 2], []]).sum()
        (loss + states.first.sum() + states.last.sum() + states.mean.sum()).backward()
    assert reads.found == []
    assert tolist == []
    assert mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert padded[0].tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert padded[2].tolist() == [[8.0, 9.0], [10.0, 11.0], [0.0, 0.0]]
    # padded once each; at: rows 0, 2 and 3; first: 0, 1, 4; last: 0, 3, 5; mean: 1, 1/3 and 1/2
    expected = torch.tensor([5, 2 + 1 / 3, 2 + 1 / 3, 3 + 1 / 3, 2.5, 2.5])
    torch.testing.assert_close(hidden.grad, expected[:, None].expand(-1, 2))


def test_to_device_takes_lists_and_tensors() -> None:
    cpu = torch.device("cpu")
    assert to_device([1, 2], cpu).dtype == torch.int64
    tensor = torch.tensor([1.0])
    assert to_device(tensor, cpu) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_not_waited_for_inside_a_step() -> None:
    model, trainable, store = made("cuda")
    settings = TrainSettings(max_steps=1, tokens_per_micro_batch=40)
    groups = [[i] for i in range(16)]
    step_gradients(model, trainable, HEAD, store, groups, settings, step=0)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        totals = step_gradients(model, trainable, HEAD, store, groups, settings, step=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert totals.loss > 0
