"""Texts from words, and where in them each word stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Joiner = Literal["", " "]


def joined(words: Sequence[str], joiner: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text of words, none of them empty, and the half-open span of characters of each.

    >>> joined(["New", "York"], " ")
    ('New York', ((0, 3), (4, 8)))
    """
    spans = []
    start = 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + len(joiner)
    return joiner.join(words), tuple(spans)
