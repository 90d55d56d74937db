from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ptkit
from ptkit import DataError, Origin, read_lines, text_problem


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[tuple[int, str]]]:
    def read(content: bytes, file: str = "x.txt", **encoding: str) -> list[tuple[int, str]]:
        path = tmp_path / file
        path.write_bytes(content)
        found = list(read_lines(path, "named.txt", **encoding))
        assert {origin.file for origin, _ in found} <= {"named.txt"}
        return [(origin.line, line) for origin, line in found]

    return read


def test_lines_keep_their_ends(read):
    content = "a\n\nb\r\n \u2028c\rd\x0c".encode()
    assert read(content) == [(1, "a\n"), (2, "\n"), (3, "b\r\n"), (4, " \u2028c\rd\x0c")]
    assert read(b"") == []


def test_a_byte_order_mark_is_no_text(read):
    assert read(b"\xef\xbb\xbfa\n") == [(1, "a\n")]
    assert read("a\nb".encode("utf-16"), encoding="utf-16") == [(1, "a\n"), (2, "b")]


def test_gzip(read):
    assert read(gzip.compress(b"a\nb"), "x.txt.gz") == [(1, "a\n"), (2, "b")]


@pytest.mark.parametrize(
    ("encoding", "content", "expected"),
    [
        ("latin-1", b"caf\xe9", "café"),
        ("gb18030", "裙子".encode("gb18030"), "裙子"),
        ("UTF8", "裙子".encode(), "裙子"),
    ],
)
def test_encodings(read, encoding, content, expected):
    assert read(content, encoding=encoding) == [(1, expected)]


def test_bad_bytes_cost_their_line(read):
    first, second, third = read(b"a\ncaf\xe9 \xff\nb\n")
    assert [text_problem(line) for _, line in (first, third)] == [None, None]
    assert text_problem(second[1]) == (
        "not UTF-8: byte 0xe9 at column 4 of the line; re-save the file, or set dataset.encoding"
    )
    ((_, line),) = read(b"x\x81\n", encoding="cp1252")
    assert text_problem(line, "cp1252").startswith("not CP1252: byte 0x81 at column 2 of the line;")


def test_a_nul_is_no_text(read):
    ((_, line),) = read(b"abc\0d")
    assert text_problem(line) == (
        "a NUL character at column 4 of the line; is it a text file? Remove it, or set "
        "dataset.encoding"
    )


def test_a_problem_below_the_first_line():
    assert "at column 2, 2 lines below; " in str(text_problem("裙\nb\nc\udcff"))


def failure(read: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(*args, **kwargs)
    (line,) = caught.value.lines
    return line


def test_files_that_cant_be_read(read, tmp_path):
    def at(path: Path) -> str:
        return failure(lambda: list(read_lines(path, "x.txt")))

    assert at(tmp_path / "no") == f"x.txt: no such file (looked for {tmp_path / 'no'}); " + (
        "check the path"
    )
    assert at(tmp_path) == "x.txt: is a folder, not a file; name a file in it"
    assert failure(read, "a\n".encode("utf-16")) == (
        "named.txt: is UTF-16, not UTF-8; re-save the file as UTF-8"
    )
    assert failure(read, gzip.compress(b"a")).startswith("named.txt: is gzip data; add .gz")
    assert failure(read, b"a\x00\x00\xd8", encoding="utf-16-le") == (
        "named.txt: not utf-16-le (unexpected end of data); set dataset.encoding"
    )


def test_utf_16_without_a_byte_order_mark(read):
    assert failure(read, b"a\0b\0", encoding="utf-16") == (
        "named.txt: not utf-16 (UTF-16 stream does not start with BOM); set dataset.encoding"
    )


def test_an_unknown_encoding(tmp_path):
    with pytest.raises(LookupError):
        list(read_lines(tmp_path / "x.txt", "x.txt", "utf-9"))

    class Texts(ptkit.Settings):
        encoding: ptkit.Encoding = "utf-8"

    assert Texts(encoding="latin-1").encoding == "latin-1"
    for name in ("utf-9", "base64", "a\0b", ""):
        with pytest.raises(ValueError, match="unknown encoding .*; use a name that Python knows"):
            Texts(encoding=name)


def test_reading_is_streamed(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n" * 10 + b"\xff" * 10)
    assert next(read_lines(path, "x.txt")) == (Origin("x.txt", 1), "a\n")
