from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from ptkit_adgen.format import AdgenFormat

from ptkit import BadRow, DataError, GenerationRecord, Origin


def adgen(**settings: Any) -> AdgenFormat:
    return AdgenFormat(AdgenFormat.Settings(train="x.json", **settings))


@pytest.fixture
def read(tmp_path: Path):
    def read(content: str | bytes, file: str = "x.json", **settings: Any) -> list[Any]:
        path = tmp_path / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return list(adgen(**settings).read(path, file))

    return read


def record(line: int, prompt: str, response: str | None, *history: tuple[str, str]):
    origin = Origin("x.json", line)
    return GenerationRecord(origin=origin, prompt=prompt, response=response, history=history)


def message(rows: list[Any]) -> str:
    (bad,) = rows
    assert isinstance(bad, BadRow)
    return str(bad)


LINES = """\
{"content": "类型#裤", "summary": "裤子 "}
{"content": "类型#裙", "summary": "裙子", "more": 1}
"""
RECORDS = [record(1, "类型#裤", "裤子 "), record(2, "类型#裙", "裙子")]


def test_lines(read):
    assert read(LINES) == RECORDS


def test_a_byte_order_mark(read):
    assert read(LINES.encode("utf-8-sig")) == RECORDS


def test_gzip(read):
    rows = read(gzip.compress(LINES.encode()), "x.jsonl.gz")
    assert [(row.prompt, row.response) for row in rows] == [
        ("类型#裤", "裤子 "),
        ("类型#裙", "裙子"),
    ]


def test_an_array(read):
    assert read("[" + ",\n".join(LINES.splitlines()) + "]") == RECORDS


def test_questions_and_answers(read):
    row = '{"question": "几点开门？", "answer": "九点。"}'
    columns = {"prompt_column": "question", "response_column": "answer"}
    assert read(row, **columns) == [record(1, "几点开门？", "九点。")]


def test_history(read):
    row = '{"content": "c", "summary": "s", "history": [["a", "b"], ["", "d"]]}'
    assert read(row, history_column="history") == [record(1, "c", "s", ("a", "b"), ("", "d"))]


def test_no_history_yet(read):
    row = '{"content": "c", "summary": "s", "history": []}'
    assert read(row, history_column="history") == [record(1, "c", "s")]


def test_history_is_not_looked_at_unless_asked_for(read):
    assert read('{"content": "c", "summary": "s", "history": 3}') == [record(1, "c", "s")]


def test_rows_to_be_predicted_need_no_response():
    origin = Origin("x.json", 1)
    assert adgen().make(origin, {"content": "c"}, answered=False) == record(1, "c", None)
    row = {"content": "c", "summary": None}
    assert adgen().make(origin, row, answered=False) == record(1, "c", None)


EMPTY = 'give it a text, or drop such rows with dataset.on_bad_row = "skip"'
MISSING = "is missing (the row has:"
KIND = "must be a string, got"
MEND = "mend the row, or set dataset.{} to a column of texts"
MEND_PROMPT, MEND_RESPONSE = MEND.format("prompt_column"), MEND.format("response_column")
BAD = {
    '{"content": "c", "title": "t"}': (
        f"key 'summary' {MISSING} content, title); set dataset.response_column"
    ),
    '{"prompt": "c", "summary": "s"}': (
        f"key 'content' {MISSING} prompt, summary); set dataset.prompt_column"
    ),
    "{}": f"key 'content' {MISSING} no keys); set dataset.prompt_column",
    r'{"a\nb": 1, "": 2}': rf"key 'content' {MISSING} 'a\nb', ''); set dataset.prompt_column",
    '{"content": "", "summary": "s"}': f"key 'content' is empty; {EMPTY}",
    '{"content": "c", "summary": " \\n\u3000"}': f"key 'summary' is empty; {EMPTY}",
    '{"content": null, "summary": "s"}': f"key 'content' {KIND} null; {MEND_PROMPT}",
    '{"content": {"a": 1}, "summary": "s"}': f"key 'content' {KIND} an object; {MEND_PROMPT}",
    '{"content": true, "summary": "s"}': f"key 'content' {KIND} true; {MEND_PROMPT}",
    '{"content": false, "summary": "s"}': f"key 'content' {KIND} false; {MEND_PROMPT}",
    '{"content": "c", "summary": 17}': f"key 'summary' {KIND} the number 17; {MEND_RESPONSE}",
    '{"content": "c", "summary": ["s"]}': f"key 'summary' {KIND} a list; {MEND_RESPONSE}",
}


@pytest.mark.parametrize(("row", "expected"), BAD.items())
def test_bad_rows(read, row, expected):
    assert message(read(row)) == f"x.json:1: {expected}"


def test_a_row_with_many_keys(read):
    row = json.dumps({f"k{number}": 1 for number in range(14)})
    assert message(read(row)) == (
        "x.json:1: key 'content' is missing (the row has: k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, "
        "k10, k11 and 2 more); set dataset.prompt_column"
    )


PAIRS = "key 'h' must be a list of [prompt, response] pairs, got"
PAIR = "must be a list [prompt, response], got"
NONE = "write [] for none, or set dataset.history_column"
HISTORY = {
    "null": f"{PAIRS} null; {NONE}",
    '"a long string, longer than shown"': f"{PAIRS} the string 'a long string, long…; {NONE}",
    '[["a", "b"], ["c"]]': f"key 'h', turn 2 {PAIR} a list of 1; mend the row",
    '["ab"]': f"key 'h', turn 1 {PAIR} the string 'ab'; mend the row",
    '[{"a": "b"}]': f"key 'h', turn 1 {PAIR} an object; mend the row",
    '[["a", 1]]': f"key 'h', turn 1: the response {KIND} the number 1; mend the row",
    '[["a", "b"], [null, "d"]]': f"key 'h', turn 2: the prompt {KIND} null; mend the row",
}


@pytest.mark.parametrize(("history", "expected"), HISTORY.items())
def test_malformed_history(read, history, expected):
    row = f'{{"content": "c", "summary": "s", "h": {history}}}'
    assert message(read(row, history_column="h")) == f"x.json:1: {expected}"


def test_missing_history(read):
    assert message(read('{"content": "c", "summary": "s"}', history_column="h")) == (
        "x.json:1: key 'h' is missing (the row has: content, summary); set dataset.history_column"
    )


def test_reading_goes_on_behind_bad_rows(read):
    rows = read('{"content": "c"}\nnonsense\n{"content": "c", "summary": "s"}')
    assert [str(row) for row in rows[:2]] == [
        "x.json:1: key 'summary' is missing (the row has: content); set dataset.response_column",
        "x.json:2: not JSON: expected a value at column 1, got 'n'",
    ]
    assert rows[2] == record(3, "c", "s")


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"^x\.json: no such file"):
        list(adgen().read(tmp_path / "x.json", "x.json"))


def test_memory_stays_constant(tmp_path):
    path = tmp_path / "x.json"
    with path.open("w", encoding="utf-8") as file:
        for number in range(50_000):
            file.write(f'{{"content": "类型#裙*编号#{number}", "summary": "{"一条裙子" * 10}"}}\n')
    tracemalloc.start()
    count = sum(isinstance(row, GenerationRecord) for row in adgen().read(path, "x.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 50_000
    assert peak < 1_000_000  # bytes, of a file of 9,000,000
