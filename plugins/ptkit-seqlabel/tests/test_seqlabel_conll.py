from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from ptkit_seqlabel.conll import ConllFormat
from pydantic import ValidationError

from ptkit import BadRow, DataError, Origin, TaggedRecord, entities
from ptkit.testing import check_dataset_format

CONLL_2003 = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def conll(**settings: Any) -> ConllFormat:
    return ConllFormat(ConllFormat.Settings(train="x", **settings))


@pytest.fixture
def read(tmp_path: Path):
    def read(content: str | bytes, *, unanswered: bool = False, **settings: Any) -> list[Any]:
        path = tmp_path / "x.conll"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        form = conll(**settings)
        return list((form.read_unanswered if unanswered else form.read)(path, "x"))

    return read


def record(line: int, text: str, words: Any, tags: str | None) -> TaggedRecord:
    return TaggedRecord(
        origin=Origin("x", line),
        text=text,
        words=tuple(words),
        tags=None if tags is None else tuple(tags.split()),
    )


def test_conll_2003(read):
    first, second = read(CONLL_2003, scheme="iob1")
    assert first == record(3, "EU rejects", [(0, 2), (3, 10)], "B-ORG O")
    assert second == record(6, "Peter Blackburn", [(0, 5), (6, 15)], "B-PER I-PER")
    assert entities(second, second.tags) == [
        {"type": "PER", "start": 0, "end": 15, "text": "Peter Blackburn"}
    ]


def test_parts_of_speech(read):
    first, _ = read(CONLL_2003, tag_column=1, scheme="none")
    assert first.tags == ("NNP", "VBZ")


def test_characters_with_digits_of_segmentation(read):
    content = "科0\tO\n技1\tB-A\r\n310\tI-A\nn21\tO\n\ufffd\ufffd0\tO\n"
    settings = {"word_pattern": "(.+?)[0-9]{1,2}", "joiner": "", "separator": "\t"}
    words = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6)]
    assert read(content, **settings) == [
        record(1, "科技3n\ufffd\ufffd", words, "O B-A I-A O O"),
    ]


def test_columns_from_the_end_and_their_order(read):
    assert read("B-A x cat\n", word_column=-1, tag_column=0) == [
        record(1, "cat", [(0, 3)], "B-A"),
    ]


def test_words_may_be_rare_white_space(read):
    """U+3000 and U+00A0 stand in real files as characters of their own."""
    content = "\u3000 O\n\u00a0 O\n好 B-A\n"
    words = [(0, 1), (1, 2), (2, 3)]
    assert read(content, joiner="") == [record(1, "\u3000\u00a0好", words, "O O B-A")]
    assert read("New York\tB-A\n", separator="\t") == [record(1, "New York", [(0, 8)], "B-A")]


def test_only_document_lines_are_skipped(read):
    content = "-DOCSTART-\n-DOCSTART-X O\n\n \t\n# O\nx O\n-DOCSTART- -X- O\ny O"
    first, second, third = read(content)
    assert (first.text, second.text, third.text) == ("-DOCSTART-X", "# x", "y")
    assert [row.origin.line for row in (first, second, third)] == [2, 5, 8]


def test_comments(read):
    content = "# id = 1\nx O\n# in between\ny O\n\n# id = 2\n"
    assert read(content, comment="#") == [record(2, "x y", [(0, 1), (2, 3)], "O O")]


def test_encodings_and_gzip(read, tmp_path):
    assert read("裙 O\n".encode("gb18030"), encoding="gb18030", joiner="")[0].text == "裙"
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"x O\n"))
    assert list(conll().read(path, "x")) == [record(1, "x", [(0, 1)], "O")]


def test_a_file_without_sentences(read):
    assert read("") == read("\n\n-DOCSTART- O\n\n") == []


def test_stray_tags_begin_an_entity_unless_strict(read):
    assert read("a O\nb I-A\n")[0].tags == ("O", "B-A")
    (row,) = read("a O\nb I-A\n", strict=True)
    assert str(row) == (
        "x:2: I-A continues no entity of its type; begin it with B-A, or set dataset.strict = false"
    )


def test_rows_to_be_answered(read):
    expected = [record(1, "a b", [(0, 1), (2, 3)], None)]
    assert read("a\nb\n", unanswered=True) == expected
    assert read("a X\nb ?\n", unanswered=True) == expected


BAD = [
    (
        "a O\n\nb O\nc X-A\n",
        {},
        "x:4: 'X-A' is no tag of the scheme 'bio', which has O, B-type, I-type; mend the tag, or "
        "set dataset.scheme",
    ),
    (
        "a O\n\nb S-A\nc E-A\n",
        {"scheme": "bioes"},
        "x:4: E-A must follow B-A or I-A in the scheme 'bioes', got S-A; mend the tags",
    ),
    (
        "a O\n\nb O\nNew York B-A\n",
        {},
        "x:4: has 3 columns, but lines above have 2; mend the line, or set dataset.separator",
    ),
    (
        "a O\n\nb O\nc\n",
        {},
        "x:4: has 1 column, so that word and tag are the same one; mend the line, or set "
        "dataset.word_column, dataset.tag_column or dataset.separator",
    ),
    (
        "a x O\n\nb O\n",
        {"tag_column": 2},
        "x:3: has 2 columns, but dataset.tag_column = 2; mend the line, or set it or "
        "dataset.separator",
    ),
    ("a x O\n\nb O\n", {"word_column": -3}, "x:3: has 2 columns, but dataset.word_column = -3; "),
    (
        "a0 O\n\nb1 O\nc O\n",
        {"word_pattern": "(.)[0-9]"},
        "x:4: the word 'c' does not match dataset.word_pattern '(.)[0-9]'; mend the line, or set "
        "it",
    ),
    ("a\tO\n\n\tO\n", {"separator": "\t"}, "x:3: the word is empty; mend the line"),
    ("a\tO\n\nb\t\n", {"separator": "\t", "scheme": "none"}, "x:3: the tag is empty; give the"),
    (b"a O\n\nb O\n\xe9 O\n", {}, "x:4: not UTF-8: byte 0xe9 at column 1 of the line; re-save"),
    (b"a O\n\nb\0 O\n", {}, "x:3: a NUL character at column 2 of the line; "),
]


@pytest.mark.parametrize(("content", "settings", "message"), BAD, ids=range(len(BAD)))
def test_bad_lines(read, content, settings, message):
    good, found = read(content, **settings)
    assert isinstance(good, TaggedRecord)
    assert isinstance(found, BadRow)
    assert str(found).startswith(message)


def test_a_sentence_with_bad_lines_is_one_bad_row(read):
    rows = read("a O\nb X\nc Y\n\nd O\n")
    assert [(type(row), row.origin.line) for row in rows] == [(BadRow, 2), (TaggedRecord, 5)]


def test_files_that_cant_be_read(read, tmp_path):
    with pytest.raises(DataError, match="x: no such file"):
        list(conll().read(tmp_path / "no", "x"))
    with pytest.raises(DataError, match="x: is UTF-16, not UTF-8; re-save the file as UTF-8"):
        read("a O\n".encode("utf-16"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "bilou"}, "Input should be 'bio', 'iob1', 'bioes', 'bmes' or 'none'"),
        ({"word_pattern": "(.)("}, r"'\(.\)\(' is no regular expression: missing \)"),
        ({"word_pattern": "."}, "'.' must have one group, the word, got 0"),
        ({"encoding": "utf-9"}, "unknown encoding 'utf-9'"),
        (
            {"scheme": "bmes", "strict": True},
            "strict = true is for scheme = \"bio\", got 'bmes'; remove it",
        ),
        ({"joiner": "-"}, "Input should be '' or ' '"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        conll(**settings)


def test_it_keeps_the_contract(tmp_path):
    path = tmp_path / "x.conll"
    path.write_text(CONLL_2003 + "\nbad VBZ I-VP X-ORG\n\nlast NN I-NP O", encoding="utf-8")
    check_dataset_format(conll(scheme="iob1"), path, bad_rows=1)


def test_reading_is_streamed(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a O\n\n" * 100_000)[:-20])  # cut off
    rows = conll().read(path, "x")
    assert next(rows) == record(1, "a", [(0, 1)], "O")
    with pytest.raises(DataError, match="x: the gzip data is damaged or cut short"):
        list(rows)
