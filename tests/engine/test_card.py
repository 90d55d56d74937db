"""The model card of an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptkit.engine.card import write_card
from ptkit.errors import PtkitError

from .finished import change, make_run, predictions


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    """(front matter, text) of a run's card."""
    write_card(folder)
    card = (folder / "adapter" / "README.md").read_text(encoding="utf-8")
    start, front, text = card.split("---\n", 2)
    assert start == ""
    loaded = yaml.safe_load(front)
    assert isinstance(loaded, dict)
    return loaded, text


def test_front_matter_and_text(tmp_path: Path) -> None:
    front, text = card_of(make_run(tmp_path / "r", predictions(60)))
    assert front == {
        "library_name": "ptkit",
        "base_model": "nano",
        "tags": ["ptkit", "p-tuning-v2", "prefix-tuning", "generation"],
        "metrics": ["rouge-1", "overlap"],
    }
    assert "# generation adapter for nano" in text
    assert "16 virtual tokens in front of each of the 4 layers, 8,192 trained parameters" in text
    assert f"| validation | `validation.json` | 60 | `{'b' * 64}` |" in text
    assert "| `train.learning_rate` | `0.02` |" in text
    assert "the weights of step 40 were kept, validation loss 2.1366 nats" in text
    assert "On 60 validation rows; percent, 0–100." in text
    assert "| rouge-1 | 21.29 (17.87 to 24.55) | " in text
    assert 'tuned = ptkit.load("nano", "adapter")' in text
    assert "ptkit chat adapter\n" in text


def test_the_hub_library_takes_it(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    folder = make_run(tmp_path / "r", predictions(5))
    write_card(folder)
    card = hub.ModelCard.load(folder / "adapter" / "README.md")
    assert card.data.base_model == "nano"
    assert card.data.library_name == "ptkit"


def test_it_is_the_same_wherever_and_whenever_it_is_made(tmp_path: Path) -> None:
    cards = []
    for name in ("one", "two"):
        folder = make_run(tmp_path / name, predictions(20))
        data = json.loads((folder / "environment.json").read_text())["data"]
        data["train"]["source"] = f"/somewhere/{name}/train.json"
        change(folder / "environment.json", data=data)
        recipe = folder / "recipe.toml"
        recipe.write_text(recipe.read_text().replace('"nano"', f'"/{name}/nano"'))
        write_card(folder)
        cards.append((folder / "adapter" / "README.md").read_bytes())
    assert cards[0] == cards[1]
    assert b"somewhere" not in cards[0]
    assert str(tmp_path).encode() not in cards[0]


def test_a_base_model_in_a_folder_is_named_but_not_its_place(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(5))
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('"nano"', '"/home/me/chatglm2-6b"'))
    _, text = card_of(folder)
    assert "/home/me" not in text
    assert "the base model's folder in place of the path below" in text
    assert 'ptkit.load("/path/to/chatglm2-6b", "adapter")' in text
    assert "ptkit chat adapter --backbone /path/to/chatglm2-6b\n" in text


def test_rows_of_the_data_are_not_given_away(tmp_path: Path) -> None:
    _, text = card_of(make_run(tmp_path / "r", predictions(20)))
    assert "类型#上衣" not in text
    assert "宽松" not in text
    assert 'tuned.generate(["your prompt"])' in text


def test_without_scores(tmp_path: Path) -> None:
    front, text = card_of(make_run(tmp_path / "r"))
    assert "metrics" not in front
    assert "Nothing was scored." in text
    assert "Trained for 40 optimiser steps.\n" in text


def test_one_row_and_one_token(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(1), steps=1)
    change(
        folder / "adapter" / "adapter.json", prefix={"length": 1, "projection_hidden_size": 1024}
    )
    _, text = card_of(folder)
    assert "1 virtual token in front of each of the 4 layers, made by an MLP of width 1,024" in text
    assert "Trained for 1 optimiser step;" in text
    assert "On 1 validation row;" in text
    assert "bootstrap" not in text


def test_labels(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(5))
    labels = [f"L{index}" for index in range(25)]
    change(folder / "adapter" / "adapter.json", task={"kind": "classification", "labels": labels})
    _, text = card_of(folder)
    assert "- task: `classification`, labels `L0`, " in text
    assert "`L19` and 5 more" in text


@pytest.mark.parametrize("name", ["a: b # c", '"q"', "模型", "x\u2028y", "- *", "😀", "\x85|`<b>`"])
def test_strange_names_stay_text(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "r", predictions(5))
    manifest = json.loads((folder / "adapter" / "adapter.json").read_text())
    change(folder / "adapter" / "adapter.json", backbone=manifest["backbone"] | {"name": name})
    front, text = card_of(folder)
    assert front["base_model"] == name
    heading = next(line for line in text.split("\n") if line.startswith("# "))
    assert "<b>" not in heading.replace("\\<b\\>", "")


def test_an_unfinished_run_has_no_card(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(2))
    (folder / "scores.json").unlink()
    with pytest.raises(PtkitError, match=r"the run is not finished, scores\.json missing"):
        write_card(folder)
