"""Write rows for other tasks than generation: ``python scripts/make_nlu_data.py --out FOLDER``.

They are made of the same grammar as the quickstart's, in the styles of pretraining, and of the same
held-out combinations (`grammar.split_of`):

- types: a description that doesn't name its product, and the product's type;
- entities: a description, and where it says its colour, material, style, pattern, shape and
  details;
- answers: a description, and questions about it, some of which it doesn't answer.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, TypeAlias

from grammar import Item, Style, random_item, random_style
from lexicon import ATTRIBUTES, OPENINGS, PRODUCTS

Part: TypeAlias = Literal["train", "validation"]

COUNTS: dict[str, dict[Part, int]] = {
    "types": {"train": 1200, "validation": 200},
    "entities": {"train": 1000, "validation": 200},
    "answers": {"train": 400, "validation": 80},  # descriptions
}
ENTITY_TYPES = ("颜色", "材质", "风格", "图案", "款型", "细节")
NAMED = {kind: "包" if kind == "包" else product.nouns[0] for kind, product in PRODUCTS.items()}
QUESTIONS = {
    "颜色": ("{n}的颜色是什么？", "是什么颜色的{n}？"),
    "材质": ("{n}的材质是什么？", "{n}是用什么做的？"),
    "风格": ("{n}的风格是什么？", "{n}是什么风格的？"),
    "图案": ("{n}的图案是什么？", "{n}上有什么图案？"),
    "款型": ("{n}的款型是什么？", "这是哪一款{n}？"),
    "细节": ("{n}有什么细节？", "{n}上有什么装饰？"),
}
_NAMELESS = tuple(opening for opening in OPENINGS if "{n}" not in opening)


class Described(NamedTuple):
    """``spans``: (start, end, group) of every attribute's value, half-open, in order."""

    text: str
    spans: tuple[tuple[int, int, str], ...]


def describe(item: Item, style: Style, rng: Random, *, nameless: bool = False) -> Described:
    """As `grammar.Style.describe` puts an item into words, and where the values stand.

    ``nameless``: with an opening that doesn't name the product.
    """
    opening = rng.choice(_NAMELESS) if nameless else style.opening
    text, spans = opening.format(n=PRODUCTS[item.kind].nouns[style.noun]), []
    for number, (key, value) in enumerate(style.ordered(item.pairs)):
        group = ATTRIBUTES[key].group
        picks = style.picks[group]
        head, tail = picks[0] if rng.random() < 0.8 else rng.choice(picks)
        text += style.stop if number else ""
        start = len(text) + head.index("{v}")
        spans.append((start, start + len(value), group))
        text += f"{head.format(v=value)}{style.comma}{tail}"
    return Described(f"{text}。{style.closing}", tuple(spans))


def telling_values() -> set[tuple[str, str]]:
    """The (group, value) pairs that only one type of product can have, so that they tell it."""
    kinds = defaultdict(set)
    for kind, product in PRODUCTS.items():
        for key in product.keys:
            for value in ATTRIBUTES[key].values:
                kinds[ATTRIBUTES[key].group, value].add(kind)
    return {pair for pair, found in kinds.items() if len(found) == 1}


def type_rows(part: Part, count: int) -> Iterator[dict[str, Any]]:
    """``{"text", "label"}``, every type equally often; each text holds a value that tells it."""
    rng = Random(f"types-{part}")
    telling = telling_values()
    seen: set[str] = set()
    while len(seen) < count:
        kind = list(PRODUCTS)[len(seen) % len(PRODUCTS)]
        item = random_item(rng, part, kinds=(kind,), fewest=3, most=4)
        if not any((ATTRIBUTES[key].group, value) in telling for key, value in item.pairs):
            continue
        text = describe(item, random_style(rng), rng, nameless=True).text
        if text not in seen:
            seen.add(text)
            yield {"text": text, "label": NAMED[kind]}


def _items(part: Part, task: str, count: int) -> Iterator[tuple[Item, Described, Random]]:
    """Different descriptions of three to five attributes, two of `ENTITY_TYPES` at least."""
    rng = Random(f"{task}-{part}")
    seen: set[str] = set()
    while len(seen) < count:
        item = random_item(rng, part, fewest=3, most=5)
        described = describe(item, random_style(rng), rng)
        named = [group for _, _, group in described.spans if group in ENTITY_TYPES]
        if described.text not in seen and len(named) > 1:
            seen.add(described.text)
            yield item, described, rng


def entity_rows(part: Part, count: int) -> Iterator[dict[str, Any]]:
    """``{"text", "entities": [{"start", "end", "type"}]}``, half-open; other values are none."""
    for _, described, _ in _items(part, "entities", count):
        found = [
            {"start": start, "end": end, "type": group}
            for start, end, group in described.spans
            if group in ENTITY_TYPES
        ]
        yield {"text": described.text, "entities": found}


def answer_document(part: Part, count: int) -> dict[str, Any]:
    """SQuAD 2.0's layout: two questions with an answer a description, for every other one a third
    without."""
    paragraphs = []
    for number, (item, described, rng) in enumerate(_items(part, "answers", count)):
        spans = {group: (start, end) for start, end, group in described.spans}
        known = [group for group in ENTITY_TYPES if group in spans]
        missing = [group for group in ENTITY_TYPES if group not in spans]
        asked = rng.sample(known, 2) + (rng.sample(missing, 1) if missing and number % 2 else [])
        rng.shuffle(asked)
        qas = []
        for index, group in enumerate(asked):
            answers = []
            if group in spans:
                start, end = spans[group]
                answers.append({"text": described.text[start:end], "answer_start": start})
            qas.append(
                {
                    "id": f"{part}-{number}-{index}",
                    "question": rng.choice(QUESTIONS[group]).format(n=NAMED[item.kind]),
                    "is_impossible": not answers,
                    "answers": answers,
                }
            )
        paragraphs.append({"context": described.text, "qas": qas})
    return {"version": "v2.0", "data": [{"title": "products", "paragraphs": paragraphs}]}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _document(part: Part, count: int) -> str:
    """The document with a question a line."""
    document = answer_document(part, count)
    (article,) = document["data"]
    paragraphs = ",\n".join(
        f'{{"context": {_json(paragraph["context"])}, "qas": [\n'
        + ",\n".join(map(_json, paragraph["qas"]))
        + "\n]}"
        for paragraph in article["paragraphs"]
    )
    title = f'{{"title": "{article["title"]}", "paragraphs": [\n{paragraphs}\n]}}'
    return f'{{"version": "{document["version"]}", "data": [\n{title}\n]}}\n'


def files() -> Iterator[tuple[str, str]]:
    """Every file's name and text; the same each time."""
    parts: tuple[Part, ...] = ("train", "validation")
    for part in parts:
        types = type_rows(part, COUNTS["types"][part])
        yield f"types-{part}.jsonl", "".join(f"{_json(row)}\n" for row in types)
        entities = entity_rows(part, COUNTS["entities"][part])
        yield f"entities-{part}.jsonl", "".join(f"{_json(row)}\n" for row in entities)
        yield f"answers-{part}.json", _document(part, COUNTS["answers"][part])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
