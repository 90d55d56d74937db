"""Tags and the entities that they mean: BIO tags of words, half-open spans of words, of characters.

The rules for tags that break the scheme are those of conlleval
(https://www.clips.uantwerpen.be/conll2000/chunking/) and seqeval: an I-x that continues nothing of
its type begins an entity.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypedDict

from ptkit.records import TaggedRecord

OUTSIDE = "O"


class Span(NamedTuple):
    """An entity as a half-open span of words."""

    start: int
    end: int
    type: str


class Entity(TypedDict):
    """An entity as a half-open span of characters, and its text; plain JSON."""

    type: str
    start: int
    end: int
    text: str


def entity_spans(tags: Iterable[str]) -> list[Span]:
    """The entities of BIO tags, in order. Raises `ValueError` for a tag that is not BIO.

    >>> entity_spans(["B-PER", "I-PER", "O", "I-LOC"])
    [Span(start=0, end=2, type='PER'), Span(start=3, end=4, type='LOC')]
    """
    found: list[Span] = []
    for index, tag in enumerate(tags):
        if tag == OUTSIDE:
            continue
        mark, dash, kind = tag.partition("-")
        if mark not in ("B", "I") or not dash or not kind:
            raise ValueError(f"{tag!r} is not a BIO tag: O, B-type or I-type")
        if mark == "I" and found and found[-1].end == index and found[-1].type == kind:
            found[-1] = found[-1]._replace(end=index + 1)
        else:
            found.append(Span(index, index + 1, kind))
    return found


def bio_tags(words: int, spans: Iterable[Span]) -> tuple[str, ...]:
    """The tags of so many words. Raises `ValueError` for spans that overlap or don't fit.

    >>> bio_tags(4, [Span(1, 3, "LOC")])
    ('O', 'B-LOC', 'I-LOC', 'O')
    """
    tags = [OUTSIDE] * words
    for span in spans:
        if not 0 <= span.start < span.end <= words:
            raise ValueError(f"{span} does not fit {words} words")
        if any(tag != OUTSIDE for tag in tags[span.start : span.end]):
            raise ValueError(f"{span} overlaps another")
        tags[span.start : span.end] = [f"I-{span.type}"] * (span.end - span.start)
        tags[span.start] = f"B-{span.type}"
    return tuple(tags)


def entities(record: TaggedRecord, tags: Sequence[str]) -> list[Entity]:
    """The entities of BIO ``tags``, one a word of ``record``, as pieces of its text."""
    if len(tags) != len(record.words):
        raise ValueError(f"{len(tags)} tags for {len(record.words)} words")
    found = []
    for span in entity_spans(tags):
        start, end = record.words[span.start][0], record.words[span.end - 1][1]
        found.append(Entity(type=span.type, start=start, end=end, text=record.text[start:end]))
    return found
