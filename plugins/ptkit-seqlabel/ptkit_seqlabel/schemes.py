"""Tagging schemes and their conversion to BIO, the tags of `ptkit.TaggedRecord`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from ptkit import bio_tags, entity_spans

Scheme = Literal["bio", "iob1", "bioes", "bmes", "none"]

OUTSIDE = "O"


class Marks(NamedTuple):
    """What a scheme calls the parts of an entity. ``single`` and ``end`` are "" where it has no
    mark for them."""

    begin: str
    inside: str
    end: str = ""
    single: str = ""


MARKS = {
    "bio": Marks("B", "I"),
    "iob1": Marks("B", "I"),
    "bioes": Marks("B", "I", "E", "S"),
    "bmes": Marks("B", "M", "E", "S"),
}


class TagError(Exception):
    """A tag that its scheme doesn't allow there; ``index``: which one of the sequence."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def check_strict(scheme: Scheme, *, strict: bool) -> None:
    """That ``strict`` means something. Raises `ValueError`."""
    if strict and scheme != "bio":
        raise ValueError(f'strict = true is for scheme = "bio", got {scheme!r}; remove it')


def to_bio(tags: Sequence[str], scheme: Scheme, *, strict: bool) -> tuple[str, ...]:
    """The same entities in BIO; the tags as they are for the scheme "none".

    ``strict``: whether an I-x of "bio" that continues nothing of its type is an error. Otherwise it
    begins an entity, as conlleval and seqeval read it. Raises `TagError`.

    >>> to_bio(["S-LOC", "O", "B-PER", "E-PER"], "bioes", strict=False)
    ('B-LOC', 'O', 'B-PER', 'I-PER')
    >>> to_bio(["I-LOC", "B-LOC", "I-LOC"], "iob1", strict=False)
    ('B-LOC', 'B-LOC', 'I-LOC')
    """
    if scheme == "none":
        for index, tag in enumerate(tags):
            if not tag:
                raise TagError(index, "the tag is empty; give the word a tag")
        return tuple(tags)
    marks = MARKS[scheme]
    parts = [_parted(index, tag, scheme) for index, tag in enumerate(tags)]
    if marks.end:
        _check_borders(parts, marks, scheme)
        renamed = {marks.single: "B", marks.end: "I", marks.inside: "I"}
        tags = [f"{renamed.get(m, m)}-{kind}" if kind else OUTSIDE for m, kind in parts]
    elif strict and scheme == "bio":
        for index, ((_, before), (mark, kind)) in enumerate(pairwise([(OUTSIDE, ""), *parts])):
            if mark == marks.inside and kind != before:
                raise TagError(
                    index,
                    f"{mark}-{kind} continues no entity of its type; begin it with "
                    f"{marks.begin}-{kind}, or set dataset.strict = false",
                )
    return bio_tags(len(tags), entity_spans(tags))


def _parted(index: int, tag: str, scheme: str) -> tuple[str, str]:
    """The mark and the type of a tag; the type of O is ""."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    mark, dash, kind = tag.partition("-")
    marks = [found for found in MARKS[scheme] if found]
    if mark not in marks or not dash or not kind or not kind.isprintable():
        known = ", ".join(f"{found}-type" for found in marks)
        raise TagError(
            index,
            f"{tag!r} is no tag of the scheme {scheme!r}, which has {OUTSIDE}, {known}; mend the "
            "tag, or set dataset.scheme",
        )
    return mark, kind


def _check_borders(parts: Sequence[tuple[str, str]], marks: Marks, scheme: str) -> None:
    """Every entity must be B M… E or S, with one type."""
    follows = (marks.inside, marks.end)
    before, kind_before = OUTSIDE, ""
    for index, (mark, kind) in enumerate([*parts, (OUTSIDE, "")]):
        open_before = before in (marks.begin, marks.inside)
        continues = mark in follows
        if open_before and not (continues and kind == kind_before):
            raise TagError(
                index - 1,
                f"{before}-{kind_before} must be followed by {marks.inside}-{kind_before} or "
                f"{marks.end}-{kind_before} in the scheme {scheme!r}, got "
                f"{_shown(mark, kind, ended=index == len(parts))}; mend the tags",
            )
        if continues and not open_before:
            raise TagError(
                index,
                f"{mark}-{kind} must follow {marks.begin}-{kind} or {marks.inside}-{kind} in the "
                f"scheme {scheme!r}, got {_shown(before, kind_before, ended=index == 0)}; mend the "
                "tags",
            )
        before, kind_before = mark, kind


def _shown(mark: str, kind: str, *, ended: bool) -> str:
    if ended:
        return "the border of the sentence"
    return f"{mark}-{kind}" if kind else mark
