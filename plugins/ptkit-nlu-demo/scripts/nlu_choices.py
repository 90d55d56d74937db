"""Small events, what led to them and what came of them, and options to choose from.

A topic has two sides, such as a battery that was empty and one that was full. Each side has two
wordings of the event, its causes and its effects. Wrong options come from other topics; in half of
the rows, one comes from the other side (it speaks of the same things) or from the wrong direction
(a cause where the effect is asked for). Some topics are kept for validation.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from nlu_words import Split


class Side(NamedTuple):
    """Two or more wordings each; ``{p}`` is a person's name."""

    events: tuple[str, ...]
    causes: tuple[str, ...]
    effects: tuple[str, ...]


QUESTIONS = {"causes": "What was the cause?", "effects": "What happened as a result?"}
NAMES = {
    "train": ("Anna", "Ben", "Carla", "David", "Elena", "Felix", "Grace", "Hugo", "Kira", "Noah"),
    "validation": ("Leila", "Milo", "Nadia", "Oscar", "Ivy", "Jonas"),
}


def _sentences(line: str, mark: str) -> tuple[str, ...]:
    return tuple(f"{sentence.strip()}." for sentence in line.removeprefix(mark).split("/"))


def read_topics() -> dict[Split, list[tuple[Side, Side]]]:
    """The topics of ``topics.txt``: two sides of three lines each, events, < causes, > effects."""
    text = (Path(__file__).parent / "topics.txt").read_text(encoding="utf-8")
    _, train, validation = re.split("^== .*$", text, flags=re.MULTILINE)
    topics: dict[Split, list[tuple[Side, Side]]] = {"train": [], "validation": []}
    for found, part in zip(topics.values(), (train, validation), strict=True):
        for block in part.strip().split("\n\n"):
            lines = block.splitlines()
            first, second = (
                Side(_sentences(events, ""), _sentences(causes, "< "), _sentences(effects, "> "))
                for events, causes, effects in (lines[:3], lines[3:])
            )
            found.append((first, second))
    return topics


def _pairs(topics: list[tuple[Side, Side]]) -> list[tuple[int, int, str, str, str]]:
    """All of topic, side, what is asked for, event and right option."""
    return [
        (number, number_of_side, asked, event, right)
        for number, topic in enumerate(topics)
        for number_of_side, side in enumerate(topic)
        for asked in QUESTIONS
        for event in side.events
        for right in getattr(side, asked)
    ]


def choice_rows(split: Split, count: int) -> list[dict[str, Any]]:
    """``count`` different rows of two to four options, in every place equally often by chance."""
    rng = Random(f"choices-{split}")
    topics = read_topics()[split]
    pairs = _pairs(topics)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        number, place, asked, event, right = rng.choice(pairs)
        side, other = topics[number][place], topics[number][1 - place]
        direction = next(name for name in QUESTIONS if name != asked)
        away = rng.sample([topic for index, topic in enumerate(topics) if index != number], 3)
        wrong = [rng.choice(getattr(rng.choice(topic), asked)) for topic in away]
        if rng.random() < 0.5:
            hard = [*getattr(other, asked), *getattr(side, direction)]
            wrong[0] = rng.choice(hard)
        options = [right, *wrong[: rng.choice((1, 2, 3))]]
        rng.shuffle(options)
        name = rng.choice(NAMES[split])
        row = {
            "premise": event.format(p=name),
            "question": QUESTIONS[asked],
            "choices": [option.format(p=name) for option in options],
            "answer": options.index(right),
        }
        rows.setdefault(repr(row), row)
    return list(rows.values())
