"""Words of a text, encoded one by one, so that every word has tokens of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import ptkit


class Word(NamedTuple):
    """The ids of a word, and the first that is more than the blank before it.

    ``ids`` is empty for a word that the tokenizer gives no id, such as a zero-width space.
    """

    ids: tuple[int, ...]
    first: int


def encode_words(
    records: Sequence[ptkit.TaggedRecord], tokenizer: ptkit.Tokenizer
) -> list[list[Word]]:
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


def _split(record: ptkit.TaggedRecord) -> list[str]:
    """The words of a record, all but the first with a blank where white space is before them."""
    text, behind = record.text, 0
    found: list[str] = []
    for start, end in record.words:
        blank = " " if found and start > behind and text[start - 1].isspace() else ""
        found.append(blank + text[start:end])
        behind = end
    return found
