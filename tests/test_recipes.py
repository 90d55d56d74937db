"""Every recipe that ships: it loads, runs two steps on nano, and keeps what its file promises."""

from __future__ import annotations

import json
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import ptkit_nano
import pytest

import ptkit
from ptkit.recipe import Recipe

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.toml"))
SHORT = (
    'backbone.source="nano"',
    "dataset.limit={ train = 40, validation = 4 }",
    "task.max_target_tokens=8",
    "train.max_steps=2",
    "train.warmup_steps=1",
)


def nano_rows(part: str, dataset: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of nano's data under the columns of a recipe, each with the one before as history."""
    path = ptkit_nano.ptkit_resolve_source(f"nano:{part}")
    assert path is not None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:41]]
    columns = {
        "content": dataset.get("prompt_column", "content"),
        "summary": dataset.get("response_column", "summary"),
    }
    history = dataset.get("history_column")
    return [
        {new: row[old] for old, new in columns.items()}
        | ({history: [[before["content"], before["summary"]]]} if history else {})
        for before, row in pairwise(rows)
    ]


def test_there_are_recipes() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {"quickstart", "adgen-chatglm2-6b", "chat-chatglm2-6b"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs_two_steps(path: Path, tmp_path: Path) -> None:
    dataset = tomllib.loads(path.read_text(encoding="utf-8"))["dataset"]
    overrides = list(SHORT)
    for part in ("train", "validation"):
        file = tmp_path / f"{part}.json"
        rows = [json.dumps(row, ensure_ascii=False) for row in nano_rows(part, dataset)]
        file.write_text("\n".join(rows), encoding="utf-8")
        overrides.append(f"dataset.{part}={json.dumps(str(file))}")
    recipe = Recipe.load(path, overrides=overrides)
    result = ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    assert set(result.scores) == {"before", "constant", "after"}
    ptkit.load_adapter(result.adapter)


def test_the_published_hyper_parameters() -> None:
    """As the published scripts have them; the plugin's tests compare every setting."""
    for name, rate, tokens in (("adgen", 2e-2, (64, 128)), ("chat", 1e-2, (256, 256))):
        data = tomllib.loads((FOLDER / f"{name}-chatglm2-6b.toml").read_text(encoding="utf-8"))
        assert data["prefix"]["length"] == 128
        assert data["backbone"]["quantization"] == "int4"
        train = data["train"]
        assert (train["learning_rate"], train["batch_size"], train["max_steps"]) == (rate, 16, 3000)
        assert train["loss_average"] == "row"
        task = data["task"]
        assert (task["max_source_tokens"], task["max_target_tokens"]) == tokens
