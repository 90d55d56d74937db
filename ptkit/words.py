"""Texts that are read word by word: words with tokens of their own, and rows of whole words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from ptkit.errors import RecipeError
from ptkit.models import Tokenizer
from ptkit.records import Row, TaggedRecord


def word_rows(
    records: Sequence[TaggedRecord],
    labels: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    overlap: int | None = None,
) -> list[list[Row]]:
    """The rows of each record: one, or one a window of whole words where it is longer than that.

    ``labels``: for each record a label a word, or none where they aren't known. ``max_tokens``: of
    a row, specials included; a word longer than that is cut. ``overlap``: the tokens that two rows
    share at most, a quarter of ``max_tokens`` if not given.

    Each word is asked for in one row, that in which it has most context. A row's ``labels`` are of
    the words that it is asked for, and its ``places`` the first and the last token of each of them,
    -1 and -1 for a word that the tokenizer gives none, such as a zero-width space. Words are
    encoded as they are in running text, a blank before them included where the text has one; a
    token that is the blank alone is not a word's first. Equal words go through the tokenizer once.

    Example (start id 2; words 5 6 | 7; labels 1 and 0)::

        tokens (2, 5, 6, 7)   labels (1, 0)   places (1, 2, 3, 3)

    With ``max_tokens = 4`` and ``overlap = 2``, words 5 | 6 | 7 | 8 are read in two windows::

        tokens (2, 5, 6, 7)   labels (1, 0)   places (1, 1, 2, 2)
        tokens (2, 6, 7, 8)   labels (0, 0)   places (2, 2, 3, 3)

    Raises `RecipeError` if ``max_tokens``, which is a setting of that name, leaves no room for a
    word, `ValueError` for another number of labels than of words.
    """
    for record, own in zip(records, labels, strict=True):
        if own and len(own) != len(record.words):
            raise ValueError(f"{record.origin}: {len(own)} labels for {len(record.words)} words")
    specials = len(tokenizer.join(()).tokens)
    room = max_tokens - specials
    if room < 1:
        raise RecipeError(
            f"task.max_tokens = {max_tokens} leaves no room for a word: the specials of a row take "
            f"{specials}; raise it"
        )
    overlap = max_tokens // 4 if overlap is None else overlap
    return [
        _rows(words, own, tokenizer, room, overlap)
        for words, own in zip(encode_words(records, tokenizer), labels, strict=True)
    ]


def _rows(
    words: Sequence[Word], labels: Sequence[int], tokenizer: Tokenizer, room: int, overlap: int
) -> list[Row]:
    kept = [word.ids[:room] for word in words]
    rows = []
    for window in word_windows([len(ids) for ids in kept], room, overlap):
        within = range(window.start, window.end)
        joined = tokenizer.join([token for i in within for token in kept[i]])
        places: list[int] = []
        at = joined.first
        for i in within:
            size = len(kept[i])
            if window.first <= i < window.behind:
                first = min(words[i].first, size - 1)
                places += (at + first, at + size - 1) if size else (-1, -1)
            at += size
        asked = range(window.first, window.behind)
        rows.append(
            Row(
                joined.tokens,
                tuple(labels[window.first : window.behind]),
                joined.token_types,
                cut=sum(len(words[i].ids) - len(kept[i]) for i in asked),
                places=tuple(places),
            )
        )
    return rows


# ------------------------------------------------------------------------------------------ words


class Word(NamedTuple):
    """The ids of a word, and the first that is more than the blank before it.

    ``ids`` is empty for a word that the tokenizer gives no id, such as a zero-width space.
    """

    ids: tuple[int, ...]
    first: int


def encode_words(records: Sequence[TaggedRecord], tokenizer: Tokenizer) -> list[list[Word]]:
    """The words of each record as the tokenizer has them in running text.

    A record's first word is encoded as a text of its own, any other as one that continues a text:
    behind a blank where the text has white space before it, and without one where it hasn't, as
    between Chinese characters, which are never merged over the border of a word. Equal words are
    encoded once.

    Example (``▁`` marks a blank): the words "the", "cat" and "," of "the cat," are encoded as
    "the", " cat" and ","; with SentencePiece ``▁the``, ``▁cat`` and ``,``. A piece that is the
    blank alone, as ``▁ 猫`` may have, is not the word's first token.
    """
    blank = tuple(tokenizer.pieces(" "))
    split = [_split(record) for record in records]
    firsts = list(dict.fromkeys(words[0] for words in split if words))
    others = list(dict.fromkeys(word for words in split for word in words[1:]))

    def made(ids: Sequence[int]) -> Word:
        skipped = len(blank) if blank and tuple(ids[: len(blank)]) == blank else 0
        return Word(tuple(ids), skipped if skipped < len(ids) else 0)

    of_first = dict(zip(firsts, map(made, tokenizer.encode_batch(firsts)), strict=True))
    of_other = {word: made(tokenizer.pieces(word)) for word in others}
    return [
        [of_first[words[0]], *(of_other[word] for word in words[1:])] if words else []
        for words in split
    ]


def _split(record: TaggedRecord) -> list[str]:
    """The words of a record, all but the first with a blank where white space is before them."""
    text, behind = record.text, 0
    found: list[str] = []
    for start, end in record.words:
        blank = " " if found and start > behind and text[start - 1].isspace() else ""
        found.append(blank + text[start:end])
        behind = end
    return found


# ---------------------------------------------------------------------------------------- windows


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
