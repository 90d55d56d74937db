"""How a text becomes rows: words as tokens, windows where it is longer than a row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import ptkit


class Word(NamedTuple):
    """The ids of a word, and which of them is the first that is more than a blank."""

    ids: tuple[int, ...]
    first: int


class Window(NamedTuple):
    """Half-open spans of words: those in a row, those whose tags it is asked for."""

    start: int
    end: int
    first: int
    behind: int


def split_words(record: ptkit.TaggedRecord, tokenizer: ptkit.Tokenizer) -> list[Word]:
    """The words of a record as the tokenizer has them in running text.

    The first is encoded as a text of its own; the others continue one, with a blank
    before them where the text has white space there. So the words of "the cat," are
    encoded as "the", " cat" and ",", and Chinese characters never merge over the border
    of a word.
    """
    blank = tuple(tokenizer.pieces(" "))
    words: list[Word] = []
    behind = 0
    for start, end in record.words:
        text = record.text[start:end]
        if not words:
            ids = tuple(tokenizer.encode(text))
        else:
            spaced = start > behind and record.text[start - 1].isspace()
            ids = tuple(tokenizer.pieces(" " + text if spaced else text))
        # SentencePiece may give the blank a piece of its own, which says nothing
        skipped = len(blank) if blank and ids[: len(blank)] == blank else 0
        words.append(Word(ids, skipped if skipped < len(ids) else 0))
        behind = end
    return words


def windows(sizes: Sequence[int], room: int, overlap: int) -> list[Window]:
    """Windows of whole words of at most ``room`` tokens; a word is asked for in one.

    ``sizes``: the tokens of each word, none above ``room``. Neighbours share at most
    ``overlap`` tokens; of the words that they share, the first half is asked for in the
    earlier one, so that a word is seen with what stands on both sides of it.

    >>> [tuple(window) for window in windows([1, 1, 1, 1, 1, 1], room=4, overlap=2)]
    [(0, 4, 0, 3), (2, 6, 3, 6)]
    """
    before = [0, *accumulate(sizes)]  # tokens in front of each word
    spans: list[tuple[int, int]] = []
    start = end = 0
    while True:
        while end < len(sizes) and before[end + 1] - before[start] <= room:
            end += 1
        spans.append((start, end))
        if end == len(sizes):
            break
        least, start = start + 1, end
        while start > least and before[end] - before[start - 1] <= overlap:
            start -= 1
        while before[end + 1] - before[start] > room:  # one word more must fit
            start += 1
    cuts = [(right[0] + left[1]) // 2 for left, right in pairwise(spans)]
    asked = zip([0, *cuts], [*cuts, len(sizes)], strict=True)
    return [Window(*span, *own) for span, own in zip(spans, asked, strict=True)]
