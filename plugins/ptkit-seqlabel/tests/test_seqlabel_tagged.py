from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ptkit_seqlabel.tagged import TaggedJsonFormat
from pydantic import ValidationError

from ptkit import BadRow, Origin, TaggedRecord
from ptkit.testing import check_dataset_format

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
ROW = {"tokens": ["New", "York", "waits"], "tags": ["B-LOC", "I-LOC", "O"]}


def tagged(**settings: Any) -> TaggedJsonFormat:
    return TaggedJsonFormat(TaggedJsonFormat.Settings(train="x", **settings))


@pytest.fixture
def read(tmp_path: Path):
    def read(row: dict[str, Any], *, unanswered: bool = False, **settings: Any) -> Any:
        path = tmp_path / "x.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        form = tagged(**settings)
        (found,) = (form.read_unanswered if unanswered else form.read)(path, "x")
        return found

    return read


def record(text: str, words: Any, tags: Any) -> TaggedRecord:
    return TaggedRecord(origin=Origin("x", 1), text=text, words=tuple(words), tags=tags)


def test_words_are_joined_with_a_blank(read):
    words = [(0, 3), (4, 8), (9, 14)]
    assert read(ROW) == record("New York waits", words, ("B-LOC", "I-LOC", "O"))


def test_other_columns_scheme_and_joiner(read):
    row = {"chars": ["南", "京"], "ner": ["B-LOC", "E-LOC"]}
    settings = {"tokens_column": "chars", "tags_column": "ner", "scheme": "bmes", "joiner": ""}
    assert read(row, **settings) == record("南京", [(0, 1), (1, 2)], ("B-LOC", "I-LOC"))


def test_stray_tags_begin_an_entity_unless_strict(read):
    row = {"tokens": ["a", "b"], "tags": ["O", "I-A"]}
    assert read(row).tags == ("O", "B-A")
    assert str(read(row, strict=True)).startswith("x:1: key 'tags', tag 2: I-A continues no entity")


def test_rows_to_be_answered(read):
    expected = record("a", [(0, 1)], None)
    assert read({"tokens": ["a"]}, unanswered=True) == expected
    assert read({"tokens": ["a"], "tags": 3}, unanswered=True) == expected


BAD = [
    (
        {"tags": ["O"]},
        {},
        "key 'tags' must have one tag a word, got 1 for 3 words; mend the row, " + SKIP,
    ),
    ({"tokens": []}, {}, f"key 'tokens' has no words; add some, {SKIP}"),
    (
        {"tokens": "New York"},
        {},
        "key 'tokens' must be a list of texts, got the string 'New York'; mend the row, or set "
        "dataset.tokens_column",
    ),
    (
        {"tags": [3, 4, 0]},
        {},
        "key 'tags', item 1 must be a text, got the number 3; mend the row, or set "
        "dataset.tags_column",
    ),
    ({"tokens": ["a", "", "b"]}, {}, "key 'tokens', item 2 must be a text, got an empty one; "),
    ({}, {"tags_column": "ner"}, "key 'ner' is missing (the row has: tokens, tags); set dataset."),
    ({}, {"tokens_column": "words"}, "key 'words' is missing (the row has: tokens, tags); set"),
    ({}, {"scheme": "bmes"}, "key 'tags', tag 2: 'I-LOC' is no tag of the scheme 'bmes', which "),
]


@pytest.mark.parametrize(("change", "settings", "message"), BAD, ids=range(len(BAD)))
def test_bad_rows(read, change, settings, message):
    found = read({**ROW, **change}, **settings)
    assert isinstance(found, BadRow)
    assert str(found).startswith(f"x:1: {message}")


def test_bad_settings():
    with pytest.raises(ValidationError, match='strict = true is for scheme = "bio", got'):
        tagged(scheme="iob1", strict=True)


def test_it_keeps_the_contract(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [ROW, {**ROW, "tags": ["O"]}, {**ROW, "tags": ["O", "O", "O"]}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check_dataset_format(tagged(), path, bad_rows=1)
