"""Write the demo's data: ``python scripts/make_nlu_demo.py --out ptkit_nlu_demo/data``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nlu_choices import choice_rows
from nlu_messages import messages, tagged_words
from nlu_stories import squad
from nlu_words import Split

ROWS: dict[str, dict[Split, int]] = {
    "intents": {"train": 2000, "validation": 400},
    "slots": {"train": 800, "validation": 250},
    "answers": {"train": 210, "validation": 60},  # paragraphs
    "choices": {"train": 1000, "validation": 250},
}


def _jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _intents(split: Split) -> str:
    found = messages(split, ROWS["intents"][split], slots=False)
    return _jsonl({"text": message.text, "label": message.intent} for message in found)


def _slots(split: Split) -> str:
    """As CoNLL-2003 lays it out: a word and its tag a line, a blank line behind a sentence."""
    sentences = (tagged_words(m) for m in messages(split, ROWS["slots"][split], slots=True))
    return "".join("".join(f"{word} {tag}\n" for word, tag in words) + "\n" for words in sentences)


def _answers(split: Split) -> str:
    """JSON with a question a line, so that errors and differences have lines to name."""
    document = squad(split, ROWS["answers"][split], questions=5)
    articles = []
    for article in document["data"]:
        paragraphs = []
        for paragraph in article["paragraphs"]:
            asked = ",\n".join(json.dumps(qa, ensure_ascii=False) for qa in paragraph["qas"])
            context = json.dumps(paragraph["context"], ensure_ascii=False)
            paragraphs.append(f'{{"context": {context}, "qas": [\n{asked}\n]}}')
        joined = ",\n".join(paragraphs)
        articles.append(f'{{"title": "{article["title"]}", "paragraphs": [\n{joined}\n]}}')
    joined = ",\n".join(articles)
    return f'{{"version": "{document["version"]}", "data": [\n{joined}\n]}}\n'


def _choices(split: Split) -> str:
    return _jsonl(choice_rows(split, ROWS["choices"][split]))


def files() -> Iterator[tuple[str, str]]:
    """Every file's name and text; the same each time."""
    for split in ("train", "validation"):
        yield f"intents-{split}.jsonl", _intents(split)
        yield f"slots-{split}.conll", _slots(split)
        yield f"answers-{split}.json", _answers(split)
        yield f"choices-{split}.jsonl", _choices(split)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {len(text.encode()):,} bytes")


if __name__ == "__main__":
    main()
