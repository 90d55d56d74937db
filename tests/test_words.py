"""Rows of texts that are read word by word: by hand, in windows, and what they refuse."""

from __future__ import annotations

import doctest
import re
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ptkit
from ptkit import words as module
from ptkit.testing import WordTokenizer
from ptkit.words import Window, Word, encode_words, word_windows

TOKENIZER = WordTokenizer(["we", "saw", "red", "hat", "-", "下", "雨"])
WE, SAW, RED, HAT, DASH, XIA, YU = range(3, 10)


def record(text: str, words: Sequence[str] | None = None, line: int = 1) -> ptkit.TaggedRecord:
    """The words of a text, split at blanks if they aren't given."""
    spans, behind = [], 0
    for word in text.split() if words is None else words:
        start = text.index(word, behind)
        behind = start + len(word)
        spans.append((start, behind))
    return ptkit.TaggedRecord(
        origin=ptkit.Origin("train.conll", line), text=text, words=tuple(spans)
    )


def rows_of(
    given_: ptkit.TaggedRecord, labels: Sequence[int] = (), max_tokens: int = 16, overlap: int = 2
) -> list[ptkit.Row]:
    (rows,) = ptkit.word_rows([given_], [labels], TOKENIZER, max_tokens=max_tokens, overlap=overlap)
    return rows


def test_the_examples_run() -> None:
    found = doctest.testmod(module)
    assert (found.attempted > 0, found.failed) == (True, 0)


# ------------------------------------------------------------------------------------------ rows


def test_a_row_by_hand() -> None:
    rows = rows_of(record("we saw red-hat"), (0, 0, 1))
    assert rows == [ptkit.Row((2, WE, SAW, RED, DASH, HAT), (0, 0, 1), places=(1, 1, 2, 2, 3, 5))]


def test_rows_of_several_records() -> None:
    """The labels of one are known, of the other not."""
    both = [record("we saw"), record("hat")]
    assert ptkit.word_rows(both, [(1, 0), ()], TOKENIZER, max_tokens=9) == [
        [ptkit.Row((2, WE, SAW), (1, 0), places=(1, 1, 2, 2))],
        [ptkit.Row((2, HAT), (), places=(1, 1))],
    ]


def test_windows_of_a_long_text() -> None:
    """The docstring's: three words a row, two of them shared."""
    assert rows_of(record("we saw red hat"), (1, 0, 0, 1), max_tokens=4) == [
        ptkit.Row((2, WE, SAW, RED), (1, 0), places=(1, 1, 2, 2)),
        ptkit.Row((2, SAW, RED, HAT), (0, 1), places=(2, 2, 3, 3)),
    ]


def test_the_overlap_is_a_quarter_if_not_given() -> None:
    text = record(" ".join(["we"] * 20))
    (rows,) = ptkit.word_rows([text], [()], TOKENIZER, max_tokens=9)
    assert rows == rows_of(text, max_tokens=9, overlap=2)
    assert rows != rows_of(text, max_tokens=9, overlap=3)


def test_a_word_longer_than_a_row_is_cut_and_counted() -> None:
    first, long, last = rows_of(record("we red-red-red saw"), (0, 1, 0), max_tokens=4, overlap=0)
    assert (first.tokens, first.cut) == ((2, WE), 0)
    assert long == ptkit.Row((2, RED, DASH, RED), (1,), cut=2, places=(1, 3))
    assert (last.tokens, last.cut) == ((2, SAW), 0)


def test_a_word_without_a_token_has_no_place() -> None:
    (row,) = rows_of(record("下\u3000雨", ["下", "\u3000", "雨"]), (1, 2, 2))
    assert row == ptkit.Row((2, XIA, YU), (1, 2, 2), places=(1, 1, -1, -1, 2, 2))


def test_rows_without_room() -> None:
    with pytest.raises(ptkit.RecipeError) as caught:
        rows_of(record("we"), max_tokens=1)
    assert caught.value.lines == (
        "task.max_tokens = 1 leaves no room for a word: the specials of a row take 1; raise it",
    )


def test_labels_for_other_words() -> None:
    with pytest.raises(ValueError, match=r"^train\.conll:1: 1 labels for 2 words$"):
        rows_of(record("we saw"), (0,))
    with pytest.raises(ValueError, match="shorter"):
        ptkit.word_rows([record("we")], [], TOKENIZER, max_tokens=4)


# ------------------------------------------------------------------------------------------ words


class PieceTokenizer(ptkit.Tokenizer):
    """As SentencePiece: a blank is ▁, a text begins with one, pieces have two letters at most."""

    pad_id, eos_id, vocab_size = 0, 1, 1000
    fingerprint = "pieces"

    def __init__(self) -> None:
        self.known: list[str] = []
        self.asked: list[str] = []

    def _ids(self, text: str) -> list[int]:
        found = re.findall("▁?[a-z]{1,2}|▁|.", text.replace(" ", "▁"))
        self.known += [piece for piece in dict.fromkeys(found) if piece not in self.known]
        return [self.known.index(piece) for piece in found]

    def encode(self, text: str) -> list[int]:
        self.asked.append(text)
        return self._ids(" " + text)

    def pieces(self, text: str) -> list[int]:
        self.asked.append(text)
        return self._ids(text)

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.known[i] for i in ids)


def test_words_are_encoded_as_in_running_text_and_once() -> None:
    tokenizer = PieceTokenizer()
    text = "the cat, the\n\u3000猫猫 cat"
    words = ["the", "cat", ",", "the", "猫", "猫", "cat"]
    one, two = encode_words([record(text, words), record("the cat")], tokenizer)
    shown = [[tokenizer.known[i] for i in word.ids] for word in one]
    assert shown == [
        ["▁th", "e"],
        ["▁ca", "t"],
        [","],
        ["▁th", "e"],
        ["▁", "猫"],
        ["猫"],
        ["▁ca", "t"],
    ]
    assert [word.first for word in one] == [0, 0, 0, 0, 1, 0, 0]  # ▁ alone is not the word
    assert two == one[:2]
    assert tokenizer.asked == [" ", "the", " cat", ",", " the", " 猫", "猫"]


def test_what_lies_between_words_is_left_out() -> None:
    bracketed = record("we (saw) it", ["we", "saw", "it"])
    _, saw, it = encode_words([bracketed], PieceTokenizer())[0]
    tokenizer = PieceTokenizer()
    encode_words([bracketed], tokenizer)
    assert tokenizer.asked == [" ", "we", "saw", " it"]
    assert len(saw.ids) == 2
    assert len(it.ids) == 1


def test_white_space_that_is_a_word_is_encoded_once() -> None:
    tokenizer = PieceTokenizer()
    encode_words([record("下 雨", ["下", " ", "雨"])], tokenizer)
    assert tokenizer.asked == [" ", "下", " ", "雨"]


def test_a_record_without_words_has_none() -> None:
    assert encode_words([record(""), record("we")], TOKENIZER) == [[], [Word((WE,), 0)]]


def test_the_blank_before_a_word_does_not_stand_for_it() -> None:
    tokenizer = PieceTokenizer()
    ((row,),) = ptkit.word_rows(
        [record("we 猫猫", ["we", "猫", "猫"])], [()], tokenizer, max_tokens=9
    )
    assert [tokenizer.known[i] for i in row.tokens] == ["▁we", "▁", "猫", "猫"]
    assert row.places == (0, 0, 2, 2, 3, 3)


# ---------------------------------------------------------------------------------------- windows


def test_what_fits_is_one_window() -> None:
    assert word_windows([2, 1, 3], room=6, overlap=2) == [Window(0, 3, 0, 3)]
    assert word_windows([], room=6, overlap=2) == [Window(0, 0, 0, 0)]
    assert word_windows([0, 0], room=1, overlap=0) == [Window(0, 2, 0, 2)]


def test_windows_by_hand() -> None:
    # tokens: a a a | b | c c | d | e e e; windows of 6 tokens that share 3 at most
    assert word_windows([3, 1, 2, 1, 3], room=6, overlap=3) == [
        Window(0, 3, 0, 2),  # a b c: b has 2 tokens behind it, c none
        Window(1, 4, 2, 3),  # b c d: c has 1 token on either side
        Window(2, 5, 3, 5),  # c d e: d has 2 before it
    ]
    # the third word has one token behind it in the first window, and one before it in the other
    assert word_windows([1] * 5, room=4, overlap=3) == [Window(0, 4, 0, 3), Window(1, 5, 3, 5)]
    # without overlap, each word is in one window
    assert word_windows([3, 1, 2, 1, 3], room=6, overlap=0) == [
        Window(0, 3, 0, 3),
        Window(3, 5, 3, 5),
    ]
    # a window goes back less than it may where the next word would not fit
    assert word_windows([1, 1, 1, 4], room=4, overlap=3)[-1] == Window(3, 4, 3, 4)


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], int, int]:
    room = draw(st.integers(1, 12))
    lengths = draw(st.lists(st.integers(0, room), max_size=40))
    return lengths, room, draw(st.integers(0, 14))


@given(texts())
def test_every_word_is_asked_for_once_where_it_has_most_context(
    text: tuple[list[int], int, int],
) -> None:
    lengths, room, overlap = text
    found = word_windows(lengths, room, overlap)
    asked = [word for w in found for word in range(w.first, w.behind)]
    assert asked == list(range(len(lengths)))

    def context(word: int, start: int, end: int) -> int:
        return min(sum(lengths[start:word]), sum(lengths[word + 1 : end]))

    for w in found:
        assert w.start <= w.first <= w.behind <= w.end
        assert sum(lengths[w.start : w.end]) <= room
        for word in range(w.first, w.behind):
            others = [o for o in found if o.start <= word < o.end]
            most = max(context(word, o.start, o.end) for o in others)
            assert context(word, w.start, w.end) == most
    for one, two in pairwise(found):
        assert sum(lengths[two.start : one.end]) <= overlap
        assert one.end < two.end
