"""Words as tokens, and the windows of long texts."""

from __future__ import annotations

import doctest
import re
from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import ptkit
import pytest

from ptkit_crf import bio, rows
from ptkit_crf.rows import Window, split_words, windows


class PieceTokenizer(ptkit.Tokenizer):
    """As SentencePiece: a blank is ▁, a text begins with one, pieces of two letters."""

    pad_id, eos_id, vocab_size = 0, 1, 1000
    fingerprint = "pieces"

    def __init__(self) -> None:
        self.known: list[str] = []

    def encode(self, text: str) -> list[int]:
        return self.pieces(" " + text)

    def pieces(self, text: str) -> list[int]:
        found = re.findall("▁?[a-z]{1,2}|▁|.", text.replace(" ", "▁"))
        self.known += [x for x in dict.fromkeys(found) if x not in self.known]
        return [self.known.index(piece) for piece in found]

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.known[i] for i in ids)


def test_words_are_encoded_as_in_running_text() -> None:
    tokenizer = PieceTokenizer()
    text, spans, behind = "the cat, the\u3000猫猫", [], 0
    for word in ("the", "cat", ",", "the", "猫", "猫"):
        start = text.index(word, behind)
        behind = start + len(word)
        spans.append((start, behind))
    origin = ptkit.Origin("a.conll", 1)
    record = ptkit.TaggedRecord(origin=origin, text=text, words=tuple(spans))
    words = split_words(record, tokenizer)
    shown = [[tokenizer.known[i] for i in word.ids] for word in words]
    assert shown == [
        ["▁th", "e"],
        ["▁ca", "t"],
        [","],
        ["▁th", "e"],
        ["▁", "猫"],
        ["猫"],
    ]
    # the blank alone does not stand for the word behind it
    assert [word.first for word in words] == [0, 0, 0, 0, 1, 0]


def test_windows_by_hand() -> None:
    """Six words of a token, four a row, two shared: each is seen beside others."""
    assert windows([1] * 6, 4, 2) == [Window(0, 4, 0, 3), Window(2, 6, 3, 6)]
    assert windows([1, 1], 4, 2) == [Window(0, 2, 0, 2)]
    assert windows([], 4, 2) == [Window(0, 0, 0, 0)]
    # the second word needs the whole row, so nothing is shared
    assert windows([1, 4, 1], 4, 2) == [
        Window(0, 1, 0, 1),
        Window(1, 2, 1, 2),
        Window(2, 3, 2, 3),
    ]


@pytest.mark.parametrize("room", [3, 4, 5, 9])
@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_every_word_is_asked_for_once(room: int, overlap: int) -> None:
    sizes = [1, 3, 0, 2, 2, 1, 1, 3, 0, 0, 1, 2, 1, 1, 1, 2, 3]
    found = windows(sizes, room, overlap)
    asked = [word for w in found for word in range(w.first, w.behind)]
    assert asked == list(range(len(sizes)))
    for window in found:
        assert window.start <= window.first < window.behind <= window.end
        assert sum(sizes[window.start : window.end]) <= room
    for left, right in pairwise(found):
        assert sum(sizes[right.start : left.end]) <= overlap


@pytest.mark.parametrize("module", [bio, rows])
def test_the_examples_of_the_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
