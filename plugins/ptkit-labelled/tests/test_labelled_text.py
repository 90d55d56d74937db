from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from ptkit_labelled.text import LabelledTextFormat
from pydantic import ValidationError

from ptkit import BadRow, DataError, LabelledRecord, Origin
from ptkit.testing import check_dataset_format

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
PAIR = {"text_column": "a", "second_column": "b"}


def labelled(**settings: Any) -> LabelledTextFormat:
    return LabelledTextFormat(LabelledTextFormat.Settings(train="x", **settings))


@pytest.fixture
def read(tmp_path: Path):
    def read(
        content: str | bytes, file: str = "x.csv", *, unanswered: bool = False, **settings: Any
    ) -> list[Any]:
        path = tmp_path / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        form = labelled(**settings)
        return list((form.read_unanswered if unanswered else form.read)(path, "x"))

    return read


def record(line: int, text: str, label: Any = None, second: str | None = None) -> LabelledRecord:
    return LabelledRecord(origin=Origin("x", line), text=text, second=second, label=label)


def bad(line: int, message: str) -> BadRow:
    return BadRow(Origin("x", line), message)


def failure(read: Any, *args: Any, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(*args, **settings)
    (line,) = caught.value.lines
    return line


# ------------------------------------------------------------------------------------------ files


def test_csv_with_quotes_and_line_breaks_inside(read):
    content = 'id,text,label\r\n1,"It rains, ""again"".\nYes.",wet\r\n\r\n2, dry ," no"\r\n'
    assert read(content) == [
        record(2, 'It rains, "again".\nYes.', "wet"),
        record(5, " dry ", "no"),
    ]


def test_tsv_has_no_quotes_unless_told(read):
    content = 'a\tb\tlabel\n"x" y\tz, "\t0\n'
    assert read(content, "x.tsv", **PAIR) == [record(2, '"x" y', "0", 'z, "')]
    content = 'a\tb\tlabel\n"x\ty"\tz\t0\n'
    assert read(content, "x.tsv", quoting=True, **PAIR) == [record(2, "x\ty", "0", "z")]


def test_csv_without_quotes_and_with_another_separator(read):
    assert read('text;label\n"a;1\n', quoting=False, separator=";") == [record(2, '"a', "1")]
    assert read("text||label\na||1\n", quoting=False, separator="||") == [record(2, "a", "1")]


def test_files_without_a_header(read):
    content = "裙子\tskirt\n\n \t\n裤子\ttrousers"
    rows = read(content, "x.tsv", columns=["text", "label"])
    assert rows == [record(1, "裙子", "skirt"), record(4, "裤子", "trousers")]


def test_lines_of_a_label_and_a_text(read):
    content = "HUM:ind \t Who was\u3000he ?\r\n1 ok  then \n"
    rows = [record(1, "Who was\u3000he ?", "HUM:ind"), record(2, "ok  then", "1")]
    assert read(content, "TREC.train", file_type="lines") == rows


def test_lines_in_another_order_with_another_separator(read):
    columns = {"columns": ["label", "id", "text"], "separator": "__"}
    rows = read("pos__7__a__b\n", "x.txt", file_type="lines", **columns)
    assert rows == [record(1, "a__b", "pos")]


def test_other_encodings(read):
    assert read(b"LOC Caf\xe9", "x.txt", file_type="lines", encoding="latin-1") == [
        record(1, "Café", "LOC")
    ]
    content = "text,label\n裙子,衣".encode("gb18030")
    assert read(content, encoding="gb18030") == [record(2, "裙子", "衣")]


def test_json_and_gzip(read):
    content = '{"text": "a", "label": "x"}\n\n{"text": "b", "label": "y"}\n'
    rows = [record(1, "a", "x"), record(3, "b", "y")]
    assert read(content, "x.jsonl") == rows
    assert read(gzip.compress(content.encode()), "x.JSON.gz") == rows
    assert read(gzip.compress(b"text,label\na,x\n"), "x.csv.gz") == [record(2, "a", "x")]
    assert read(content, "x.data", file_type="json") == rows


def test_two_texts_in_json(read):
    content = '[{"a": "it rains", "b": "it is wet", "label": "yes"}]'
    assert read(content, "x.json", **PAIR) == [record(1, "it rains", "yes", "it is wet")]


def test_a_file_without_rows(read):
    assert read("") == read("text,label\n") == read("", "x.jsonl") == []


# ----------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("given", "name"), [("a ", "a"), (0, "0"), (-3, "-3"), (True, "true"), (False, "false")]
)
def test_names_in_json(read, given, name):
    assert read(json.dumps({"text": "t", "label": given}), "x.json") == [record(1, "t", name)]


@pytest.mark.parametrize(
    ("given", "names"),
    [("a, b ", ("a", "b")), ("", ()), (" ", ()), ("a", ("a",))],
)
def test_several_names_in_a_table(read, given, names):
    content = f"t\t{given}\t.\n"
    columns = {"columns": ["text", "label", "more"]}
    assert read(content, "x.tsv", label_type="names", **columns) == [record(1, "t", names)]


def test_names_with_another_separator(read):
    content = "text,label\nt,a|b c\n"
    rows = read(content, label_type="names", label_separator="|")
    assert rows == [record(2, "t", ("a", "b c"))]


def test_several_names_in_json(read):
    content = '[{"text": "t", "label": ["b", 1, "a"]}, {"text": "t", "label": []}]'
    assert read(content, "x.json", label_type="names") == [
        record(1, "t", ("b", "1", "a")),
        record(1, "t", ()),
    ]


@pytest.mark.parametrize(("given", "number"), [("3", 3.0), (" -0.5", -0.5), ("1e2", 100.0)])
def test_numbers(read, given, number):
    (found,) = read(f"text,label\nt,{given}\n", label_type="number")
    assert found == record(2, "t", number)
    assert type(found.label) is float
    (found,) = read(f'{{"text": "t", "label": {given}}}', "x.json", label_type="number")
    assert found == record(1, "t", number)
    assert type(found.label) is float


# ------------------------------------------------------------------------------- to be answered


@pytest.mark.parametrize(
    ("content", "file", "settings"),
    [
        ("text\na\n", "x.csv", {}),
        ("text,label\na,\n", "x.csv", {}),
        ("text,label\na,x\n", "x.csv", {"label_type": "number"}),
        ("\na\n", "x.tsv", {"columns": ["text"]}),
        ("\nx a\n", "x.txt", {"file_type": "lines", "columns": ["label", "text"]}),
        ("\na", "x.txt", {"file_type": "lines"}),
        ('\n{"text": "a"}', "x.jsonl", {}),
        ('\n{"text": "a", "label": null}', "x.jsonl", {}),
    ],
)
def test_rows_to_be_answered(read, content, file, settings):
    assert read(content, file, unanswered=True, **settings) == [record(2, "a")]


def test_lines_to_be_answered_are_whole_texts(read):
    assert read("Who was he ?\n", "x.txt", unanswered=True, file_type="lines") == [
        record(1, "Who was he ?")
    ]


# ------------------------------------------------------------------------------------- bad rows


LABELS = "mend the row, or set dataset.label_type or dataset.label_column"
BAD_TABLE = [
    ("text,label\n ,x\n", {}, f"column 'text' is empty; give it a text, {SKIP}"),
    ("text,label\na, \n", {}, f"column 'label' has an empty label; name it, {SKIP}"),
    (
        "text,label\na,b,c\n",
        {},
        "must have 2 columns (text, label), got 3; mend the row, or set what separates columns "
        "(now ',') in dataset.separator",
    ),
    ("text,label\na\n", {}, "must have 2 columns (text, label), got 1; mend"),
    (
        "text,label\na,x y\n",
        {"label_type": "number"},
        f"column 'label' must be a number, got the string 'x y'; {LABELS}",
    ),
    ("text,label\na,1_0\n", {"label_type": "number"}, "column 'label' must be a number, got"),
    ("text,label\na,nan\n", {"label_type": "number"}, "column 'label' must be a finite number"),
    (
        "text,label\na,x;y;x\n",
        {"label_type": "names", "label_separator": ";"},
        f"column 'label' has the label 'x' twice; name it once, {SKIP}",
    ),
    ("text,label\na,x;\n", {"label_type": "names", "label_separator": ";"}, "column 'label' has"),
    (
        'text,label\n"a" b,x\n',
        {},
        "not CSV: ',' expected after '\"' (on this line); double the quotes inside a text, or set "
        "dataset.quoting = false",
    ),
    ("text,label\na\rb,x\n", {}, "not CSV: a carriage return stands outside quotes (on this line)"),
    ("text,label\na\0,x\n", {}, "a NUL character at column 2 of the line; is it a text file?"),
    (b"text,label\na\xe9,x\n", {}, "not UTF-8: byte 0xe9 at column 2 of the line; re-save"),
    (b'text,label\n"a\n\xe9",x\n', {}, "not UTF-8: byte 0xe9 at column 1, 1 lines below; re-save"),
]


@pytest.mark.parametrize(("content", "settings", "message"), BAD_TABLE, ids=range(len(BAD_TABLE)))
def test_bad_rows_of_a_table(read, content, settings, message):
    (found,) = read(content, **settings)
    assert str(found).startswith(f"x:2: {message}")


def test_rows_behind_a_bad_one_are_read(read):
    rows = read('text,label\n"a" b,x\nc,y\n"d\ne"f,x\ng,z\n')
    assert [type(row) for row in rows] == [BadRow, LabelledRecord, BadRow, LabelledRecord]
    assert [row.origin.line for row in rows] == [2, 3, 4, 6]


def test_a_quote_that_is_never_closed(read):
    assert read('text,label\na,x\n"b,y\nc,z\n') == [
        record(2, "a", "x"),
        bad(
            3,
            "not CSV: a quote is opened and not closed (on lines 3 to 4); double the quotes inside "
            "a text, or set dataset.quoting = false",
        ),
    ]


def test_a_field_beyond_the_limit(read):
    (row,) = read('text,label\n"' + "a" * 140_000 + '",x\n')
    assert str(row).startswith(
        "x:2: not CSV: field larger than field limit (131072) (on this line)"
    )


def test_a_line_with_a_label_alone(read):
    (row,) = read("a b\n\nLOC\n", "x.txt", file_type="lines")[1:]
    assert str(row) == (
        "x:3: must have 2 columns (label, text), got 1; mend the row, or set what separates "
        "columns (now white space) in dataset.separator"
    )


BAD_JSON = [
    ({"label": "x"}, {}, "key 'text' is missing (the row has: label); set dataset.text_column"),
    ({"text": "", "label": "x"}, {}, "key 'text' is empty; give it a text, "),
    ({"text": "a"}, {}, "key 'label' is missing (the row has: text); set dataset.label_column"),
    ({"text": "a", "label": " "}, {}, f"column 'label' has an empty label; name it, {SKIP}"),
    (
        {"text": "a", "label": None},
        {},
        "column 'label' must be a name (a string, a whole number, true or false), got null; "
        + LABELS,
    ),
    ({"text": "a", "label": 0.5}, {}, "column 'label' must be a name (a string, a whole number"),
    (
        {"text": "a", "label": "x"},
        {"label_type": "names"},
        f"column 'label' must be a list of names, got the string 'x'; {LABELS}",
    ),
    ({"text": "a", "label": ["x", "x"]}, {"label_type": "names"}, "column 'label' has the label"),
    ({"text": "a", "label": [[]]}, {"label_type": "names"}, "column 'label' must be a name ("),
    (
        {"text": "a", "label": True},
        {"label_type": "number"},
        f"column 'label' must be a number, got true; {LABELS}",
    ),
    (
        {"text": "a", "label": 10**400},
        {"label_type": "number"},
        "column 'label' must be a finite number, got the number 10000000000000000000…; ",
    ),
    ({"text": "a", "label": "x"}, {"second_column": "b"}, "key 'b' is missing (the row has: text"),
]


@pytest.mark.parametrize(("row", "settings", "message"), BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_rows_of_json(read, row, settings, message):
    (found,) = read(json.dumps(row), "x.json", **settings)
    assert str(found).startswith(f"x:1: {message}")


# ------------------------------------------------------------------------------------- bad files


def test_an_unknown_column_is_shown_with_those_that_exist(read):
    hint = "or name the columns of a file without a header in dataset.columns"
    assert failure(read, "sentence,label\na,x\n", text_column="sentense") == (
        "x:1: the header has no column 'sentense' (did you mean 'sentence'?), but: sentence, "
        f"label; set dataset.text_column, {hint}"
    )
    assert failure(read, "\ntext,gold\na,x\n") == (
        f"x:2: the header has no column 'label', but: text, gold; set dataset.label_column, {hint}"
    )
    found = failure(read, "a,x\n", columns=["text", "lable"])
    assert found.startswith("x: dataset.columns has no column 'label' (did you mean 'lable'?)")


def test_a_message_about_a_header_is_one_line(read):
    found = failure(read, '"a\nb",label\n')
    assert found.startswith("x:1: the header has no column 'text', but: 'a\\nb', label; set")


def test_a_column_twice(read):
    assert failure(read, "text,label,text\na,x,b\n") == (
        "x:1: the header has the column 'text' twice; rename one of them"
    )


@pytest.mark.parametrize(
    ("file", "what"),
    [("x.txt", "its suffix '.txt'"), ("x", "its name, which has no suffix,"), ("x.gz", "its name")],
)
def test_a_suffix_that_tells_nothing(read, file, what):
    found = failure(read, "a", file)
    assert found.startswith(f"x: {what}")
    assert found.endswith(
        " doesn't tell how the file is laid out; set dataset.file_type to json, csv, tsv or lines"
    )


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("x.json", {"encoding": "latin-1"}, "is JSON, for which dataset.encoding = 'latin-1'"),
        ("x.json", {"quoting": False}, "is JSON, for which dataset.quoting = False"),
        ("x.json", {"separator": ","}, "is JSON, for which dataset.separator = ','"),
        ("x.json", {"columns": ["text"]}, "is JSON, for which dataset.columns = ('text',)"),
        (
            "x",
            {"file_type": "lines", "quoting": True},
            "consists of lines, for which dataset.quoting = True",
        ),
    ],
)
def test_settings_that_would_change_nothing(read, file, settings, message):
    assert failure(read, "", file, **settings) == (
        f"x: {message} means nothing; remove it, or set dataset.file_type"
    )


@pytest.mark.parametrize("separator", ["||", '"'])
def test_separators_that_cant_divide_quoted_fields(read, separator):
    assert failure(read, "a", separator=separator) == (
        f"x: dataset.separator = {separator!r} can't divide quoted fields; use one character that "
        "is no quote, or set dataset.quoting = false"
    )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="x: no such file"):
        list(labelled(file_type="tsv").read(tmp_path / "no.tsv", "x"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_column": "label"}, "must differ, got 'label' twice"),
        ({"second_column": "text"}, "must differ, got 'text' twice"),
        ({"encoding": "utf-9"}, "unknown encoding 'utf-9'; use a name that Python knows"),
        ({"label_type": "float"}, "Input should be 'name', 'names' or 'number'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        labelled(**settings)


# -------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    ("file", "content", "settings"),
    [
        ("a.csv", 'text,label\n"a\nb",x\n,y\nc,x\n', {}),
        ("a.tsv", "a\tx\nb\nc\ty\n", {"columns": ["text", "label"]}),
        ("a.txt", "x a b\ny\n\nx c\n", {"file_type": "lines"}),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', {}),
    ],
)
def test_it_keeps_the_contract(tmp_path, file, content, settings):
    path = tmp_path / file
    path.write_text(content, encoding="utf-8")
    check_dataset_format(labelled(**settings), path, bad_rows=1)


def test_reading_is_streamed(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "a,x\n" * 5 + '"' + "a" * 200_000, encoding="utf-8")
    assert next(labelled().read(path, "x")) == record(2, "a", "x")
