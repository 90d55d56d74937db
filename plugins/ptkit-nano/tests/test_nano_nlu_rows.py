"""The rows for classification, tagging and extraction: what they promise, and who made them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT / "ptkit_nano" / "data"

sys.path.insert(0, str(ROOT / "scripts"))

import grammar  # noqa: E402
import lexicon  # noqa: E402
import make_nlu_data as made  # noqa: E402

PARTS = ("train", "validation")


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def questions(part: str) -> list[tuple[str, dict[str, Any]]]:
    """(context, question) of every question."""
    document = json.loads((DATA / f"answers-{part}.json").read_text(encoding="utf-8"))
    assert document["version"] == "v2.0"
    return [
        (paragraph["context"], qa)
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def test_the_script_makes_the_files_again() -> None:
    found = dict(made.files())
    assert len(found) == 6
    for name, text in found.items():
        assert (DATA / name).read_bytes() == text.encode(), name


@pytest.mark.parametrize(("part", "count"), [("train", 1200), ("validation", 200)])
def test_types_are_even_and_not_named(part: str, count: int) -> None:
    rows = lines(f"types-{part}.jsonl")
    assert len({row["text"] for row in rows}) == len(rows) == count
    often = Counter(row["label"] for row in rows)
    assert set(often) == {"上衣", "裙子", "裤子", "鞋子", "包", "帽子"}
    assert max(often.values()) - min(often.values()) <= 1
    nouns = {noun for product in lexicon.PRODUCTS.values() for noun in product.nouns}
    assert not [row for row in rows if any(noun in row["text"] for noun in nouns)]


def test_a_telling_value_is_that_of_one_type() -> None:
    telling = made.telling_values()
    assert ("款型", "渔夫帽") in telling
    assert ("颜色", "红色") not in telling
    assert ("领型", "圆领") not in telling  # of 上衣 and of 裙


@pytest.mark.parametrize(("part", "count"), [("train", 1000), ("validation", 200)])
def test_entities_are_values_of_their_type(part: str, count: int) -> None:
    rows = lines(f"entities-{part}.jsonl")
    assert len({row["text"] for row in rows}) == len(rows) == count
    values = {
        (attribute.group, value)
        for attribute in lexicon.ATTRIBUTES.values()
        for value in attribute.values
    }
    for row in rows:
        found = row["entities"]
        assert len(found) > 1
        assert all((e["type"], row["text"][e["start"] : e["end"]]) in values for e in found)
        assert all(before["end"] <= after["start"] for before, after in pairwise(found))
    assert {e["type"] for row in rows for e in row["entities"]} == set(made.ENTITY_TYPES)


def test_describing_is_the_grammars() -> None:
    """`describe` puts the words of `grammar.Style.describe`, drawing the same random numbers."""
    for seed in range(50):
        style = grammar.random_style(Random(seed))
        item = grammar.random_item(Random(seed), "train", fewest=3, most=5)
        text = made.describe(item, style, Random(seed)).text
        assert text == style.describe(item, Random(seed))


@pytest.mark.parametrize(("part", "count"), [("train", 400), ("validation", 80)])
def test_answers_stand_where_they_say(part: str, count: int) -> None:
    asked = questions(part)
    assert len({context for context, _ in asked}) == count
    assert len({qa["id"] for _, qa in asked}) == len(asked)
    for context, qa in asked:
        assert qa["is_impossible"] == (not qa["answers"])
        for answer in qa["answers"]:
            assert context[answer["answer_start"] :].startswith(answer["text"])
    unanswerable = sum(qa["is_impossible"] for _, qa in asked) / len(asked)
    assert 0.15 < unanswerable < 0.25
    # asking for the first value of a text would not do
    first = sum(
        qa["answers"][0]["answer_start"] == min(a["answers"][0]["answer_start"] for a in others)
        for context, qa in asked
        if qa["answers"]
        and (others := [a for text, a in asked if text == context and a["answers"]])
    )
    assert first / len(asked) < 0.6


def test_combinations_of_validation_are_held_out() -> None:
    """No text is in both parts, and the grammar gives each part its own combinations."""
    for name in ("types", "entities"):
        trained = {row["text"] for row in lines(f"{name}-train.jsonl")}
        assert trained.isdisjoint(row["text"] for row in lines(f"{name}-validation.jsonl"))
    for part in PARTS:
        for item, _, _ in made._items(part, "entities", 50):  # type: ignore[arg-type]
            assert grammar.split_of(item.all_pairs) == part
