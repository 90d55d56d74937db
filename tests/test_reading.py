from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptkit import reading
from ptkit.errors import DataError
from ptkit.reading import read_json_rows
from ptkit.records import BadRow, Origin

NO_REST = "what follows in the array can't be read"


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Any]]:
    def read(content: str | bytes, file: str = "x.json") -> list[Any]:
        path = tmp_path / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return list(read_json_rows(path, file))

    return read


def row(line: int, **values: Any) -> tuple[Origin, dict[str, Any]]:
    return Origin("x.json", line), values


def bad(line: int, message: str) -> BadRow:
    return BadRow(Origin("x.json", line), message)


def failure(read: Callable[..., list[Any]], content: str | bytes, file: str = "x.json") -> str:
    with pytest.raises(DataError) as caught:
        read(content, file)
    (line,) = caught.value.lines
    return line


# --------------------------------------------------------------------------------- what is read


def test_an_object_on_every_line(read):
    assert read('{"a": 1}\n{"a": "裙"}\n') == [row(1, a=1), row(2, a="裙")]


def test_one_array_of_objects_whose_origins_are_where_they_begin(read):
    content = '[\n  {\n    "a": 1\n  },\n\n  {"a": 2}, {"a": 3}\n]\n'
    assert read(content) == [row(2, a=1), row(6, a=2), row(6, a=3)]


def test_the_last_line_needs_no_end(read):
    assert read('{"a": 1}\n{"a": 2}') == [row(1, a=1), row(2, a=2)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_skipped_and_counted(read, end):
    content = end.join(["", "  ", '{"a": 1}', "\t", '{"a": 2}', ""])
    assert read(content) == [row(3, a=1), row(5, a=2)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_an_array_are_counted(read, end):
    content = end.join(["", "", "[", '{"a": 1},', "", '{"a": 2}', "]"])
    assert read(content) == [row(4, a=1), row(6, a=2)]


def test_only_newlines_end_lines(read):
    assert read('{"a": "x\u2028y\x85z"}\n\r{"a": 2}\n') == [row(1, a="x\u2028y\x85z"), row(2, a=2)]


@pytest.mark.parametrize("content", ['{"a": 1}\n', '[{"a": 1}]'])
def test_a_byte_order_mark_is_no_text(read, content):
    assert read(content.encode("utf-8-sig")) == [row(1, a=1)]


@pytest.mark.parametrize("content", ['{"a": 1}\n\n{"a": 2}', '[{"a": 1},\n\n{"a": 2}]'])
def test_gzip(read, content):
    packed = gzip.compress(content.encode())
    assert [values for _, values in read(packed, "x.jsonl.gz")] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("content", ["", "\n \r\n", "\ufeff", "[]", " [\n]\n"])
def test_a_file_without_rows(read, content):
    assert read(content) == []


def test_an_empty_gzip_file(read):
    assert read(gzip.compress(b""), "x.json.gz") == []


def test_many_blank_lines_before_the_first_row(read):
    content = "\n" * 70_000 + " " * 70_000
    assert read(content + '{"a": 1}') == [row(70_001, a=1)]
    assert read(content + '[{"a": 1}]') == [row(70_001, a=1)]


def test_a_first_line_longer_than_what_is_read_at_once(read):
    text = "长" * 70_000
    assert read(json.dumps({"a": text}, ensure_ascii=False) + '\n{"a": 2}') == [
        row(1, a=text),
        row(2, a=2),
    ]


def test_nothing_is_opened_before_the_first_row_is_asked_for(tmp_path):
    read_json_rows(tmp_path / "absent.json", "absent.json")


def test_escaped_surrogate_pairs_are_text(read):
    assert read(r'{"a": "\ud83d\ude00", "b": "\\ud800"}') == [row(1, a="😀", b="\\ud800")]


# ------------------------------------------------------------------------------------- bad rows

NOT_AN_OBJECT = 'not a JSON object; a row is {"column": value, …}'
LINES = {
    "nonsense": "not JSON: expected a value at column 1, got 'n'",
    "{'a': 1}": 'not JSON: expected a property name in double quotes at column 2, got "\'"',
    '{"a" 1}': "not JSON: expected ':' at column 6, got '1'",
    '{"a": 1 "b": 2}': "not JSON: expected ',' at column 9, got '\"'",
    '{"a": }': "not JSON: expected a value at column 7, got '}'",
    '{"a": 1},': "not JSON: expected the end of the line at column 9, got ','",
    '{"a": 1} {"a": 2}': "not JSON: expected the end of the line at column 10, got '{'",
    '{"a": "\t"}': "not JSON: invalid control character at column 8, got '\\t'",
    r'{"a": "\x"}': "not JSON: invalid \\escape at column 8, got '\\\\'",
    r'{"a": "\u12"}': "not JSON: invalid \\uXXXX escape at column 9, got 'u'",
    "{": "not JSON: expected a property name in double quotes at column 2, "
    "got the end of the line; an object must be on one line",
    '{"a": "x': "not JSON: expected a closing '\"' for the string at column 7, "
    "got the end of the line",
    '{"a": NaN, "b": 1}': "NaN is not JSON; write a number or null",
    '{"a": [-Infinity]}': "-Infinity is not JSON; write a number or null",
    '{"a": Infinity}': "Infinity is not JSON; write a number or null",
    '["a", 1]': f"is a list, {NOT_AN_OBJECT}",
    '"text"': f"is a string, {NOT_AN_OBJECT}",
    "17": f"is a number, {NOT_AN_OBJECT}",
    "1.5": f"is a number, {NOT_AN_OBJECT}",
    "true": f"is true, {NOT_AN_OBJECT}",
    "null": f"is null, {NOT_AN_OBJECT}",
    r'{"b": 1, "a": ["\ud800"]}': "key 'a' holds \\ud800, half of a surrogate pair and no "
    "character; write the whole pair, or remove it",
    r'{"\uDFFF": 1}': "key '\\udfff' holds \\udfff, half of a surrogate pair and no character; "
    "write the whole pair, or remove it",
    '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}": "is nested too deeply to be read; flatten it",
    '{"a": '
    + "1" * 5000
    + "}": "a number can't be read (Exceeds the limit (4300 digits) for integer "
    "string conversion: value has 5000 digits); write it as a string",
}


@pytest.mark.parametrize(("line", "message"), LINES.items(), ids=[line[:20] for line in LINES])
def test_a_bad_line_is_reported_and_reading_goes_on(read, line, message):
    assert read(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n') == [row(1, a=1), bad(2, message), row(3, a=2)]


def test_bad_utf8_in_a_line(read):
    content = '{"a": "裙'.encode() + b"\xc4\xe3" + b'"}\r\n{"a": 2}'
    message = "not UTF-8: byte 0xc4 at byte 11 of the line; re-save the file as UTF-8"
    assert read(content) == [bad(1, message), row(2, a=2)]


def test_encoded_surrogates_are_bad_utf8(read):
    message = "not UTF-8: byte 0xed at byte 8 of the line; re-save the file as UTF-8"
    assert read(b'{"a": "\xed\xa0\x80"}') == [bad(1, message)]


def test_a_bad_line_at_the_end(read):
    message = (
        "not JSON: expected ',' at column 8, got the end of the line; an object must be on one line"
    )
    assert read('{"a": 1}\n{"a": 2') == [row(1, a=1), bad(2, message)]


def test_a_nesting_that_can_be_read_but_not_checked(read):
    line = r'{"a": ["\ud83d\ude00"]}'
    with mock.patch.object(json, "dumps", side_effect=RecursionError):
        assert read(line) == [bad(1, "is nested too deeply to be read; flatten it")]


ELEMENTS = {
    '["a"]': f"is a list, {NOT_AN_OBJECT}",
    "[]": f"is a list, {NOT_AN_OBJECT}",
    '"text"': f"is a string, {NOT_AN_OBJECT}",
    "17": f"is a number, {NOT_AN_OBJECT}",
    "-1.5e+3": f"is a number, {NOT_AN_OBJECT}",
    "false": f"is false, {NOT_AN_OBJECT}",
    "null": f"is null, {NOT_AN_OBJECT}",
    "NaN": "NaN is not JSON; write a number or null",
    '{"a": -Infinity}': "-Infinity is not JSON; write a number or null",
    r'{"a": "\udC00"}': "key 'a' holds \\udc00, half of a surrogate pair and no character; "
    "write the whole pair, or remove it",
}


@pytest.mark.parametrize(("element", "message"), ELEMENTS.items())
@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_a_bad_element_is_reported_and_reading_goes_on(read, element, message, chunk):
    with mock.patch.object(reading, "_CHUNK", chunk):
        rows = read(f'[{{"a": 1}},\n{element},\n{{"a": 2}}]')
    assert rows == [row(1, a=1), bad(2, message), row(3, a=2)]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_bad_utf8_in_an_element(read, chunk):
    content = '[{"a": 1}, {"b":\n"裙'.encode() + b"\xc4\xe3" + b'"},\n{"a": 2}]'
    message = "not UTF-8: byte 0xc4 at column 3 of the line; re-save the file as UTF-8"
    with mock.patch.object(reading, "_CHUNK", chunk):
        assert read(content) == [row(1, a=1), bad(2, message), row(3, a=2)]


# -------------------------------------------------------------------------------- broken arrays

BROKEN = {
    '[{"a": 1},\n {"a" 2}]': "x.json:2: not JSON: expected ':' at column 7, got '2'",
    '[{"a": 1}, {"a": 2,\n "b" 3}]': "x.json:2: not JSON: expected ':' at column 6, got '3'",
    "[{'a': 1}]": "x.json:1: not JSON: expected a property name in double quotes at column 3, "
    'got "\'"',
    '[{"a": 1}\n {"a": 2}]': "x.json:2: not JSON: expected ',' or ']' at column 2, got '{'",
    '[{"a": 1}\n, ]': "x.json:2: not JSON: expected a value at column 3, got ']'",
    '[{"a": 1}, nan]': "x.json:1: not JSON: expected a value at column 12, got 'n'",
    '[{"a": 1}\n': "x.json:2: not JSON: expected ',' or ']' at column 1, got the end of the file",
    '[{"a": 1},': "x.json:1: not JSON: expected a value at column 11, got the end of the file",
    "[": "x.json:1: not JSON: expected a value at column 2, got the end of the file",
    '[{"a": 1},\n{"a": "x': "x.json:2: not JSON: expected a closing '\"' for the string at "
    "column 7, got the end of the file",
    '[{"a": 1}]\n]': "x.json:2: not JSON: expected the end of the file behind the array at "
    "column 1, got ']'",
    '["a"]\n["b"]': "x.json:2: not JSON: expected the end of the file behind the array at "
    "column 1, got '['",
}


@pytest.mark.parametrize(("content", "message"), BROKEN.items())
@pytest.mark.parametrize("chunk", [1, 2, 1 << 16])
def test_a_broken_array_ends_reading(read, content, message, chunk):
    with mock.patch.object(reading, "_CHUNK", chunk):
        assert failure(read, content) == f"{message}; {NO_REST}"


def test_rows_before_a_broken_element_are_handed_over(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1},\n{"a": 2},\n{"a": oops}]')
    rows = read_json_rows(path, "x.json")
    assert [next(rows), next(rows)] == [row(1, a=1), row(2, a=2)]
    with pytest.raises(
        DataError, match=r"^x\.json:3: not JSON: expected a value at column 7, got 'o'"
    ):
        next(rows)


def test_an_array_nested_too_deeply(read):
    assert failure(read, '[{"a": 1},\n' + "[" * 100_000) == (
        f"x.json:2: is nested too deeply to be read; flatten it; {NO_REST}"
    )


def test_an_array_with_a_number_of_too_many_digits(read):
    assert failure(read, '[\n{"a": ' + "1" * 5000 + "}]") == (
        "x.json:2: a number can't be read (Exceeds the limit (4300 digits) for integer string "
        f"conversion: value has 5000 digits); write it as a string; {NO_REST}"
    )


def test_an_early_error_is_found_without_reading_all(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"a": 1 "b": 2},\n' + '{"a": 1},\n' * 400_000)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"^x\.json:1: not JSON: expected ','"):
        list(read_json_rows(path, "x.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # bytes, of a file of 4,000,000


# -------------------------------------------------------------------- files that can't be read


def test_no_such_file(tmp_path):
    path = tmp_path / "data" / "x.json"
    with pytest.raises(DataError) as caught:
        list(read_json_rows(path, "data/x.json"))
    assert str(caught.value) == f"data/x.json: no such file (looked for {path}); check the path"


@pytest.mark.parametrize("file", ["folder", "folder.gz"])
def test_a_folder(tmp_path, file):
    (tmp_path / file).mkdir()
    with pytest.raises(DataError) as caught:
        list(read_json_rows(tmp_path / file, file))
    assert str(caught.value) == f"{file}: is a folder, not a file; name a file in it"


def test_no_permission(tmp_path):
    refusal = PermissionError(13, os.strerror(13))
    with mock.patch.object(Path, "open", side_effect=refusal), pytest.raises(DataError) as caught:
        list(read_json_rows(tmp_path / "x.json", "x.json"))
    assert str(caught.value) == (
        "x.json: can't be read (permission denied); check the file and its permissions"
    )


def test_what_is_not_gzip(read):
    assert failure(read, '{"a": 1}', "x.json.gz") == (
        "x.json.gz: the gzip data is damaged or cut short (Not a gzipped file (b'{\"')); fetch the "
        "file again, or drop .gz from its name if it isn't packed"
    )


@pytest.mark.parametrize("content", ['{"a": 1}\n' * 1000, "[" + '{"a": 1},\n' * 1000 + "1]"])
def test_gzip_that_is_cut_short(read, content):
    packed = gzip.compress(content.encode())
    assert failure(read, packed[:-12], "x.json.gz") == (
        "x.json.gz: the gzip data is damaged or cut short (Compressed file ended before the "
        "end-of-stream marker was reached); fetch the file again, or drop .gz from its name if it "
        "isn't packed"
    )


def test_gzip_that_is_damaged(read):
    packed = bytearray(gzip.compress(os.urandom(2000).hex().encode()))
    packed[500:600] = bytes(100)
    message = failure(read, bytes(packed), "x.json.gz")
    assert message.startswith("x.json.gz: the gzip data is damaged or cut short (")


def test_gzip_without_its_suffix(read):
    packed = gzip.compress(b'{"a": 1}')
    assert failure(read, packed) == "x.json: is gzip data; add .gz to the name of the file"


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize("content", ['{"a": 1}\n', '\n[{"a": 1}]'])
def test_other_encodings(read, encoding, found, content):
    message = f"x.json: is {found}, not UTF-8; re-save the file as UTF-8"
    assert failure(read, content.encode(encoding)) == message


@pytest.mark.parametrize(
    ("mark", "encoding", "found"),
    [(b"\xfe\xff", "utf-16-be", "UTF-16"), (b"\0\0\xfe\xff", "utf-32-be", "UTF-32")],
)
def test_big_endian_byte_order_marks(read, mark, encoding, found):
    message = f"x.json: is {found}, not UTF-8; re-save the file as UTF-8"
    assert failure(read, mark + '{"a": 1}'.encode(encoding)) == message


# ------------------------------------------------------------------------------------ properties

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(texts, values, max_size=4), max_size=6)
blanks = st.text(" \t\r\n", max_size=5)


@given(objects, st.data())
@settings(deadline=None)
def test_lines_round_trip(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("lines") / "x.json"
    content, expected = "", []
    for values in rows:
        content += "\n" * data.draw(st.integers(0, 2))
        expected.append((Origin("x.json", content.count("\n") + 1), values))
        content += data.draw(st.text(" \t", max_size=3))
        content += json.dumps(values, ensure_ascii=data.draw(st.booleans()))
        content += data.draw(st.sampled_from(["\n", "\r\n", " \n"]))
    path.write_bytes(content.encode(data.draw(st.sampled_from(["utf-8", "utf-8-sig"]))))
    assert list(read_json_rows(path, "x.json")) == expected


@given(objects, st.data())
@settings(deadline=None)
def test_arrays_round_trip(tmp_path_factory, rows, data):
    path = tmp_path_factory.mktemp("array") / "x.json"
    content, expected = data.draw(blanks) + "[" + data.draw(blanks), []
    for number, values in enumerate(rows):
        if number:
            content += "," + data.draw(blanks)
        expected.append((Origin("x.json", content.count("\n") + 1), values))
        indent = data.draw(st.sampled_from([None, 0, 2]))
        content += json.dumps(values, ensure_ascii=data.draw(st.booleans()), indent=indent)
        content += data.draw(blanks)
    path.write_bytes((content + "]" + data.draw(blanks)).encode())
    with mock.patch.object(reading, "_CHUNK", data.draw(st.integers(1, 40))):
        assert list(read_json_rows(path, "x.json")) == expected


def outcome(path: Path, chunk: int) -> list[str]:
    """What reading gives, with the error that ends it as the last line."""
    said = []
    with mock.patch.object(reading, "_CHUNK", chunk):
        try:
            said.extend(str(row) for row in read_json_rows(path, "x.json"))
        except DataError as error:
            said.append(str(error))
    return said


SCRAPS = r'{ } [ ] , : " "a" "a": {"a":1} \ \ud83d \ude00 1 - e+ .5 tr ue null NaN -Infinity 裙'
scraps = st.lists(st.sampled_from([*SCRAPS.split(), " ", "\n", "\udcff"]), max_size=12)


@given(scraps, st.integers(1, 8))
@settings(deadline=None, max_examples=300)
def test_how_much_is_read_at_once_makes_no_difference(tmp_path_factory, parts, chunk):
    path = tmp_path_factory.mktemp("scraps") / "x.json"
    content = '[{"a": 1},' + "".join(parts) + "]"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert outcome(path, chunk) == outcome(path, 1 << 16)


@given(st.binary(max_size=60), st.integers(1, 8))
@settings(deadline=None)
def test_any_bytes_give_rows_or_a_data_error(tmp_path_factory, content, chunk):
    path = tmp_path_factory.mktemp("bytes") / "x.json"
    path.write_bytes(content)
    for text in outcome(path, chunk):
        assert len(text.splitlines()) == 1
        text.encode()


@pytest.mark.parametrize(
    ("start", "end", "join"), [("", "\n", "\n"), ("[", "]", ",\n"), ("[", "]", ",")]
)
def test_memory_stays_constant(tmp_path, start, end, join):
    path = tmp_path / "x.json"
    element = json.dumps(
        {"content": "类型#裙*版型#宽松" * 5, "summary": "一条裙子" * 20}, ensure_ascii=False
    )
    with path.open("w", encoding="utf-8") as file:
        file.write(start + element)
        for _ in range(20_000):
            file.write(join + element)
        file.write(end)
    tracemalloc.start()
    count = sum(1 for _ in read_json_rows(path, "x.json"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_001
    assert peak < 2_000_000  # bytes, of a file of 9,000,000
