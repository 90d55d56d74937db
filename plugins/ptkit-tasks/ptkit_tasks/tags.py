"""Choosing tags for words: the best well-formed BIO tags, and tags for words without a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

import ptkit

OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class EveryWord:
    """The constant prediction of a tag: as many as a record has words."""

    tag: str

    def __call__(self, record: ptkit.Record) -> tuple[str, ...]:
        assert isinstance(record, ptkit.TaggedRecord)
        return (self.tag,) * len(record.words)

    def __str__(self) -> str:
        return f"{self.tag} for every word"


def is_bio(tag: str) -> bool:
    return tag == OUTSIDE or (tag[:2] in ("B-", "I-") and len(tag) > 2)


def fill_tags(tags: Sequence[str | None], labels: Sequence[str]) -> tuple[str, ...]:
    """``tags`` with one for every word that has None, because the tokenizer gives it no token.

    Inside an entity of BIO tags that goes on behind it, it is part of it. Elsewhere it is O, or,
    where no label is O, as the word before it (the one behind it at the beginning).

    >>> fill_tags(["B-x", None, "I-x", None, "B-x"], ["O", "B-x", "I-x"])
    ('B-x', 'I-x', 'I-x', 'O', 'B-x')
    """
    following: str | None = None
    behind: list[str | None] = []
    for tag in reversed(tags):
        behind.append(following)
        following = tag or following
    found: list[str] = []
    for tag, after in zip(tags, reversed(behind), strict=True):
        if tag is None:
            before = found[-1] if found else None
            kind = (after or "").removeprefix("I-")
            if after == f"I-{kind}" and before in (f"B-{kind}", f"I-{kind}"):
                tag = after
            else:
                tag = OUTSIDE if OUTSIDE in labels else before or after or labels[0]
        found.append(tag)
    return tuple(found)


def best_bio(scores: npt.NDArray[np.float32], labels: Sequence[str]) -> list[int]:
    """The labels of words with the highest sum of ``scores`` [w, n] among well-formed BIO tags.

    Viterbi's algorithm; I-x may only follow B-x or I-x.
    """
    if not len(scores):
        return []
    inside = np.array([label.startswith("I-") for label in labels])
    kinds = [label[2:] for label in labels]
    fits = np.array(
        [[a != OUTSIDE and x == y for y in kinds] for a, x in zip(labels, kinds, strict=True)]
    )
    barred = np.where(inside & ~fits, -np.inf, 0.0)  # [n, n], from row to column
    best = np.where(inside, -np.inf, scores[0].astype(np.float64))
    back = []
    for emission in scores[1:]:
        totals = best[:, None] + barred
        back.append(totals.argmax(0))
        best = totals.max(0) + emission
    found = [int(best.argmax())]
    for before in reversed(back):
        found.append(int(before[found[-1]]))
    return found[::-1]
