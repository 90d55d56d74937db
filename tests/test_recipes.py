"""Every recipe that ships: it loads, runs two steps on nano, and its file keeps what it promises."""

from __future__ import annotations

import tomllib
from pathlib import Path

import ptkit
import pytest
from ptkit.recipe import Recipe

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.toml"))
NANO = (
    'backbone.source="nano"',
    'dataset.train="nano:train"',
    'dataset.validation="nano:validation"',
)
SHORT = (
    "dataset.limit={ train = 40, validation = 4 }",
    "task.max_target_tokens=8",
    "train.max_steps=2",
    "train.warmup_steps=0",
)


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"quickstart", "adgen-chatglm2-6b"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs_two_steps(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path, overrides=[*NANO, *SHORT])
    result = ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    assert set(result.scores) == {"before", "constant", "after"}
    ptkit.load_adapter(result.adapter)


def test_the_published_hyper_parameters() -> None:
    data = tomllib.loads((FOLDER / "adgen-chatglm2-6b.toml").read_text(encoding="utf-8"))
    assert data["prefix"]["length"] == 128
    train = data["train"]
    assert (train["learning_rate"], train["batch_size"], train["max_steps"]) == (2e-2, 16, 3000)
    assert train["loss_average"] == "row"
    task = data["task"]
    assert (task["max_source_tokens"], task["max_target_tokens"]) == (64, 128)
