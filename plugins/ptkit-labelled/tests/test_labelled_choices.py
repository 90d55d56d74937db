from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ptkit_labelled.choices import ChoicesFormat
from pydantic import ValidationError

from ptkit import BadRow, ChoiceRecord, Origin
from ptkit.testing import check_dataset_format

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
ROW = {"question": "Wet?", "choices": ["no", "yes"], "answer": 1}
COPA = """
question_columns = ["premise", "question"]
choice_columns = ["choice1", "choice2"]
answer_column = "label"

[question_words.question]
cause = "What was the cause?"
effect = "What happened as a result?"
"""


def choices(**settings: Any) -> ChoicesFormat:
    return ChoicesFormat(ChoicesFormat.Settings(train="x", **settings))


@pytest.fixture
def read(tmp_path: Path):
    def read(row: dict[str, Any], *, unanswered: bool = False, **settings: Any) -> Any:
        path = tmp_path / "x.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        form = choices(**settings)
        (found,) = (form.read_unanswered if unanswered else form.read)(path, "x")
        return found

    return read


def record(question: str, given: tuple[str, ...], answer: int | None) -> ChoiceRecord:
    return ChoiceRecord(origin=Origin("x", 1), question=question, choices=given, answer=answer)


def test_a_list_of_choices(read):
    assert read(ROW) == record("Wet?", ("no", "yes"), 1)
    other = {"q": "Wet?", "options": ["no", "yes", "so so"], "gold": 0}
    columns = {"question_columns": ["q"], "choices_column": "options", "answer_column": "gold"}
    assert read(other, **columns) == record("Wet?", ("no", "yes", "so so"), 0)


def test_copa(read):
    row = {
        "premise": "It was wet.",
        "question": "cause",
        "choice1": "It rained.",
        "choice2": "It was noon.",
        "label": 0,
        "idx": 3,
    }
    assert read(row, **tomllib.loads(COPA)) == record(
        "It was wet. What was the cause?", ("It rained.", "It was noon."), 0
    )


@pytest.mark.parametrize(
    ("answer", "settings"),
    [
        ("1", {}),
        (2, {"answer_base": 1}),
        ("2", {"answer_base": 1}),
        ("B", {"answer_type": "letter"}),
        ("b", {"answer_type": "letter"}),
        ("yes", {"answer_type": "text"}),
    ],
)
def test_ways_to_give_the_answer(read, answer, settings):
    assert read({**ROW, "answer": answer}, **settings).answer == 1


def test_rows_to_be_answered(read):
    expected = record("Wet?", ("no", "yes"), None)
    assert read({"question": "Wet?", "choices": ["no", "yes"]}, unanswered=True) == expected
    assert read({**ROW, "answer": "?"}, unanswered=True) == expected


BAD = [
    ({"question": " "}, {}, "key 'question' is empty; give it a text, "),
    ({"question": 3}, {}, "key 'question' must be a string, got the number 3; "),
    ({}, {"question_columns": ["premise"]}, "key 'premise' is missing (the row has: question"),
    ({}, {"choices_column": "options"}, "key 'options' is missing (the row has: question"),
    ({}, {"answer_column": "label"}, "key 'label' is missing (the row has: question, choices"),
    (
        {"choices": "yes"},
        {},
        "key 'choices' must be a list of texts, got the string 'yes'; set dataset.choices_column, "
        "or dataset.choice_columns for choices with keys of their own",
    ),
    (
        {"choices": ["yes"]},
        {},
        f"key 'choices' must have at least two choices, got 1; add some, {SKIP}",
    ),
    (
        {"choices": ["a", 2]},
        {},
        f"key 'choices', choice 2 must be a text, got the number 2; mend the row, {SKIP}",
    ),
    ({"choices": ["a", " "]}, {}, "key 'choices', choice 2 must be a text, got an empty one; "),
    (
        {"choices": ["a", "b", "a"]},
        {},
        "key 'choices', choice 3 is the same text as key 'choices', choice 1 (the string 'a'); "
        f"make them differ, {SKIP}",
    ),
    (
        {"c": "x", "d": "x"},
        {"choice_columns": ["c", "d"]},
        "key 'd' is the same text as key 'c' (the string 'x'); make",
    ),
    ({"c": "x"}, {"choice_columns": ["c", "d"]}, "key 'd' is missing (the row has: "),
    (
        {"answer": 2},
        {},
        "key 'answer' must be an index from 0 to 1, got 2; mend the row, or set "
        "dataset.answer_base",
    ),
    ({"answer": -1}, {}, "key 'answer' must be an index from 0 to 1, got -1; "),
    ({"answer": 0}, {"answer_base": 1}, "key 'answer' must be an index from 1 to 2, got 0; "),
    (
        {"answer": True},
        {},
        "key 'answer' must be the index of a choice, got true; mend the row, or set "
        "dataset.answer_type",
    ),
    ({"answer": "yes"}, {}, "key 'answer' must be the index of a choice, got the string 'yes'; "),
    ({"answer": None}, {}, "key 'answer' must be the index of a choice, got null; "),
    (
        {"answer": "C"},
        {"answer_type": "letter"},
        "key 'answer' must be a letter from A to B, got the string 'C'; mend the row, or set "
        "dataset.answer_type",
    ),
    ({"answer": "AB"}, {"answer_type": "letter"}, "key 'answer' must be a letter from A to B"),
    ({"answer": 0}, {"answer_type": "letter"}, "key 'answer' must be a letter from A to B"),
    (
        {"answer": "maybe"},
        {"answer_type": "text"},
        "key 'answer' must be the text of one of the 2 choices, got the string 'maybe'; mend the "
        "row, or set dataset.answer_type",
    ),
    (
        {"question": "Cause"},
        {"question_words": {"question": {"cause": "Why?", "effect": "What then?"}}},
        "key 'question' has the string 'Cause', for which there are no words (did you mean "
        "'cause'?); known: cause, effect; add it to dataset.question_words.question",
    ),
]


@pytest.mark.parametrize(("change", "settings", "message"), BAD, ids=range(len(BAD)))
def test_bad_rows(read, change, settings, message):
    found = read({**ROW, **change}, **settings)
    assert isinstance(found, BadRow)
    assert str(found).startswith(f"x:1: {message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"choices_column": "a", "choice_columns": ["b", "c"]},
            "set choices_column or choice_columns, not both",
        ),
        ({"choice_columns": ["a"]}, "at least 2 items"),
        ({"question_columns": []}, "at least 1 item"),
        (
            {"question_words": {"qestion": {"a": "b"}}},
            r"question_words.qestion is no question column \(did you mean 'question'\?\); "
            "question_columns has: question",
        ),
        (
            {"answer_base": 1, "answer_type": "text"},
            "answer_base = 1 is for answer_type = \"index\", got 'text'; remove one of them",
        ),
        ({"answer_base": 2}, "Input should be 0 or 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        choices(**settings)


def test_it_keeps_the_contract(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [ROW, {**ROW, "answer": 5}, {**ROW, "choices": ["b", "a", "c"]}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check_dataset_format(choices(), path, bad_rows=1)
