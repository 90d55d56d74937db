"""BIO tags, the entities that they mean, and tags that mean none."""

from __future__ import annotations

import re

import pytest

from ptkit import Origin, Span, TaggedRecord, bio_tags, entities, entity_spans

RECORD = TaggedRecord(
    origin=Origin("a.txt", 1), text="Ada Lovelace, in Rome", words=((0, 3), (4, 12), (17, 21))
)


def test_stray_and_changed_tags_begin_entities() -> None:
    tags = ["I-x", "I-y", "B-y", "I-y", "O", "I-y"]
    assert entity_spans(tags) == [
        Span(0, 1, "x"),
        Span(1, 2, "y"),
        Span(2, 4, "y"),
        Span(5, 6, "y"),
    ]


@pytest.mark.parametrize("tag", ["X-y", "B", "B-", "b-x", ""])
def test_what_is_no_bio_tag(tag: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tag!r} is not a BIO tag")):
        entity_spans(["O", tag])


def test_tags_of_spans_and_back() -> None:
    spans = [Span(0, 2, "x"), Span(2, 3, "x")]
    assert bio_tags(4, spans) == ("B-x", "I-x", "B-x", "O")
    assert entity_spans(bio_tags(4, spans)) == spans


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span(0, 2, "x"), Span(1, 3, "y")], "overlaps another"),
        ([Span(2, 4, "x")], "does not fit 3 words"),
        ([Span(1, 1, "x")], "does not fit 3 words"),
    ],
)
def test_spans_that_have_no_tags(spans: list[Span], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bio_tags(3, spans)


def test_entities_are_pieces_of_the_text() -> None:
    assert entities(RECORD, ("B-PER", "I-PER", "B-LOC")) == [
        {"type": "PER", "start": 0, "end": 12, "text": "Ada Lovelace"},
        {"type": "LOC", "start": 17, "end": 21, "text": "Rome"},
    ]
    with pytest.raises(ValueError, match="2 tags for 3 words"):
        entities(RECORD, ("O", "O"))
