"""The recipe of this package: some of its steps, and that its adapter answers."""

from __future__ import annotations

import json
from pathlib import Path

import ptkit
import pytest

PACKAGE = Path(__file__).parents[1]


def test_the_recipe_runs(tmp_path: Path) -> None:
    for needed in ("chatglm2", "metrics_nlu", "nano", "seqlabel"):
        pytest.importorskip(f"ptkit_{needed}")
    overrides = ["train.max_steps=12"]
    recipe = ptkit.Recipe.load(PACKAGE / "recipe.toml", overrides=overrides)
    result = ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    assert {"before", "constant", "after"} <= set(result.scores)
    assert result.scores["after"]["entity-f1"] > result.scores["before"]["entity-f1"]

    tuned = ptkit.load("nano", result.adapter, device="cpu")
    text = "有没有红色纯棉连衣裙？"
    words = tuple((place, place + 1) for place in range(len(text)))
    origin = ptkit.Origin("request", 1)
    (found,) = tuned.predict(
        [ptkit.TaggedRecord(origin=origin, text=text, words=words)]
    )
    for entity in found:
        assert entity["text"] == text[entity["start"] : entity["end"]]


@pytest.mark.parametrize(("part", "rows"), [("train", 160), ("validation", 40)])
def test_the_data(part: str, rows: int) -> None:
    """Entities that don't overlap, and no text of one part in the other."""
    lines = (PACKAGE / "data" / f"{part}.jsonl").read_text("utf-8").splitlines()
    assert len({json.loads(line)["text"] for line in lines}) == len(lines) == rows
    for row in map(json.loads, lines):
        spans = [ptkit.Span(e["start"], e["end"], e["type"]) for e in row["entities"]]
        assert ptkit.entity_spans(ptkit.bio_tags(len(row["text"]), spans)) == spans
