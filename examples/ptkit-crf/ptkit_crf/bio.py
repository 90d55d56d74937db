"""Which BIO tag may stand behind which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

OUTSIDE = "O"


def bio_labels(types: Iterable[str]) -> list[str]:
    """All tags of some entity types.

    >>> bio_labels(["LOC", "PER"])
    ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
    """
    return [OUTSIDE, *(f"{mark}-{kind}" for kind in types for mark in "BI")]


def may_begin(tag: str) -> bool:
    """Whether a text may begin with the tag: with any but an I-x."""
    return not tag.startswith("I-")


def may_follow(before: str, tag: str) -> bool:
    """Whether ``tag`` may come right behind ``before``: I-x behind B-x and I-x only."""
    return may_begin(tag) or before in (f"B-{tag[2:]}", tag)


def barred(labels: Sequence[str]) -> tuple[list[bool], list[list[bool]]]:
    """[n] tags that no text begins with; [n, n] pairs that never come, row to column.

    >>> first, after = barred(["O", "B-x", "I-x"])
    >>> first
    [False, False, True]
    >>> after
    [[False, False, True], [False, False, False], [False, False, False]]
    """
    first = [not may_begin(tag) for tag in labels]
    return first, [[not may_follow(a, b) for b in labels] for a in labels]
