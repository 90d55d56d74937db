"""The data: made by the scripts, of the promised size, and with what validation has alone."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any

import pytest

import ptkit

ROOT = Path(__file__).parents[1]
DATA = ROOT / "ptkit_nlu_demo" / "data"

sys.path.insert(0, str(ROOT / "scripts"))

import make_nlu_demo  # noqa: E402
import nlu_choices  # noqa: E402
import nlu_messages  # noqa: E402
import nlu_stories  # noqa: E402
import nlu_words  # noqa: E402

PARTS: tuple[nlu_words.Split, ...] = ("train", "validation")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def sentences(part: str) -> list[list[tuple[str, str]]]:
    """The (word, tag) pairs of every sentence."""
    lines = (DATA / f"slots-{part}.conll").read_text(encoding="utf-8").split("\n")
    found = [list(group) for filled, group in groupby(lines, bool) if filled]
    return [[(word, tag) for word, tag in map(str.split, lines)] for lines in found]


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
    found = dict(make_nlu_demo.files())
    assert set(found) == {path.name for path in DATA.iterdir()}
    for name, text in found.items():
        assert (DATA / name).read_bytes() == text.encode(), name


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "count"), [("train", 2000), ("validation", 400)])
def test_intents(part: str, count: int) -> None:
    found = rows(f"intents-{part}.jsonl")
    assert len({row["text"] for row in found}) == len(found) == count
    assert Counter(row["label"] for row in found) == dict.fromkeys(nlu_messages.INTENTS, count / 10)


def test_a_word_of_another_intent_proves_nothing() -> None:
    """Asides put the words of one intent into the messages of others."""
    found = rows("intents-train.jsonl")
    for word in ("refund", "parcel", "shop", "payment", "address"):
        assert len({row["label"] for row in found if word in row["text"]}) > 4, word


def test_phrasings_of_validation_are_its_own() -> None:
    for intent in nlu_messages.INTENTS.values():
        assert set(intent.train).isdisjoint(intent.validation)
    for name in ("intents", "choices"):
        trained = {json.dumps(row) for row in rows(f"{name}-train.jsonl")}
        assert trained.isdisjoint(json.dumps(row) for row in rows(f"{name}-validation.jsonl"))


def test_filling_a_template_by_hand() -> None:
    text, spans = nlu_messages.fill("send {order} to {place}", Random(0), "train")
    (first, second) = spans
    assert text == f"send {text[first[0] : first[1]]} to {text[second[0] : second[1]]}"
    assert (first[2], second[2]) == ("order", "place")
    assert text[second[0] : second[1]] in nlu_words.PLACES["train"]


def test_words_and_tags_by_hand() -> None:
    message = nlu_messages.Message(
        "I'd pay $12.50 to Ann Lee, now", "", ((8, 14, "price"), (18, 25, "person"))
    )
    assert nlu_messages.tagged_words(message) == [
        *[("I'd", "O"), ("pay", "O"), ("$", "B-price"), ("12.50", "I-price"), ("to", "O")],
        *[("Ann", "B-person"), ("Lee", "I-person"), (",", "O"), ("now", "O")],
    ]


@pytest.mark.parametrize(("part", "count"), [("train", 800), ("validation", 250)])
def test_slots(part: str, count: int) -> None:
    found = sentences(part)
    assert len(found) == count
    kinds: Counter[str] = Counter()
    for sentence in found:
        tags = [tag for _, tag in sentence]
        entities = ptkit.entity_spans(tags)
        assert len(entities) > 1
        assert ptkit.bio_tags(len(tags), entities) == tuple(tags)  # well formed
        kinds.update(entity.type for entity in entities)
    assert set(kinds) == set(nlu_words.KINDS)
    assert min(kinds.values()) > 0.05 * kinds.total()


def test_slot_values_are_whole() -> None:
    """No border of a value lies inside a word, so that tags give every value back."""
    for message in nlu_messages.messages("validation", 200, slots=True):
        tagged = nlu_messages.tagged_words(message)
        values = [
            " ".join(word for word, _ in tagged[entity.start : entity.end])
            for entity in ptkit.entity_spans(tag for _, tag in tagged)
        ]
        given = [message.text[start:end] for start, end, _ in message.spans]
        assert [value.replace(" ", "") for value in values] == [
            value.replace(" ", "") for value in given
        ]


def test_values_of_validation_are_its_own() -> None:
    for table in (nlu_words.PERSONS, nlu_words.PLACES):
        assert set(table["train"]).isdisjoint(table["validation"])
    # … and some are of two kinds, so that the words around them have to be read
    for part in PARTS:
        both = set(nlu_words.PERSONS[part]) & set(nlu_words.PLACES[part])
        assert len(both) > 3


@pytest.mark.parametrize("slot", [*nlu_words.KINDS, "past", "next"])
def test_slots_have_values(slot: str) -> None:
    rng = Random(0)
    assert nlu_words.kind_of(slot) in nlu_words.KINDS
    for part in PARTS:
        assert len({nlu_words.value(slot, rng, part) for _ in range(200)}) > 10


def test_templates_have_known_slots() -> None:
    for intent in nlu_messages.INTENTS.values():
        for template in (*intent.train, *intent.validation, *intent.asides):
            for _, slot, _, _ in Formatter().parse(template):
                assert slot is None or nlu_words.kind_of(slot) in nlu_words.KINDS, template


@pytest.mark.parametrize(
    ("day", "ending"), [(1, "st"), (2, "nd"), (3, "rd"), (4, "th"), (11, "th"), (22, "nd")]
)
def test_ordinals(day: int, ending: str) -> None:
    class Fixed(Random):
        def randint(self, a: int, b: int) -> int:
            return day

    found = {nlu_words.calendar_date(Fixed(seed), "train") for seed in range(50)}
    assert {re.sub(" .*", "", date[4:]) for date in found if date.startswith("the ")} == {
        f"{day}{ending}"
    }


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "count"), [("train", 210), ("validation", 60)])
def test_answers(part: str, count: int) -> None:
    asked = questions(part)
    assert len({context for context, _ in asked}) == count
    assert len({qa["id"] for _, qa in asked}) == len(asked) > 4 * count
    for context, qa in asked:
        assert qa["is_impossible"] == (not qa["answers"])
        assert "{" not in qa["question"] + context
        for answer in qa["answers"]:
            assert context[answer["answer_start"] :].startswith(answer["text"])
        assert len(re.findall(r"[.?] ?(?=[A-Z0-9$€£]|$)", context)) >= 4
    unanswerable = sum(qa["is_impossible"] for _, qa in asked) / len(asked)
    assert 0.2 < unanswerable < 0.35


def test_questions_of_validation_are_its_own() -> None:
    for story in nlu_stories.STORIES.values():
        for fact in (story.opening, *story.facts):
            assert len(set(fact.wordings)) == 3
            for slot, wordings in fact.questions.items():
                assert len(set(wordings)) == 3
                for wording in fact.wordings:
                    assert re.search(rf"{{{slot}(:\w+)?}}", wording), (slot, wording)


def test_a_paragraph_has_values_of_one_kind_to_choose_from() -> None:
    """Most values have another of their kind beside them: two days, two persons, …"""
    rng = Random(0)
    found, alone = 0, 0
    for name, story in nlu_stories.STORIES.items():
        wordings = [wording for fact in story.facts for wording in fact.wordings]
        kinds = story.cast | dict(re.findall(r"{(\w+):(\w+)}", " ".join(wordings)))
        for _ in range(50):
            told, _ = nlu_stories.paragraph(name, rng, "validation", 5)
            often = Counter(kinds[slot] for slot in told.slots)
            found += often.total()
            alone += sum(number == 1 for number in often.values())
    assert alone < found / 2


# --- choices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "count"), [("train", 1000), ("validation", 250)])
def test_choices(part: str, count: int) -> None:
    found = rows(f"choices-{part}.jsonl")
    assert len(found) == count
    often = Counter(len(row["choices"]) for row in found)
    assert set(often) == {2, 3, 4}
    for row in found:
        assert len(set(row["choices"])) == len(row["choices"])
        assert 0 <= row["answer"] < len(row["choices"])
        assert row["premise"] not in row["choices"]
    expected = sum(1 / len(row["choices"]) for row in found)
    for place in (0, 1):
        assert abs(sum(row["answer"] == place for row in found) - expected) < 0.12 * count
    longest = sum(max(row["choices"], key=len) == row["choices"][row["answer"]] for row in found)
    assert longest < 0.5 * count  # the length of an option doesn't tell


def test_topics_of_validation_are_its_own() -> None:
    topics = nlu_choices.read_topics()
    assert (len(topics["train"]), len(topics["validation"])) == (26, 8)
    sentences = {
        part: {s for topic in found for side in topic for field in side for s in field}
        for part, found in topics.items()
    }
    assert sentences["train"].isdisjoint(sentences["validation"])
    for found in topics.values():
        for topic in found:
            for side in topic:
                assert all(len(set(field)) == 2 for field in side)


def test_the_right_option_is_of_the_event() -> None:
    topics = [side for topic in nlu_choices.read_topics()["validation"] for side in topic]
    for row in rows("choices-validation.jsonl"):
        right = row["choices"][row["answer"]]
        asked = next(
            key for key, value in nlu_choices.QUESTIONS.items() if value == row["question"]
        )
        assert any(
            {row["premise"], right}
            <= {
                sentence.format(p=name)
                for sentence in (*side.events, *getattr(side, asked))
                for name in nlu_choices.NAMES["validation"]
            }
            for side in topics
        )


def test_pairs_are_in_order() -> None:
    """A message's slots come in the order of its text."""
    for message in nlu_messages.messages("train", 100, slots=True):
        assert all(one[1] <= two[0] for one, two in pairwise(message.spans))
