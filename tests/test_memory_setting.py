"""train.memory: what it may be, how many layers it lets be computed again, and what is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ptkit.check import check
from ptkit.cli import main
from ptkit.engine import fitting, session
from ptkit.engine.fitting import fit
from ptkit.engine.model import Model
from ptkit.engine.processes import ALONE
from ptkit.engine.session import run
from ptkit.engine.train import Training
from ptkit.errors import RecipeError
from ptkit.memory import (
    Fit,
    MicroBatch,
    by_layers,
    layers_to_recompute,
    memory_of_machine,
    weight_bytes,
)
from ptkit.models import Backbone
from ptkit.recipe import Recipe, TrainSettings
from ptkit.records import Geometry
from ptkit.reporter import Reporter
from ptkit.sections import bytes_of
from ptkit.testing import TinyBackbone

MakeRecipe = Callable[..., Recipe]
CHATGLM2 = Geometry(28, 32, 2, 128, 4096, 65024, 32768, 6_243_584_000, ffn_size=13696)
ESTIMATES = by_layers(
    CHATGLM2,
    MicroBatch((120,) * 16, 1200),
    prefix=128,
    trainable=1_835_008,
    device="cuda",
    dtype="bfloat16",
)
GIB = 2**30


class Told(Reporter):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.warnings: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("6.5GB", 6_500_000_000),
        ("6 GiB", 6 * GIB),
        ("800MB", 800_000_000),
        ("1.5MiB", 3 * 2**19),
        ("0GB", None),
        ("6.5", None),
        ("6.5gb", None),
        ("-1GB", None),
    ],
)
def test_sizes(size: str, expected: int | None) -> None:
    assert bytes_of(size) == expected


def test_older_recipes_mean_the_same() -> None:
    assert TrainSettings(max_steps=1).memory == "auto"
    assert TrainSettings(max_steps=1, gradient_checkpointing=True).memory == "small"
    assert TrainSettings(max_steps=1, gradient_checkpointing=False).memory == "speed"


def test_an_older_recipe_is_resolved_to_one_that_loads(make_recipe: MakeRecipe) -> None:
    resolved = make_recipe(train={"gradient_checkpointing": True}).resolved()
    assert resolved["train"]["memory"] == "small"
    assert make_recipe(train=resolved["train"]).train.memory == "small"


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        (
            {"memory": "much"},
            'train.memory: must be "auto", "speed", "small" or a size such as "6.5GB" or "6GiB", '
            "got 'much'",
        ),
        (
            {"memory": "6.5GB", "gradient_checkpointing": True},
            "train.memory: is given together with gradient_checkpointing; remove the latter",
        ),
        ({"memory": 6}, "train.memory: must be a string, got 6"),
    ],
)
def test_wrong_settings(make_recipe: MakeRecipe, train: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        make_recipe(train=train)
    assert str(error.value) == f"tiny: {problem}"


def test_as_few_layers_as_fit() -> None:
    totals = [memory.total for memory in ESTIMATES]
    assert totals[:28] == sorted(totals[:28], reverse=True)
    assert layers_to_recompute("speed", ESTIMATES, 0) == 0
    assert layers_to_recompute("small", ESTIMATES, None) == 28
    assert layers_to_recompute("auto", ESTIMATES, None) == 0
    assert layers_to_recompute("auto", ESTIMATES, 80 * GIB) == 0
    # a size is taken as it is, of what is there a tenth is left free
    assert layers_to_recompute(f"{totals[9] / 1e9:.9f}GB", ESTIMATES, None) == 9
    assert layers_to_recompute("auto", ESTIMATES, -(-totals[9] * 10 // 9)) == 9
    assert layers_to_recompute("auto", ESTIMATES, totals[9]) > 9
    least = min(range(29), key=totals.__getitem__)
    assert layers_to_recompute("1GB", ESTIMATES, None) == least
    assert totals[least] <= totals[28]


@pytest.mark.parametrize(
    ("use", "available", "rows", "line"),
    [
        ("auto", 80 * GIB, 16, "card, 80.0 GiB: fits, 16.3 GiB with no layer computed again"),
        ("small", 80 * GIB, 16, "card, 80.0 GiB: fits, {small} with all 28 layers computed again"),
        ("speed", None, 16, "card: 16.3 GiB with no layer computed again"),
        (
            "speed",
            16 * GIB,
            16,
            "card, 16.0 GiB: does not fit, 16.3 GiB with no layer computed again; set "
            'train.memory = "auto"',
        ),
        (
            "auto",
            8 * GIB,
            16,
            "card, 8.0 GiB: does not fit, {least} with {n} computed again; lower "
            "train.tokens_per_micro_batch, or take a smaller or quantised base model",
        ),
        (
            "auto",
            8 * GIB,
            1,
            "card, 8.0 GiB: does not fit, {least} with {n} computed again; shorten the rows with "
            "the settings of the task, or take a quantised base model",
        ),
        (
            "8GiB",
            13 * GIB,
            16,
            'card, 13.0 GiB: train.memory = "8GiB": does not fit, {least} with {n} computed again; '
            "lower train.tokens_per_micro_batch, or take a smaller or quantised base model",
        ),
    ],
)
def test_what_is_told(use: str, available: int | None, rows: int, line: str) -> None:
    totals = [memory.total for memory in ESTIMATES]
    assert totals[0] / GIB == pytest.approx(16.30, abs=0.05)
    least = min(range(29), key=totals.__getitem__)
    again = "all 28 layers" if least == 28 else f"{least} of 28 layers"
    values = {"small": totals[28], "least": totals[least]}
    texts = {name: f"{value / GIB:.1f} GiB" for name, value in values.items()}
    assert str(Fit.of("card", use, available, ESTIMATES, rows)) == line.format(n=again, **texts)


def test_the_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = memory_of_machine()
    assert found is None or found > GIB / 4
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory_of_machine() is None


@pytest.mark.parametrize(("memory", "layers"), [("auto", 0), ("small", 2), ("speed", 0)])
def test_a_run_computes_so_many_layers_again(
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    memory: str,
    layers: int,
) -> None:
    given: list[int] = []
    real = Model.recompute_layers

    def recompute(self: Model, count: int) -> None:
        given.append(count)
        real(self, count)

    monkeypatch.setattr(Model, "recompute_layers", recompute)
    reporter = Told()
    whole = make_recipe(train={"memory": memory})
    run(whole, out=tmp_path / "run", device="cpu", reporter=reporter)
    assert given == [layers]
    told = [line for line in reporter.stages if line.startswith("memory: ")]
    assert len(told) == (1 if layers else 0)


def test_of_a_base_that_is_spread_a_process_counts_its_share(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where four share the weights, memory suffices that one alone computes layers again in."""
    found: list[Fit] = []
    real = session.set_up

    def both(training: Training, backbone: Backbone, tokens: int) -> Fit:
        spread: Any = replace(ALONE, size=4, lock_step=object())
        shared = replace(training, processes=spread)
        monkeypatch.setattr(Training, "groups", Training.all_groups)  # the rows of all
        estimates = [fit(each, backbone, tokens) for each in (training, shared)]
        room = estimates[1].memory.total * 10 // 9 + 1
        monkeypatch.setattr(fitting, "memory_of_machine", lambda: room)
        found.extend([*estimates, *(fit(each, backbone, tokens) for each in (training, shared))])
        return real(training, backbone, tokens)

    monkeypatch.setattr(session, "set_up", both)
    layers = {"layers": 6}
    run(make_recipe(backbone=layers), out=tmp_path / "run", device="cpu", reporter=Told())
    alone, shared, tight, relaxed = (each.memory for each in found)
    geometry = TinyBackbone(TinyBackbone.Settings(layers=6)).geometry
    assert alone.weights == weight_bytes(geometry, 4)
    assert shared.weights == weight_bytes(geometry, 4, processes=4) < alone.weights
    assert alone.activations == shared.activations
    assert tight.recomputed > relaxed.recomputed == 0


def test_a_cpu_without_enough_memory(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "memory_of_machine", lambda: 100_000)
    reporter = Told()
    run(make_recipe(), out=tmp_path / "run", device="cpu", reporter=reporter)
    (line,) = [w for w in reporter.warnings if w.startswith("memory: CPU of this computer, ")]
    assert ": does not fit, " in line
    assert "layers computed again; " in line


def test_a_size_that_is_too_small_is_a_warning(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    reporter = Told()
    recipe = make_recipe(train={"memory": "0.01MB"})
    run(recipe, out=tmp_path / "run", device="cpu", reporter=reporter)
    assert [w for w in reporter.warnings if 'train.memory = "0.01MB": does not fit' in w]


def test_a_check_of_a_gpu(make_recipe: MakeRecipe) -> None:
    report = check(make_recipe(), Reporter(), gpu=lambda: ("Card 9000", 2 * GIB))
    cpu, gpu = report.fits
    assert (gpu.name, gpu.available, gpu.fits) == ("Card 9000", 2 * GIB, True)
    assert cpu.available == memory_of_machine()
    report = check(make_recipe(train={"memory": "small"}), Reporter(), gpu=lambda: ("Card", 1000))
    assert report.fits[1].fits is False
    assert report.fits[1].memory.recomputed == 2
    assert report.as_dict()["fits"][1]["text"].startswith("Card, 0.000 GiB: does not fit, ")
    assert check(make_recipe(), Reporter()).fits[1].available is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert fitting.free_memory() is None
    quickstart = Path(__file__).parent.parent / "recipes" / "quickstart.toml"
    assert main(["check", str(quickstart), "--device", "cuda"]) == 2
    assert "device 'cuda': torch sees no CUDA GPU here" in capsys.readouterr().err
    assert main(["check", str(quickstart), "--device", "cpu"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert 'With train.memory = "auto": CPU of this computer, ' in out
    assert ": fits, " in out
    assert "a GPU: " in out
