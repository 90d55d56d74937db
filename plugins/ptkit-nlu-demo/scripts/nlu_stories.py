"""Paragraphs about an order, a trip or a person, and questions whose answers stand in them.

A paragraph is made of four to eight facts. Several facts have answers of one kind (an order has a
day on which it was placed, shipped and delivered), so that a question has to be read; a question
about a fact that was left out has no answer.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any, NamedTuple

import nlu_words
from nlu_words import Split


class Fact(NamedTuple):
    """One sentence, in several wordings, and what can be asked about its slots.

    ``wordings`` and each list of questions: the last one is for validation alone. ``questions``: by
    the slot that is the answer.
    """

    wordings: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]


class Story(NamedTuple):
    """``opening``: the fact that always comes first; ``cast``: its slots and their kinds, which
    later facts name again; ``facts``: the others, told in this order."""

    cast: dict[str, str]
    opening: Fact
    facts: tuple[Fact, ...]


def read_stories() -> dict[str, Story]:
    """The stories of ``stories.toml`` by their names."""
    text = (Path(__file__).parent / "stories.toml").read_text(encoding="utf-8")
    stories = {}
    for name, story in tomllib.loads(text).items():
        opening, *facts = (
            Fact(
                tuple(fact["wordings"]),
                {slot: tuple(asked) for slot, asked in fact["questions"].items()},
            )
            for fact in story["facts"]
        )
        stories[name] = Story(story["cast"], opening, tuple(facts))
    return stories


STORIES = read_stories()


class Told(NamedTuple):
    """A paragraph; for each slot its value and the character that it begins at."""

    context: str
    slots: dict[str, tuple[str, int]]


def _tell(sentence: str, at: int, values: dict[str, str]) -> tuple[str, dict[str, tuple[str, int]]]:
    """The sentence with its values, and where the first mention of each begins in the paragraph."""
    text, found = "", {}
    for literal, slot, _, _ in Formatter().parse(sentence):
        text += literal
        if slot is not None:
            found[slot] = (values[slot], at + len(text))
            text += values[slot]
    return text, found


def _values(story: Story, rng: Random, split: Split) -> dict[str, str]:
    """A value for every slot of the story, no two alike and none a part of another."""
    kinds = dict(story.cast)
    for fact in story.facts:
        for wording in fact.wordings:
            for _, slot, kind, _ in Formatter().parse(wording):
                if slot is not None and kind:
                    kinds[slot] = kind
    values: dict[str, str] = {}
    for slot, kind in kinds.items():
        while True:
            value = nlu_words.value(kind, rng, split)
            if kind == "product" and (value[-1] == "s" or value[0].lower() in "aeio"):
                continue  # it stands behind "a"
            if kind != "product" and value.startswith("the "):
                continue  # "the 3rd of May" and "the old town hall" would begin sentences
            if not any(value in other or other in value for other in values.values()):
                break
        values[slot] = value
    return values


def _one(options: tuple[str, ...], rng: Random, split: Split) -> str:
    return rng.choice(options[:-1]) if split == "train" else options[-1]


def paragraph(
    kind: str, rng: Random, split: Split, questions: int
) -> tuple[Told, list[tuple[str, str | None]]]:
    """A story of so many questions; each with the slot that answers it, None where none does."""
    story = STORIES[kind]
    values = _values(story, rng, split)
    chosen = sorted(rng.sample(range(len(story.facts)), rng.randint(3, 7)))
    told = [story.opening, *(story.facts[index] for index in chosen)]
    context = ""
    slots: dict[str, tuple[str, int]] = {}
    for fact in told:
        # wordings are shared half and half: a paragraph of new ones alone would be another language
        wording = rng.choice(fact.wordings if split == "validation" else fact.wordings[:-1])
        text, found = _tell(wording, len(context), values)
        slots = found | slots
        context += f"{text} "
    known = [(slot, asked) for fact in told for slot, asked in fact.questions.items()]
    left_out = [
        (None, asked)
        for index, fact in enumerate(story.facts)
        if index not in chosen
        for asked in fact.questions.values()
    ]
    missing = min(len(left_out), rng.choice((1, 1, 2)))
    picked: list[tuple[str | None, tuple[str, ...]]] = [
        *rng.sample(known, min(questions - missing, len(known))),
        *rng.sample(left_out, missing),
    ]
    rng.shuffle(picked)
    asked = [(_one(wordings, rng, split).format(**values), slot) for slot, wordings in picked]
    return Told(context.rstrip(), slots), asked


def squad(split: Split, paragraphs: int, *, questions: int) -> dict[str, Any]:
    """A document in SQuAD 2.0's layout, the kinds of stories in turn."""
    rng = Random(f"stories-{split}")
    articles: dict[str, list[dict[str, Any]]] = {kind: [] for kind in STORIES}
    for number in range(paragraphs):
        kind = list(STORIES)[number % len(STORIES)]
        told, asked = paragraph(kind, rng, split, questions)
        qas = []
        for index, (question, slot) in enumerate(asked):
            answer = () if slot is None else (told.slots[slot],)
            qas.append(
                {
                    "id": f"{split}-{number}-{index}",
                    "question": question,
                    "is_impossible": slot is None,
                    "answers": [{"text": text, "answer_start": start} for text, start in answer],
                }
            )
        articles[kind].append({"context": told.context, "qas": qas})
    data = [{"title": kind, "paragraphs": found} for kind, found in articles.items()]
    return {"version": "v2.0", "data": data}
