"""Windows over long inputs: nothing is lost, and everything is read where it has most context."""

from __future__ import annotations

import doctest
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from ptkit_tasks import extraction, tags, windows
from ptkit_tasks.windows import Window, token_windows, word_windows


def test_the_examples_run() -> None:
    for module in (windows, tags, extraction):
        result = doctest.testmod(module)
        assert (result.attempted > 0, result.failed) == (True, 0), module.__name__


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


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 25), st.integers(1, 25))
def test_every_piece_that_fits_is_whole_in_a_window(
    tokens: int, room: int, stride: int, longest: int
) -> None:
    found = token_windows(tokens, room, stride, longest)
    assert all(len(window) <= room for window in found)
    assert {token for window in found for token in window} == set(range(tokens))
    for size in range(1, min(longest, room, tokens) + 1):
        for start in range(tokens - size + 1):
            piece = range(start, start + size)
            assert any(w.start <= piece.start and piece.stop <= w.stop for w in found)
    steps = {two.start - one.start for one, two in pairwise(found)}
    assert len(steps) <= 1
    assert steps <= set(range(1, stride + 1))


def test_a_window_holds_something_new() -> None:
    assert token_windows(7, room=6, stride=2, longest=1) == [range(6), range(2, 7)]
    assert token_windows(6, room=6, stride=2, longest=1) == [range(6)]
    assert token_windows(0, room=6, stride=2, longest=1) == [range(0)]
