"""The tracker ``tensorboard``: its event files, read back by TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec as find_any_spec
from pathlib import Path
from typing import Any

import ptkit_trackers
import pytest
from ptkit_trackers import TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ptkit
from ptkit.testing import check_tracker

SCORES = {"before": {"bleu-4": 1.5}, "after": {"bleu-4": 80.25}}


def make(**settings: Any) -> TensorBoard:
    return TensorBoard(TensorBoard.Settings(**settings))


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every scalar."""
    found = read(folder)
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def train(tracker: ptkit.Tracker, *steps: int) -> None:
    for step in steps:
        tracker.event("train", {"step": step, "loss": 4.0 / step, "micro_batches": 1})


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    check_tracker(make(), folder=tmp_path)
    assert points(tmp_path / "second" / "tensorboard")["train/loss"] == [(1, 3.25), (2, 3.0)]
    assert not list((tmp_path / "stopped").rglob("events*"))


def test_the_files_hold_what_the_run_said(tmp_path: Path) -> None:
    tracker = make(flush_seconds=1)
    tracker.start(ptkit.RunInfo(str(tmp_path), {"ptkit": 1, "task": {"kind": "任务"}}))
    tracker.event("untuned", {"step": 0, "loss": 8.0})
    train(tracker, 1, 2)
    tracker.event("scores", {"step": 2, **SCORES})
    tracker.finish()
    assert points(tmp_path / "tensorboard") == {
        "untuned/loss": [(0, 8.0)],
        "train/loss": [(1, 4.0), (2, 2.0)],
        "train/micro_batches": [(1, 1.0), (2, 1.0)],
        "scores/before/bleu-4": [(2, 1.5)],
        "scores/after/bleu-4": [(2, 80.25)],
    }
    (text,) = read(tmp_path / "tensorboard").Tensors("recipe/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert shown.splitlines()[:2] == ["    {", '      "ptkit": 1,']
    assert '"任务"' in shown


def test_a_run_that_goes_on_repeats_no_step(tmp_path: Path) -> None:
    for steps in ((1, 2, 3, 4), (3, 4, 5)):  # stopped behind 4, gone on with from step 2
        tracker = make()
        tracker.start(ptkit.RunInfo(str(tmp_path)))
        train(tracker, *steps)
        tracker.finish()
    assert points(tmp_path / "tensorboard")["train/loss"] == [
        (1, 4.0),
        (2, 2.0),
        (3, pytest.approx(4 / 3)),
        (4, 1.0),
        (5, pytest.approx(0.8)),
    ]


def test_another_folder(tmp_path: Path) -> None:
    tracker = make(folder=str(tmp_path / "boards" / "one"))
    tracker.start(ptkit.RunInfo(str(tmp_path / "run")))
    train(tracker, 1)
    tracker.finish()
    assert points(tmp_path / "boards" / "one")["train/loss"] == [(1, 4.0)]
    assert not (tmp_path / "run").exists()


def test_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str) -> Any:
        return None if name == "tensorboard" else find_any_spec(name)

    monkeypatch.delitem(__import__("sys").modules, "tensorboard")
    monkeypatch.setattr("ptkit_trackers.numbers.find_spec", find_spec)
    with pytest.raises(ptkit.PluginError) as refused:
        make()
    assert str(refused.value) == (
        "tracker 'tensorboard' needs tensorboard, which is not installed; "
        'pip install "ptkit-trackers[tensorboard]"'
    )


def test_the_plugin_has_all_four() -> None:
    names = [tracker.name for tracker in ptkit_trackers.ptkit_register_trackers()]
    assert names == ["tensorboard", "wandb", "mlflow", "swanlab"]


Fails = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    ("method", "raised"),
    [("__init__", "start"), ("add_scalar", "event"), ("close", "finish")],
)
def test_a_full_disk_is_an_error_that_a_run_survives(
    method: str, raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker raises; a run tells of it once and goes on (its own tests show that)."""

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{method}", full)
    tracker = make()
    tracker.start(ptkit.RunInfo(str(tmp_path)))
    with pytest.raises(OSError, match="No space left"):
        train(tracker, 1)
        tracker.finish()
