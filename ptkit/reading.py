"""Reads files of JSON objects, one at a time, and lines of text; plain or gzipped.

A row that can't be used is handed over as a `BadRow`; a file that can't be read raises `DataError`.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ptkit.errors import DataError
from ptkit.records import BadRow, Origin

_CHUNK = 1 << 16  # characters read at once
_BLANK = " \t\r\n"  # JSON's white space; str.strip() would also take U+3000 and the like
_NOT_BLANK = re.compile(r"[^ \t\r\n]")
_NEAR_THE_CUT = 16  # no token that can be cut, "\ud83d\ude00" and -Infinity among them, is longer
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BAD_BYTE = re.compile(r"[\udc80-\udcff]")  # what errors="surrogateescape" makes of a byte
_NOT_TEXT = re.compile(r"[\0\udc80-\udcff]")

# The file is decoded with surrogateescape, so that one bad byte costs one row and not the file.


def read_json_rows(path: Path, name: str) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    """The JSON objects of a file with their origins, in order, streamed in constant memory.

    The first character decides: ``[`` begins one array of objects, anything else a file with an
    object on every line. Names that end in ``.gz`` are unpacked. ``name`` is how origins name the
    file; the line is the one on which the object begins. Blank lines are skipped, and an empty file
    has no rows.

    Yields a `BadRow` for what is not an object, not JSON, or not text, and goes on behind it.
    Raises `DataError` if the file can't be read, and for an array that is broken, since its rest
    has no boundaries. Nothing is opened before the first row is asked for.

    Worked example::

        {"a": 1}        (Origin("x.json", 1), {"a": 1})
        [2]             BadRow(Origin("x.json", 2), "is a list, not a JSON object; …")
    """
    with _opened(path, name) as file:
        line = 1
        first = file.readline(_CHUNK)
        while first and not first.strip(_BLANK):
            line += first.endswith("\n")
            first = file.readline(_CHUNK)
        _check_encoding(first, name)
        if first.lstrip(_BLANK).startswith("["):
            yield from _array_rows(_Window(file, first, line), name)
        elif first:
            if not first.endswith("\n"):
                first += file.readline()
            yield from _line_rows(file, first, line, name)


def read_lines(path: Path, name: str, encoding: str = "utf-8") -> Iterator[tuple[Origin, str]]:
    """The lines of a text file with their origins, in order, streamed; blank ones too.

    A line keeps its end, "\\n" or "\\r\\n"; nothing else ends one. Names that end in ``.gz`` are
    unpacked, and a UTF-8 byte order mark is no part of the text. Bytes that ``encoding`` can't read
    are kept as surrogate escapes, so that they cost a row and not the file: ask `text_problem`
    before a line is used.
    Raises `DataError` if the file can't be read, and LookupError for an unknown encoding.
    """
    utf8 = codecs.lookup(encoding).name == "utf-8"
    with _opened(path, name, "utf-8-sig" if utf8 else encoding) as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and utf8:
                _check_encoding(line, name)
            yield Origin(name, number), line


def text_problem(text: str, encoding: str = "utf-8") -> str | None:
    """Why a piece of a file, as `read_lines` gives it, is no text; None if it is.

    >>> text_problem("caf\\udce9", "utf-8")
    'not UTF-8: byte 0xe9 at column 4 of the line; re-save the file, or set dataset.encoding'
    """
    if text.isascii() and "\0" not in text:
        return None
    found = _NOT_TEXT.search(text)
    if found is None:
        return None
    line = text.count("\n", 0, found.start())
    column = found.start() - (text.rfind("\n", 0, found.start()) + 1) + 1
    place = f"column {column} of the line" if not line else f"column {column}, {line} lines below"
    if found[0] == "\0":
        return f"a NUL character at {place}; is it a text file? Remove it, or set dataset.encoding"
    what = f"{encoding.upper()}: byte 0x{ord(found[0]) - 0xDC00:02x}"
    return f"not {what} at {place}; re-save the file, or set dataset.encoding"


@contextmanager
def _opened(path: Path, name: str, encoding: str = "utf-8-sig") -> Iterator[TextIO]:
    try:
        with (
            gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw,
            # "\n": neither a lone "\r" nor U+2028 ends a line
            io.TextIOWrapper(raw, encoding, errors="surrogateescape", newline="\n") as file,
        ):
            yield file
    except FileNotFoundError:
        raise DataError(f"{name}: no such file (looked for {path}); check the path") from None
    except UnicodeError as error:  # of encodings whose bytes can't be escaped, such as UTF-16
        problem = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        raise DataError(f"{name}: not {encoding} ({problem}); set dataset.encoding") from None
    except IsADirectoryError:
        raise DataError(f"{name}: is a folder, not a file; name a file in it") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        problem = str(error).rstrip(".")
        raise DataError(
            f"{name}: the gzip data is damaged or cut short ({problem}); fetch the file again, "
            "or drop .gz from its name if it isn't packed"
        ) from error
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise DataError(
            f"{name}: can't be read ({problem}); check the file and its permissions"
        ) from error


def _check_encoding(first: str, name: str) -> None:
    found = None
    if first.startswith(("\udcff\udcfe\0\0", "\0\0\udcfe\udcff")):
        found = "UTF-32"
    elif first.startswith(("\udcff\udcfe", "\udcfe\udcff")) or "\0" in first[:2]:
        found = "UTF-16"
    if found:
        raise DataError(f"{name}: is {found}, not UTF-8; re-save the file as UTF-8")
    if first.startswith("\x1f\udc8b"):
        raise DataError(f"{name}: is gzip data; add .gz to the name of the file")


# --------------------------------------------------------------------------------------- one row


class _Decoder:
    """A JSON decoder that remembers which constants it met that are Python's and not JSON's."""

    def __init__(self) -> None:
        self.constants: list[str] = []
        self._json = json.JSONDecoder(parse_constant=self.constants.append)

    def decode(self, text: str) -> Any:
        self.constants.clear()
        if text.startswith("{"):  # no blanks to skip: decode() would search for them
            value, end = self._json.raw_decode(text)
            if end == len(text):
                return value
            self.constants.clear()
        return self._json.decode(text)

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that starts there, and where it ends."""
        self.constants.clear()
        return self._json.raw_decode(text, start)

    def problem(self, value: Any, text: str) -> str | None:
        """Why the decoded ``value``, written as ``text``, is no row."""
        if self.constants:
            return f"{self.constants[0]} is not JSON; write a number or null"
        if not isinstance(value, dict):
            return f'is {_kind(value)}, not a JSON object; a row is {{"column": value, …}}'
        if _ESCAPED_SURROGATE.search(text):
            for key, content in value.items():
                try:
                    lone = _lone_surrogate({key: content})
                except RecursionError as error:
                    return _other_problem(error)
                if lone:
                    return (
                        f"key {key!r} holds {lone}, half of a surrogate pair and no character; "
                        "write the whole pair, or remove it"
                    )
        return None


def _kind(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list):
        return "a list"
    return "a string" if isinstance(value, str) else "a number"


def _lone_surrogate(value: object) -> str | None:
    """The first one, as the escape that writes it. Raises RecursionError for deep values."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(error.object[error.start]):04x}"
    return None


def _syntax_problem(error: json.JSONDecodeError, column: int, ends: str) -> str:
    """Such as ``not JSON: expected ':' at column 5, got '7'``; ``ends`` names the end."""
    said = error.msg.replace(" enclosed in double quotes", " in double quotes")
    got = repr(error.doc[error.pos]) if error.pos < len(error.doc) else ends
    if said.startswith("Expecting "):
        what = said.removeprefix("Expecting ").removesuffix(" delimiter")
        article = "" if what.startswith("'") else "a "
        return f"not JSON: expected {article}{what} at column {column}, got {got}"
    if said == "Extra data":
        return f"not JSON: expected {ends} at column {column}, got {got}"
    what = said[:1].lower() + said[1:].removesuffix(" at")
    if what == "unterminated string starting":
        return f"not JSON: expected a closing '\"' for the string at column {column}, got {ends}"
    return f"not JSON: {what} at column {column}, got {got}"


def _other_problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply to be read; flatten it"
    return f"a number can't be read ({str(error).split(';')[0]}); write it as a string"


# ------------------------------------------------------------------------------------ JSON lines


def _line_rows(
    file: TextIO, first: str, number: int, name: str
) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    decoder = _Decoder()
    line = first
    while line:
        text = line.rstrip(_BLANK)
        if text:
            origin = Origin(name, number)
            value, problem = _line_row(decoder, text)
            yield (origin, value) if problem is None else BadRow(origin, problem)
        number += 1
        line = file.readline()


def _line_row(decoder: _Decoder, text: str) -> tuple[Any, str | None]:
    bad = _BAD_BYTE.search(text)
    if bad:
        at = len(text[: bad.start()].encode()) + 1
        return None, f"{_bad_byte(bad[0])} at byte {at} of the line; re-save the file as UTF-8"
    try:
        value = decoder.decode(text)
    except json.JSONDecodeError as error:
        hint = "; an object must be on one line" if error.pos >= len(text) else ""
        return None, _syntax_problem(error, error.pos + 1, "the end of the line") + hint
    except (RecursionError, ValueError) as error:
        return None, _other_problem(error)
    return value, decoder.problem(value, text)


def _bad_byte(escaped: str) -> str:
    return f"not UTF-8: byte 0x{ord(escaped) - 0xDC00:02x}"


# ------------------------------------------------------------------------------------- one array


class _Window:
    """The part of a file that is being decoded: it grows at its end and is dropped up to ``at``."""

    def __init__(self, file: TextIO, text: str, line: int) -> None:
        self.file = file
        self.text = text
        self.at = 0
        self.ended = False
        self.line = line  # the line of ``at``
        self._line_start = 0  # where it starts in ``text``; negative once that is dropped

    def grow(self) -> bool:
        """Read on. At least as much as is kept, or retries would take quadratic time."""
        kept = self.text[self.at :]
        new = self.file.read(max(_CHUNK, len(kept)))
        self._line_start -= self.at
        self.at = 0
        self.text = kept + new
        self.ended = not new
        return not self.ended

    def advance(self, to: int) -> None:
        newlines = self.text.count("\n", self.at, to)
        if newlines:
            self.line += newlines
            self._line_start = self.text.rindex("\n", self.at, to) + 1
        self.at = to

    def skip_blanks(self) -> str:
        """Go to the next character that isn't blank and return it; "" at the end of the file."""
        while True:
            found = _NOT_BLANK.search(self.text, self.at)
            self.advance(found.start() if found else len(self.text))
            if found:
                return found[0]
            if not self.grow():
                return ""

    def place(self, index: int) -> tuple[int, int]:
        """The line and the column, both from 1, of a character at or behind ``at``."""
        newlines = self.text.count("\n", self.at, index)
        start = self.text.rindex("\n", self.at, index) + 1 if newlines else self._line_start
        return self.line + newlines, index - start + 1


def _array_rows(window: _Window, name: str) -> Iterator[tuple[Origin, dict[str, Any]] | BadRow]:
    decoder = _Decoder()
    window.skip_blanks()
    window.advance(window.at + 1)  # the "["
    if window.skip_blanks() != "]":
        while True:
            value, end = _element(decoder, window, name)
            yield _array_row(decoder, window, value, end, name)
            window.advance(end)
            got = window.skip_blanks()
            if got == "]":
                break
            if got != ",":
                raise _broken(window, "expected ',' or ']'", got, name)
            window.advance(window.at + 1)
            window.skip_blanks()
    window.advance(window.at + 1)
    got = window.skip_blanks()
    if got:
        raise _broken(window, "expected the end of the file behind the array", got, name)


def _array_row(
    decoder: _Decoder, window: _Window, value: Any, end: int, name: str
) -> tuple[Origin, dict[str, Any]] | BadRow:
    bad = _BAD_BYTE.search(window.text, window.at, end)
    if bad:
        line, column = window.place(bad.start())
        message = f"{_bad_byte(bad[0])} at column {column} of the line; re-save the file as UTF-8"
        return BadRow(Origin(name, line), message)
    origin = Origin(name, window.line)
    problem = decoder.problem(value, window.text[window.at : end])
    return (origin, value) if problem is None else BadRow(origin, problem)


def _element(decoder: _Decoder, window: _Window, name: str) -> tuple[Any, int]:
    """The value that starts at ``window.at`` and its end; reads on while the window may cut it."""
    while True:
        size = len(window.text)
        try:
            value, end = decoder.decode_at(window.text, window.at)
        except json.JSONDecodeError as error:
            near = error.pos >= size - _NEAR_THE_CUT or error.msg.startswith("Unterminated string")
            if near and not window.ended:
                window.grow()
                continue
            line, column = window.place(error.pos)
            problem = _syntax_problem(error, column, "the end of the file")
            raise DataError(f"{name}:{line}: {problem}; {_NO_REST}") from None
        except (RecursionError, ValueError) as error:
            raise DataError(f"{name}:{window.line}: {_other_problem(error)}; {_NO_REST}") from None
        # 12 may go on as 123, and 1 as 1e+5
        if isinstance(value, dict | list | str) or end < size - _NEAR_THE_CUT or window.ended:
            return value, end
        window.grow()


_NO_REST = "what follows in the array can't be read"


def _broken(window: _Window, expected: str, got: str, name: str) -> DataError:
    line, column = window.place(window.at)
    shown = repr(got) if got else "the end of the file"
    return DataError(
        f"{name}:{line}: not JSON: {expected} at column {column}, got {shown}; {_NO_REST}"
    )
