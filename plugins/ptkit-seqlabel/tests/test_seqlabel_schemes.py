from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptkit_seqlabel.schemes import TagError, to_bio

from ptkit import Span, bio_tags, entity_spans


def bio(tags: str, scheme: str, *, strict: bool = False) -> str:
    return " ".join(to_bio(tags.split(), scheme, strict=strict))


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("bio", "B-A I-A O B-A B-A", "B-A I-A O B-A B-A"),
        ("bio", "O I-A I-A I-B", "O B-A I-A B-B"),  # seqeval's reading
        ("bio", "B-A I-B", "B-A B-B"),
        ("iob1", "I-A I-A O I-A B-A I-A I-B", "B-A I-A O B-A B-A I-A B-B"),
        ("iob1", "B-A I-A", "B-A I-A"),
        ("bioes", "S-A B-A E-A B-A I-A I-A E-A O S-B", "B-A B-A I-A B-A I-A I-A I-A O B-B"),
        ("bmes", "S-A B-A E-A B-A M-A E-A O", "B-A B-A I-A B-A I-A I-A O"),
        ("none", "NNP I-NP X-", "NNP I-NP X-"),
        ("bio", "B-PER.NAM I-PER.NAM B-a-b", "B-PER.NAM I-PER.NAM B-a-b"),
        ("bio", "", ""),
        ("bioes", "", ""),
    ],
)
def test_conversion(scheme, tags, expected):
    assert bio(tags, scheme) == expected


def test_strict_takes_good_tags():
    assert bio("B-A I-A O B-B I-B I-B", "bio", strict=True) == "B-A I-A O B-B I-B I-B"
    assert bio("I-A B-A", "iob1", strict=True) == "B-A B-A"  # nothing there can be wrong


BAD = [
    (
        "bio",
        "O X-A",
        1,
        "'X-A' is no tag of the scheme 'bio', which has O, B-type, I-type; mend the tag, or set "
        "dataset.scheme",
    ),
    ("bio", "O S-A", 1, "'S-A' is no tag of the scheme 'bio', "),
    ("bio", "B-", 0, "'B-' is no tag of the scheme 'bio', "),
    ("bio", "B", 0, "'B' is no tag of the scheme 'bio', "),
    ("bio", "B-\u200b", 0, "'B-\\u200b' is no tag of the scheme 'bio', "),
    ("bio", "o", 0, "'o' is no tag of the scheme 'bio', "),
    ("iob1", "E-A", 0, "'E-A' is no tag of the scheme 'iob1', which has O, B-type, I-type; "),
    ("bioes", "M-A", 0, "'M-A' is no tag of the scheme 'bioes', which has O, B-type, I-type, "),
    ("bmes", "I-A", 0, "which has O, B-type, M-type, E-type, S-type; "),
    (
        "bioes",
        "O B-A O",
        1,
        "B-A must be followed by I-A or E-A in the scheme 'bioes', got O; mend the tags",
    ),
    ("bioes", "B-A S-A", 0, "B-A must be followed by I-A or E-A in the scheme 'bioes', got S-A; "),
    ("bioes", "B-A E-B", 0, "B-A must be followed by I-A or E-A in the scheme 'bioes', got E-B; "),
    (
        "bioes",
        "B-A I-A",
        1,
        "I-A must be followed by I-A or E-A in the scheme 'bioes', got the border of the sentence",
    ),
    (
        "bioes",
        "S-A E-A",
        1,
        "E-A must follow B-A or I-A in the scheme 'bioes', got S-A; mend the tags",
    ),
    ("bmes", "M-A E-A", 0, "M-A must follow B-A or M-A in the scheme 'bmes', got the border of"),
    ("bmes", "B-A E-A E-A", 2, "E-A must follow B-A or M-A in the scheme 'bmes', got E-A; mend"),
]


@pytest.mark.parametrize(("scheme", "tags", "index", "message"), BAD, ids=range(len(BAD)))
def test_bad_tags(scheme, tags, index, message):
    with pytest.raises(TagError) as caught:
        to_bio(tags.split(), scheme, strict=False)
    assert caught.value.index == index
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "index"), [("I-A", 0), ("O I-A", 1), ("B-B I-A", 1), ("B-A I-A I-B", 2)]
)
def test_strict_refuses_stray_tags(tags, index):
    with pytest.raises(TagError) as caught:
        to_bio(tags.split(), "bio", strict=True)
    assert caught.value.index == index
    kind = tags[-1]
    assert str(caught.value) == (
        f"I-{kind} continues no entity of its type; begin it with B-{kind}, or set "
        "dataset.strict = false"
    )


def test_an_empty_tag():
    with pytest.raises(TagError, match="the tag is empty; give the word a tag"):
        to_bio(["NN", ""], "none", strict=False)


@st.composite
def entities(draw: st.DrawFn) -> tuple[int, list[Span]]:
    """A number of words and entities in them, some next to each other."""
    spans, at = [], 0
    for gap, size, kind in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from("AB")))
    ):
        spans.append(Span(at + gap, at + gap + size, kind))
        at += gap + size
    return at + draw(st.integers(0, 2)), spans


def written(words: int, spans: list[Span], marks: str) -> list[str]:
    """Tags with the marks begin, inside, end, single."""
    begin, inside, end, single = marks
    tags = ["O"] * words
    for span in spans:
        size = span.end - span.start
        parts = [single] if size == 1 else [begin, *[inside] * (size - 2), end]
        tags[span.start : span.end] = [f"{part}-{span.type}" for part in parts]
    return tags


def in_iob1(words: int, spans: list[Span]) -> list[str]:
    tags = ["O"] * words
    for index, span in enumerate(spans):
        tags[span.start : span.end] = [f"I-{span.type}"] * (span.end - span.start)
        before = spans[index - 1] if index else None
        if before and (before.end, before.type) == (span.start, span.type):
            tags[span.start] = f"B-{span.type}"
    return tags


@settings(deadline=None)
@given(entities())
def test_every_scheme_gives_the_same_entities(case):
    words, spans = case
    expected = bio_tags(words, spans)
    assert to_bio(expected, "bio", strict=True) == expected
    assert to_bio(in_iob1(words, spans), "iob1", strict=False) == expected
    assert to_bio(written(words, spans, "BIES"), "bioes", strict=False) == expected
    assert to_bio(written(words, spans, "BMES"), "bmes", strict=False) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])))
def test_a_lenient_reading_keeps_seqevals_entities(tags):
    sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    found = entity_spans(to_bio(tags, "bio", strict=False))
    expected = sequence_labeling.get_entities(tags)
    assert [(span.type, span.start, span.end - 1) for span in found] == expected
