from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from ptkit_qa.squad import SquadFormat
from pydantic import ValidationError

from ptkit import Answer, BadRow, DataError, ExtractionRecord, Origin
from ptkit.testing import check_dataset_format

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
SET = 'set dataset.misaligned to "find" or "keep-text"'
CONTEXT = "It rained in Delft, in Delft."
DELFT = {"text": "Delft", "answer_start": 13}


def squad(**settings: Any) -> SquadFormat:
    return SquadFormat(SquadFormat.Settings(train="x", **settings))


def question(**change: Any) -> dict[str, Any]:
    return {"id": "q", "question": "Where?", "answers": [DELFT], **change}


def document(*questions: Any, context: Any = CONTEXT) -> dict[str, Any]:
    return {"data": [{"title": "T", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


@pytest.fixture
def read(tmp_path: Path):
    def read(content: Any, *, unanswered: bool = False, **settings: Any) -> list[Any]:
        path = tmp_path / "x.json"
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        path.write_bytes(content)
        form = squad(**settings)
        return list((form.read_unanswered if unanswered else form.read)(path, "x"))

    return read


def record(line: int, key: str, answers: Any, question: str = "Where?") -> ExtractionRecord:
    return ExtractionRecord(
        origin=Origin("x", line), key=key, question=question, context=CONTEXT, answers=answers
    )


def failure(read: Any, content: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(content)
    (line,) = caught.value.lines
    return line


def test_squad_1(read):
    answers = [DELFT, DELFT, {"text": "in Delft", "answer_start": 10}]
    rows = read(document(question(answers=answers), question(id=7)))
    again = Answer("Delft", 13)
    assert rows == [
        record(1, "q", (again, again, Answer("in Delft", 10))),
        record(1, "7", (again,)),
    ]


def test_squad_2(read):
    plausible = {"is_impossible": True, "answers": [], "plausible_answers": [DELFT]}
    rows = read(document(question(**plausible), question(id="r", is_impossible=False)))
    assert rows == [record(1, "q", ()), record(1, "r", (Answer("Delft", 13),))]
    bare = {"id": "q", "question": "Where?", "is_impossible": True}
    assert read(document(bare)) == [record(1, "q", ())]


def test_a_record_stands_where_its_question_begins(read):
    content = f"""{{
  "version": "v1.0",
  "data": [
    {{"paragraphs": [
      {{"id": "p", "context": {json.dumps(CONTEXT)},
       "qas": [
        {{"id": "a",
         "question": "When?", "answers": [{json.dumps(DELFT)}]}},
        {{"id": "b", "question": "",
         "answers": []}}]}},
      {{"qas": [
        {{"id": "c", "question": "Where?", "answers": [{json.dumps(DELFT)}]}}],
       "context": {json.dumps(CONTEXT)}}}]}}]}}"""
    first, second, third = read(content.encode())
    assert first == record(7, "a", (Answer("Delft", 13),), "When?")
    assert str(second) == f"x:9: question 'b': key 'question' is empty; give it a text, {SKIP}"
    assert third == record(12, "c", (Answer("Delft", 13),))


def test_the_first_layout_of_cmrc(read):
    qas = [{"query_id": "Q1", "query_text": "Where?", "answers": ["Delft", "in Delft"]}]
    content = [{"context_id": "T", "context_text": CONTEXT, "qas": qas}]
    (bad,) = read(content)
    assert str(bad) == f"x:1: question 'Q1': answer 1, 'Delft', has no answer_start; {SET}"
    found = (Answer("Delft", 13), Answer("in Delft", 10))
    assert read(content, misaligned="find") == [record(1, "Q1", found)]
    kept = (Answer("Delft", -1), Answer("in Delft", -1))
    assert read(content, misaligned="keep-text") == [record(1, "Q1", kept)]


def test_gzip_and_a_byte_order_mark(read, tmp_path):
    content = b"\xef\xbb\xbf" + json.dumps(document(question())).encode()
    assert read(content) == [record(1, "q", (Answer("Delft", 13),))]
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(content))
    assert len(list(squad().read(path, "x"))) == 1


def test_an_empty_file(read):
    assert read(b"") == read(b" \n") == read({"data": []}) == []


def test_rows_to_be_answered(read):
    rows = [{"id": "q", "question": "Where?"}, question(id="r"), question(id="s", answers=3)]
    assert read(document(*rows), unanswered=True) == [record(1, key, None) for key in "qrs"]


# ---------------------------------------------------------------------------- misaligned answers


@pytest.mark.parametrize(
    ("start", "place"),  # "Delft" stands at 13 and 23
    [(0, 13), (12, 13), (14, 13), (18, 13), (19, 23), (22, 23), (24, 23), (900, 23), (-1, 13)],
)
def test_the_nearest_place_is_found(read, start, place):
    answers = [{"text": "Delft", "answer_start": start}]
    (found,) = read(document(question(answers=answers)), misaligned="find")
    assert found.answers == (Answer("Delft", place),)


def test_texts_are_kept(read):
    answers = [{"text": "Gouda", "answer_start": 13}, DELFT]
    (found,) = read(document(question(answers=answers)), misaligned="keep-text")
    assert found.answers == (Answer("Gouda", -1), Answer("Delft", 13))


def test_a_text_that_stands_nowhere(read):
    answers = [{"text": "Gouda", "answer_start": 13}]
    (found,) = read(document(question(answers=answers)), misaligned="find")
    assert str(found) == (
        "x:1: question 'q': answer 1, 'Gouda', stands nowhere in the context; mend it, or set "
        'dataset.misaligned to "keep-text"'
    )


@pytest.mark.parametrize(
    ("start", "text", "message"),
    [
        (14, "Delft", "'Delft', does not stand at 14, where the context has 'elft,'"),
        (-1, "It", "'It', does not stand at -1, which is outside the context of 29 characters"),
        (29, "It", "'It', does not stand at 29, which is outside the context of 29 characters"),
        (27, "t.x", "'t.x', does not stand at 27, where the context has 't.'"),
        (0, "x" * 50, f"'{'x' * 40}…', does not stand at 0, where the context has '{CONTEXT}'"),
    ],
)
def test_misaligned_answers_are_errors(read, start, text, message):
    answers = [DELFT, {"text": text, "answer_start": start}]
    (found,) = read(document(question(answers=answers)))
    assert str(found) == f"x:1: question 'q': answer 2, {message}; mend it, or {SET}"


# -------------------------------------------------------------------------------------- bad rows

BAD = [
    (
        {"question": 3},
        "question 'q': key 'question' must be a string, got the number 3; mend it",
    ),
    ({"question": "a\ud800"}, "question 'q': key 'question' holds \\ud800, half of a surrogate "),
    ({"id": "a\udc00"}, "key 'id' holds \\udc00, half of a surrogate pair and no character; write"),
    (
        {"answers": [{"text": "a\ud800", "answer_start": 0}]},
        "question 'q': answer 1 holds \\ud800, half of a surrogate pair and no character; write",
    ),
    ({"id": ""}, "a question must have a text as 'id', got an empty one; mend it"),
    ({"id": None}, "a question must have a text as 'id', got null; mend it"),
    ({"answers": "Delft"}, "question 'q': key 'answers' must be a list, got the string 'Delft'; "),
    (
        {"answers": []},
        "question 'q': has no answers; add one, or set its is_impossible to true if the context "
        "has none",
    ),
    ({"answers": [], "is_impossible": False}, "question 'q': has no answers; add one, or set"),
    (
        {"is_impossible": True},
        "question 'q': is_impossible is true, but there are answers; remove them, or the mark",
    ),
    (
        {"is_impossible": "no"},
        "question 'q': key 'is_impossible' must be true or false, got the string 'no'; mend it",
    ),
    (
        {"answers": [DELFT, {"answer_start": 3}]},
        f"question 'q': answer 2 must have a text, got null; mend it, {SKIP}",
    ),
    (
        {"answers": [{"text": " ", "answer_start": 2}]},
        f"question 'q': answer 1 must have a text, got an empty one; mend it, {SKIP}",
    ),
    (
        {"answers": [{"text": "Delft", "answer_start": "13"}]},
        "question 'q': answer 1 must have a whole number as answer_start, got the string '13'; "
        "mend it",
    ),
    ({"answers": [{"text": "Delft"}]}, "question 'q': answer 1, 'Delft', has no answer_start; "),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=range(len(BAD)))
def test_bad_questions(read, change, message):
    good, found = read(document(question(id="good"), question(**change)))
    assert good.key == "good"
    assert isinstance(found, BadRow)
    assert str(found).startswith(f"x:1: {message}")


def test_missing_keys(read):
    rows = read(document({"a": 1}, {"id": "q"}, {"id": "r", "question": "?"}, 3))
    assert list(map(str, rows)) == [
        f"x:1: a question has no 'id' (it has: a); give it one, {SKIP}",
        f"x:1: question 'q': key 'question' is missing (there are: id); add it, {SKIP}",
        f"x:1: question 'r': key 'answers' must be a list, got no such key; mend it, {SKIP}",
        "x:1: a question must be an object, got the number 3; mend it",
    ]


def test_one_id_for_two_questions(read):
    rows = read(document(question(), question(question="When?")))
    assert str(rows[1]) == (
        f"x:1: question 'q': the id is that of another question (x:1); give it one of its own, "
        f"{SKIP}"
    )


@pytest.mark.parametrize(
    ("paragraph", "message"),
    [
        ({"context": " ", "qas": []}, f"key 'context' is empty; give it a text, {SKIP}"),
        ({"qas": []}, f"key 'context' is missing (there are: qas); add it, {SKIP}"),
        ({"context": "c"}, "must have a list 'qas' of questions, got the keys context; mend it"),
        ({"qas": {}}, "must have a list 'qas' of questions, got an object; mend it"),
        (7, "must be an object, got the number 7; mend it"),
    ],
)
def test_bad_paragraphs(read, paragraph, message):
    content = document(question())
    content["data"][0]["paragraphs"].insert(0, paragraph)
    bad, good = read(content)
    assert str(bad) == f"x:1: paragraph: {message}"
    assert good.key == "q"


def test_bad_articles(read):
    rows = read({"data": [{"paragraph": []}, 3, *document(question())["data"]]})
    must = "x:1: an article must be an object with a list 'paragraphs', got "
    assert [str(row) for row in rows[:2]] == [
        f"{must}paragraph; mend it",
        f"{must}the number 3; mend it",
    ]
    assert rows[2].key == "q"


# ------------------------------------------------------------------------------------- bad files


def test_documents_of_another_kind(read):
    must = "x:1: a squad file is an object with a list 'data', got "
    assert failure(read, {"rows": []}) == f"{must}the keys rows; check dataset.kind"
    assert failure(read, 3) == f"{must}the number 3; check dataset.kind"


def test_broken_files(read):
    assert failure(read, b'{"data": [\n {"paragraphs": [}]}') == (
        "x:2: not JSON: expecting value at column 18; a squad file is one JSON document"
    )
    assert failure(read, b'{"id": "a"}\n{"id": "b"}\n').startswith(
        "x:2: not JSON: extra data at column 1; a squad file is one JSON document"
    )
    deep = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert failure(read, deep).startswith("x: can't be read as JSON (maximum recursion depth")
    assert failure(read, b'{"a": ' + b"1" * 5000 + b"}").startswith("x: can't be read as JSON (Ex")
    assert failure(read, b'{\n"a": "\xe9"}') == (
        "x:2: not UTF-8: byte 0xe9 at column 7 of the line; re-save the file"
    )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="x: no such file"):
        list(squad().read(tmp_path / "no", "x"))


def test_bad_settings():
    with pytest.raises(ValidationError, match="Input should be 'error', 'find' or 'keep-text'"):
        squad(misaligned="skip")


@pytest.mark.parametrize("indent", [None, 1])
def test_it_keeps_the_contract(tmp_path, indent):
    path = tmp_path / "x.json"
    bad = question(id="b", answers=[{"text": "Gouda", "answer_start": 1}])
    content = json.dumps(document(question(), bad, question(id="c")), indent=indent)
    path.write_text(content, encoding="utf-8")
    check_dataset_format(squad(), path, bad_rows=1)
    assert len({row.origin.line for row in squad().read(path, "x")}) == (3 if indent else 1)
