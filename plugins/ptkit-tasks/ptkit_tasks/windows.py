"""Inputs that are longer than a row, as windows that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class Window(NamedTuple):
    """Half-open spans of words: those that a row holds, and those of them that it is asked for."""

    start: int
    end: int
    first: int
    behind: int


def word_windows(lengths: Sequence[int], room: int, overlap: int) -> list[Window]:
    """Windows of whole words with at most ``room`` tokens; each word is asked for in one of them.

    ``lengths``: the tokens of each word, none above ``room``. Two neighbours share at most
    ``overlap`` tokens. A word is asked for where it has most context, which is the smaller number
    of tokens on its two sides, as in BERT's `run_squad.py`; of equal windows the first. Windows
    asked for nothing are left out. No word at all gives one empty window.

    >>> word_windows([1, 1, 1, 1, 1, 1], room=4, overlap=2)
    [Window(start=0, end=4, first=0, behind=3), Window(start=2, end=6, first=3, behind=6)]
    """
    before = [0, *accumulate(lengths)]  # tokens before each word
    if before[-1] <= room:
        return [Window(0, len(lengths), 0, len(lengths))]
    spans = _spans(before, room, overlap)
    asked: list[list[int]] = [[] for _ in spans]
    oldest = 0
    for word in range(len(lengths)):
        while spans[oldest][1] <= word:
            oldest += 1
        best, most = oldest, -1
        for index in range(oldest, len(spans)):
            start, end = spans[index]
            if start > word:
                break
            context = min(before[word] - before[start], before[end] - before[word + 1])
            if context > most:
                best, most = index, context
        asked[best].append(word)
    return [
        Window(start, end, words[0], words[-1] + 1)
        for (start, end), words in zip(spans, asked, strict=True)
        if words
    ]


def _spans(before: Sequence[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """The words of each window; each is as long as it can be."""
    words = len(before) - 1
    spans: list[tuple[int, int]] = []
    start = end = 0
    while True:
        while end < words and before[end + 1] - before[start] <= room:
            end += 1
        spans.append((start, end))
        if end == words:
            return spans
        least = start + 1
        start = end
        while start > least and before[end] - before[start - 1] <= overlap:
            start -= 1
        while before[end + 1] - before[start] > room:  # or the next window would hold nothing new
            start += 1


def token_windows(tokens: int, room: int, stride: int, longest: int) -> list[range]:
    """Windows of ``room`` tokens, a stride apart, the last as long as what is left.

    Every piece of up to ``longest`` tokens that fits the room is whole in one of them; the stride
    is shortened where it wouldn't be.

    >>> token_windows(10, room=6, stride=4, longest=3)
    [range(0, 6), range(4, 10)]
    >>> token_windows(10, room=6, stride=4, longest=6)
    [range(0, 6), range(1, 7), range(2, 8), range(3, 9), range(4, 10)]
    """
    step = min(stride, room - min(longest, room) + 1)
    count = 1 + max(0, -(-(tokens - room) // step))
    return [range(i * step, min(i * step + room, tokens)) for i in range(count)]
