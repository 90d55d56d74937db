from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ptkit_qa.instruction import InstructionFormat

from ptkit import BadRow, GenerationRecord, Origin
from ptkit.testing import check_dataset_format

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
ROW = {"instruction": "translate", "input": "裙 ", "output": "skirt"}


def instruction(**settings: Any) -> InstructionFormat:
    return InstructionFormat(InstructionFormat.Settings(train="x.json", **settings))


@pytest.fixture
def read(tmp_path: Path):
    def read(row: Any, *, unanswered: bool = False, **settings: Any) -> Any:
        path = tmp_path / "x.json"
        path.write_text(json.dumps([row], ensure_ascii=False), "utf-8")
        form = instruction(**settings)
        (found,) = (form.read_unanswered if unanswered else form.read)(path, "x.json")
        return found

    return read


def record(prompt: str, response: str | None) -> GenerationRecord:
    return GenerationRecord(origin=Origin("x.json", 1), prompt=prompt, response=response)


def test_an_input_goes_behind_the_instruction(read):
    assert read(ROW) == record("translate\n裙 ", "skirt")


@pytest.mark.parametrize("given", [{}, {"input": None}, {"input": ""}, {"input": " \n"}])
def test_no_input(read, given):
    assert read({"instruction": "say hi", "output": "hi", **given}) == record("say hi", "hi")


def test_other_columns(read):
    columns = {"instruction_column": "i", "input_column": "x", "output_column": "o"}
    assert read({"i": "a", "x": "b", "o": "c", "input": 3}, **columns) == record("a\nb", "c")


def test_rows_to_be_answered(read):
    assert read(ROW, unanswered=True) == record("translate\n裙 ", None)
    assert read({"instruction": "a"}, unanswered=True) == record("a", None)


BAD = [
    ({"output": "c"}, "key 'instruction' is missing (the row has: output); "),
    ({"instruction": "a"}, "key 'output' is missing (the row has: instruction); "),
    ({"instruction": " ", "output": "c"}, f"key 'instruction' is empty; give it a text, {SKIP}"),
    ({"instruction": "a", "output": ""}, f"key 'output' is empty; give it a text, {SKIP}"),
    (
        {"instruction": 3, "output": "c"},
        "key 'instruction' must be a string, got the number 3; mend the row, or set "
        "dataset.instruction_column to a column of texts",
    ),
    (
        {"instruction": "a", "input": {"b": 1}, "output": "c"},
        "key 'input' must be a string, got an object; mend the row, or set dataset.input_column "
        "to a column of texts",
    ),
    (
        {"instruction": "a", "output": ["c" * 40]},
        "key 'output' must be a string, got a list; mend the row, or set dataset.output_column "
        "to a column of texts",
    ),
    (
        {"instruction": "a", "input": True, "output": "c"},
        "key 'input' must be a string, got true; mend",
    ),
]


@pytest.mark.parametrize(("row", "expected"), BAD, ids=range(len(BAD)))
def test_bad_rows(read, row, expected):
    bad = read(row)
    assert isinstance(bad, BadRow)
    assert str(bad).startswith(f"x.json:1: {expected}")
    if "is missing" in expected:
        column = "instruction" if "instruction'" in expected else "output"
        assert bad.message.endswith(f"set dataset.{column}_column")


def test_a_row_with_many_keys(read):
    bad = read({"": 0, **{f"k{number}": 1 for number in range(13)}})
    assert "(the row has: '', k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10 and 2 more)" in str(bad)


def test_long_values_are_cut_in_messages(read):
    bad = read({"instruction": "a", "output": "c", "input": 10**30})
    assert "got the number 10000000000000000000…; " in str(bad)


def test_it_keeps_the_contract(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [ROW, {"instruction": "a"}, {"instruction": "b", "output": "c"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check_dataset_format(instruction(), path, bad_rows=1)
