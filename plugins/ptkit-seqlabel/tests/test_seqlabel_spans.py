from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptkit_seqlabel.spans import SpanJsonFormat

from ptkit import BadRow, Origin, TaggedRecord, entities
from ptkit.testing import check_dataset_format

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
TEXT = "她在南京。"
CLUENER = {"text": TEXT, "label": {"address": {"南京": [[2, 3]]}, "name": {}}}


def spans(**settings: Any) -> SpanJsonFormat:
    return SpanJsonFormat(SpanJsonFormat.Settings(train="x", **settings))


@pytest.fixture
def read(tmp_path: Path):
    def read(row: dict[str, Any], *, unanswered: bool = False, **settings: Any) -> Any:
        path = tmp_path / "x.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        form = spans(**settings)
        (found,) = (form.read_unanswered if unanswered else form.read)(path, "x")
        return found

    return read


def listed(*found: Any, text: str = TEXT) -> dict[str, Any]:
    return {"text": text, "label": list(found)}


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (CLUENER, {}),
        (CLUENER, {"end": "inclusive"}),
        ({"text": TEXT, "label": {"address": {"南京": [[2, 4]]}}}, {"end": "exclusive"}),
        (listed({"start": 2, "end": 4, "type": "address"}), {}),
        (listed({"start": 2, "end": 4, "type": "address", "text": "南京"}), {}),
        (listed({"start": 2, "end": 3, "type": "address", "text": "南京"}), {"end": "inclusive"}),
        (listed([2, 4, "address"]), {}),
        (
            {"t": TEXT, "ents": [{"from": 2, "to": 4, "label": "address", "word": "南京"}]},
            {
                "text_column": "t",
                "entities_column": "ents",
                "start_key": "from",
                "end_key": "to",
                "type_key": "label",
                "surface_key": "word",
            },
        ),
    ],
)
def test_layouts(read, row, settings):
    assert read(row, **settings) == TaggedRecord(
        origin=Origin("x", 1),
        text=TEXT,
        words=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)),
        tags=("O", "O", "B-address", "I-address", "O"),
    )


def test_several_places_and_neighbours(read):
    row = {"text": "ababc", "label": {"x": {"ab": [[2, 3], [0, 1]]}, "y": {"c": [[4, 4]]}}}
    assert read(row).tags == ("B-x", "I-x", "B-x", "I-x", "B-y")
    assert read({"text": "ab", "label": {}}).tags == read(listed(text="ab")).tags == ("O", "O")


def test_white_space_is_no_word_but_may_be_inside_an_entity(read):
    found = read(listed([1, 5, "x"], text=" a\u3000bc d"))
    assert found.words == ((1, 2), (3, 4), (4, 5), (6, 7))
    assert found.tags == ("B-x", "I-x", "I-x", "O")
    assert entities(found, found.tags) == [{"type": "x", "start": 1, "end": 5, "text": "a\u3000bc"}]


def test_words(read):
    found = read(listed([0, 5, "x"], text="Alice's café在南京, 2 ね ６月"), words="words")
    assert [found.text[start:end] for start, end in found.words] == [
        *("Alice", "'", "s", "café", "在", "南", "京", ",", "2", "ね", "６", "月"),
    ]
    assert found.tags == ("B-x", *["O"] * 11)


def test_rows_to_be_answered(read):
    assert read({"text": "ab"}, unanswered=True).tags is None
    assert read({"text": "ab", "label": 3}, unanswered=True).words == ((0, 1), (1, 2))


def cluener(kind: Any) -> dict[str, Any]:
    return {"text": TEXT, "label": kind}


BAD = [
    ({"text": " ", "label": {}}, {}, "key 'text' is empty; give it a text, "),
    ({"text": "a"}, {}, "key 'label' is missing (the row has: text); set dataset.entities_column"),
    (
        cluener({"a": {"南京": [[3, 4]]}}),
        {},
        "the 'a' at 3–5 must cover '南京', got '京。'; mend the row, or set dataset.end",
    ),
    (
        listed({"start": 2, "end": 3, "type": "a", "text": "南京"}),
        {},
        "the 'a' at 2–3 must cover '南京', got '南'; mend the row, or set dataset.end",
    ),
    (
        cluener({"a": {"京。": [[4, 5]]}}),
        {},
        "the 'a' at 4–6 does not lie in the text, which has 5 characters; mend the row, or set "
        "dataset.end",
    ),
    (listed([-1, 2, "a"]), {}, "the 'a' at -1–2 does not lie in the text, which has 5"),
    (listed([2, 2, "a"]), {}, "the 'a' at 2–2 does not lie in the text, which has 5"),
    (
        listed([1, 3, "a"], [2, 4, "b"]),
        {},
        "the 'a' '在南' at 1–3 and the 'b' '南京' at 2–4 overlap, which tags can't say; leave one "
        f"out, {SKIP}",
    ),
    (
        listed([2, 4, "b"], [0, 5, "a"]),
        {},
        "the 'a' '她在南京。' at 0–5 and the 'b' '南京' at 2–4 o",
    ),
    (listed([2, 4, "a"], [2, 4, "a"]), {}, "the 'a' '南京' at 2–4 and the 'a' '南京' at 2–4 ov"),
    (
        listed([1, 3, "a"], text="a bc"),
        {},
        "the 'a' ' b' at 1–3 begins inside a word or at white space; mend the row, or set "
        'dataset.words = "characters"',
    ),
    (listed([0, 2, "a"], text="a bc"), {}, "the 'a' 'a ' at 0–2 ends inside a word or at white"),
    (listed([1, 2, "a"], text="a bc"), {}, "the 'a' ' ' at 1–2 begins inside a word or at white"),
    (listed([0, 3, "a"], text="a bc"), {"words": "words"}, "the 'a' 'a b' at 0–3 ends inside a "),
    (listed([3, 4, "a"], text="a bc"), {"words": "words"}, "the 'a' 'c' at 3–4 begins inside a "),
    (
        cluener("address"),
        {},
        "key 'label' must be an object of entities by type, or a list of them, got the string "
        "'address'; mend the row, or set dataset.entities_column",
    ),
    (
        cluener({"a": [[2, 3]]}),
        {},
        "key 'label', type 'a' must be an object of lists by surface, got a list; mend the row",
    ),
    (
        cluener({"a": {"南京": 2}}),
        {},
        "key 'label', type 'a', '南京' must be a list of [start, end], got the number 2; mend",
    ),
    (
        cluener({"a": {"南京": [2, 3]}}),
        {},
        "key 'label', type 'a', '南京' must be a list of [start, end], got an item the number 2; ",
    ),
    (
        cluener({"a": {"南京": [["2", 3]]}}),
        {},
        "key 'label', type 'a', '南京' must have whole numbers as start and end, got the string "
        "'2'; mend the row",
    ),
    (
        listed({"start": 2, "type": "a"}),
        {},
        "key 'label', entity 1 has no 'end', but: start, type; set dataset.end_key",
    ),
    (listed([0, 1, "a"], {}), {}, "key 'label', entity 2 has no 'start', but: no keys; set"),
    (
        listed([2, 4]),
        {},
        "key 'label', entity 1 must be an object or [start, end, type], got a list; mend the row",
    ),
    (
        listed([2, 4, ""]),
        {},
        "key 'label', entity 1 must have a type, got the string ''; mend the row, or set "
        "dataset.type_key",
    ),
    (
        listed({"start": 2, "end": 4, "type": "a", "text": 7}),
        {},
        "key 'label', entity 1, 'text' must be a text, got the number 7; mend the row, or set "
        "dataset.surface_key",
    ),
    (listed([True, 4, "a"]), {}, "key 'label', entity 1 must have whole numbers as start and end"),
]


@pytest.mark.parametrize(("row", "settings", "message"), BAD, ids=range(len(BAD)))
def test_bad_rows(read, row, settings, message):
    found = read(row, **settings)
    assert isinstance(found, BadRow)
    assert str(found).startswith(f"x:1: {message}")


@st.composite
def tagged_texts(draw: st.DrawFn) -> tuple[str, list[list[Any]]]:
    """A text and entities that begin and end at characters that are no white space."""
    text, found = "", []
    for piece, is_entity in draw(
        st.lists(st.tuples(st.text("ab é裙\u3000𝒳\t", min_size=1), st.booleans()), min_size=1)
    ):
        bare = piece.strip()
        if is_entity and bare:
            found.append([len(text), len(text) + len(bare), "x"])
            piece = bare
        text += piece
    return text + "。", found


@settings(deadline=None)
@given(tagged_texts())
def test_entities_come_back_exactly(case):
    text, found = case
    record = spans().make(Origin("x", 1), {"text": text, "label": found}, answered=True)
    assert [[e["start"], e["end"], e["type"]] for e in entities(record, record.tags)] == found


def test_it_keeps_the_contract(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [CLUENER, {"text": TEXT}, listed([0, 1, "x"])]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check_dataset_format(spans(), path, bad_rows=1)
