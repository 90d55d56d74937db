"""Windows over long inputs: nothing is lost, and everything is read where it has most context."""

from __future__ import annotations

import doctest
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from ptkit_tasks import extraction, tags, windows
from ptkit_tasks.windows import token_windows


def test_the_examples_run() -> None:
    for module in (windows, tags, extraction):
        result = doctest.testmod(module)
        assert (result.attempted > 0, result.failed) == (True, 0), module.__name__


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
