"""Tags for words: encoding by hand, losses against torch's, entities and tags that come back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ptkit_tasks.tags import best_bio, fill_tags
from ptkit_tasks.token_classification import Tagging, TokenClassification
from pydantic import ValidationError

import ptkit
from ptkit.testing import WordTokenizer, check_task_head

RunToy = Callable[..., ptkit.RunResult]
BIO = ("O", "B-x", "I-x")
TOKENIZER = WordTokenizer(["we", "saw", "red", "hat", "-", "下", "雨"])
WE, SAW, RED, HAT, DASH, XIA, YU = range(3, 10)


def record(
    text: str, tags: Sequence[str] | None = None, words: Sequence[str] | None = None, line: int = 1
) -> ptkit.TaggedRecord:
    """The words of a text, split at blanks if they aren't given."""
    spans, behind = [], 0
    for word in text.split() if words is None else words:
        start = text.index(word, behind)
        behind = start + len(word)
        spans.append((start, behind))
    return ptkit.TaggedRecord(
        origin=ptkit.Origin("train.conll", line),
        text=text,
        words=tuple(spans),
        tags=None if tags is None else tuple(tags),
    )


def entity_head(labels: Sequence[str] = BIO, **settings: Any) -> TokenClassification:
    return TokenClassification(TokenClassification.Settings(**settings), labels)


def encoded(rows: Sequence[ptkit.Row]) -> list[ptkit.EncodedRow]:
    return [ptkit.EncodedRow(row, 0, part) for part, row in enumerate(rows)]


# ------------------------------------------------------------------------------------ rows


def test_a_row_by_hand() -> None:
    rows = entity_head().encode(record("we saw red-hat", ["O", "O", "B-x"]), TOKENIZER)
    assert rows == [ptkit.Row((2, WE, SAW, RED, DASH, HAT), (0, 0, 1), places=(1, 1, 2, 2, 3, 5))]


def test_rows_without_tags_have_places_and_no_labels() -> None:
    row = entity_head().encode(record("we saw"), TOKENIZER)[0]
    assert (row.tokens, row.labels, row.places) == ((2, WE, SAW), (), (1, 1, 2, 2))


def test_windows_by_hand() -> None:
    """The docstring's: three words a row, two of them shared."""
    head = entity_head(max_tokens=4, overlap=2)
    tags = ["B-x", "O", "O", "B-x"]
    rows = head.encode(record("we saw red hat", tags), TOKENIZER)
    assert rows == [
        ptkit.Row((2, WE, SAW, RED), (1, 0), places=(1, 1, 2, 2)),
        ptkit.Row((2, SAW, RED, HAT), (0, 1), places=(2, 2, 3, 3)),
    ]


def test_the_overlap_is_a_quarter_if_not_given() -> None:
    text = " ".join(["we"] * 20)
    given_ = entity_head(max_tokens=9, overlap=2).encode(record(text), TOKENIZER)
    assert entity_head(max_tokens=9).encode(record(text), TOKENIZER) == given_
    assert len(given_) > 2


def test_a_word_longer_than_a_row_is_cut_and_counted() -> None:
    text = "we red-red-red saw"
    head = entity_head(max_tokens=4, overlap=0)
    first, long, last = head.encode(record(text, ["O", "B-x", "O"]), TOKENIZER)
    assert (first.tokens, first.cut) == ((2, WE), 0)
    assert long == ptkit.Row((2, RED, DASH, RED), (1,), cut=2, places=(1, 3))
    assert (last.tokens, last.cut) == ((2, SAW), 0)


def test_a_word_without_a_token_is_not_trained_on() -> None:
    row = entity_head().encode(
        record("下\u3000雨", ["B-x", "I-x", "I-x"], words=["下", "\u3000", "雨"]), TOKENIZER
    )[0]
    assert row.tokens == (2, XIA, YU)
    assert row.labels == (1, ptkit.IGNORE, 2)
    assert row.places == (1, 1, -1, -1, 2, 2)


# ------------------------------------------------------------------------------------ predictions


def perfect(rows: Sequence[ptkit.Row]) -> list[list[int]]:
    """What a head that knows everything would put out."""
    return [
        [label for label, place in zip(row.labels, row.places[::2], strict=True) if place >= 0]
        for row in rows
    ]


@st.composite
def tagged(draw: st.DrawFn) -> ptkit.TaggedRecord:
    word = st.text("ab-雨e\u0301😀\u3000", min_size=1, max_size=4)
    words = draw(st.lists(word, max_size=25))
    blanks = draw(st.lists(st.sampled_from(["", " ", "\n "]), min_size=25, max_size=25))
    text, spans = "", []
    for blank, piece in zip(blanks, words, strict=False):
        start = len(text) + len(blank)
        text += blank + piece
        spans.append((start, len(text)))
    tags = draw(st.lists(st.sampled_from(BIO), min_size=len(words), max_size=len(words)))
    return ptkit.TaggedRecord(
        origin=ptkit.Origin("a", 1), text=text, words=tuple(spans), tags=tuple(tags)
    )


@given(tagged(), st.integers(2, 12), st.integers(0, 3))
def test_no_word_is_lost(given_: ptkit.TaggedRecord, max_tokens: int, overlap: int) -> None:
    settings = {"max_tokens": max_tokens, "overlap": min(overlap, max_tokens - 1)}
    head = Tagging(Tagging.Settings(**settings), BIO)
    rows = head.encode(given_, TOKENIZER)
    assert all(len(row.tokens) <= max_tokens for row in rows)
    got = head.decode(given_, rows, perfect(rows), TOKENIZER)
    assert given_.tags is not None
    assert len(got) == len(given_.words)
    for (start, end), tag, found in zip(given_.words, given_.tags, got, strict=True):
        if given_.text[start:end].strip():  # the others have no token
            assert tag == found


def test_entities_come_back_as_characters() -> None:
    text = "we saw red hat we"
    given_ = record(text, ["O", "O", "B-x", "I-x", "I-x"])
    head = entity_head(max_tokens=4, overlap=1)
    rows = head.encode(given_, TOKENIZER)
    assert len(rows) == 2
    wanted = [{"type": "x", "start": 7, "end": 17, "text": "red hat we"}]
    assert head.decode(given_, rows, perfect(rows), TOKENIZER) == wanted
    assert head.reference(given_) == wanted
    assert head.reference(record(text)) is None


def test_an_entity_goes_on_over_a_word_without_a_token() -> None:
    given_ = record("下\u3000雨", ["B-x", "I-x", "I-x"], words=["下", "\u3000", "雨"])
    head = entity_head()
    rows = head.encode(given_, TOKENIZER)
    assert head.decode(given_, rows, [[1, 2]], TOKENIZER) == head.reference(given_)
    found = head.decode(given_, rows, [[1, 1]], TOKENIZER)
    assert [entity["text"] for entity in found] == ["下", "雨"]


def test_words_without_a_token_get_a_tag() -> None:
    assert fill_tags([None, "I-x", None], BIO) == ("O", "I-x", "O")
    assert fill_tags(["B-y", None, "I-x"], BIO) == ("B-y", "O", "I-x")
    assert fill_tags(["I-x", None, None, "I-x"], BIO) == ("I-x",) * 4
    parts_of_speech = ("NN", "VB")  # no O among them
    assert fill_tags([None, "VB", None, "NN"], parts_of_speech) == ("VB", "VB", "VB", "NN")
    assert fill_tags([None], parts_of_speech) == ("NN",)


def test_tags_come_back_as_they_are() -> None:
    head = Tagging(Tagging.Settings(), ("NN", "VB"))
    given_ = record("we saw", ["NN", "VB"])
    rows = head.encode(given_, TOKENIZER)
    assert head.decode(given_, rows, [[0, 1]], TOKENIZER) == ("NN", "VB") == head.reference(given_)


def test_the_constant_control_predicts_no_entity() -> None:
    given_ = [record("we saw", ["O", "B-x"])]
    assert entity_head().constants(given_, seed=0) == [[]]


def test_the_constant_tag_is_the_most_frequent_one() -> None:
    """NN thrice and VB twice, though no whole row of tags comes twice."""
    head = Tagging(Tagging.Settings(), ("NN", "VB"))
    given_ = [record("we saw", ["NN", "VB"]), record("we saw us", ["NN", "VB", "NN"])]
    (constant,) = head.constants([*given_, record("we", None)], seed=0)
    assert [constant(row) for row in given_] == [("NN", "NN"), ("NN", "NN", "NN")]
    assert str(constant) == "NN for every word"
    assert head.constants([record("we", None)], seed=0) == []


def well_formed(tags: Sequence[str]) -> bool:
    return all(
        not tag.startswith("I-") or before in (f"B-{tag[2:]}", tag)
        for before, tag in zip(("O", *tags), tags, strict=False)
    )


@pytest.mark.parametrize("seed", range(5))
def test_constrained_tags_are_the_best_well_formed_ones(seed: int) -> None:
    labels = ("O", "B-x", "I-x", "B-y", "I-y")
    scores = np.random.default_rng(seed).normal(size=(5, 5)).astype(np.float32)
    scores[0, 2] += 9  # the best tag of the first word is one that can't be there
    every = [
        ids
        for ids in itertools.product(range(5), repeat=5)
        if well_formed([labels[i] for i in ids])
    ]
    best = max(every, key=lambda ids: sum(float(scores[w, i]) for w, i in enumerate(ids)))
    assert best_bio(scores, labels) == list(best)


def test_constrained_decoding_reads_the_scores_of_all_windows() -> None:
    given_ = record("we saw red hat", ["O", "O", "B-x", "I-x"])
    head = entity_head(max_tokens=4, overlap=2, constrained=True)
    rows = head.encode(given_, TOKENIZER)
    #      O    B-x  I-x: alone, the words would be O O O I-x
    one = torch.tensor([[0.0, -9, -9], [0.0, -9, -9]])
    two = torch.tensor([[-0.1, -0.2, -9], [-9.0, -9, 0]])
    found = head.decode(given_, rows, [one, two], TOKENIZER)
    assert [entity["text"] for entity in found] == ["red hat"]
    empty = record("")
    rows = head.encode(empty, TOKENIZER)
    assert head.decode(empty, rows, [torch.zeros(0, 3)], TOKENIZER) == []


# ------------------------------------------------------------------------------------ losses


TEXTS = [
    record("we saw red hat we saw", ["O", "O", "B-x", "I-x", "O", "O"]),
    record(
        "下\u3000雨 red-hat", ["B-x", "I-x", "I-x", "B-x"], words=["下", "\u3000", "雨", "red-hat"]
    ),
    record("saw hat"),
]


def states_of(
    rows: Sequence[ptkit.EncodedRow], *, causal: bool = False, seed: int = 0
) -> ptkit.States:
    lengths = [len(row.tokens) for row in rows]
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(sum(lengths), 6, generator=generator, dtype=torch.float64)
    return ptkit.States(hidden.requires_grad_(), lengths, None, causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_over_every_word_once(causal: bool, smoothing: float) -> None:
    weights = {"O": 0.25, "I-x": 3.0}
    settings = {"class_weights": weights, "label_smoothing": smoothing}
    head = entity_head(max_tokens=5, overlap=2, **settings)
    rows = [row for text in TEXTS for row in encoded(head.encode(text, TOKENIZER))]
    assert len(rows) > len(TEXTS)
    module = head.build(ptkit.HeadInfo(6, 80, causal, seed=1)).double()
    states = states_of(rows, causal=causal)
    loss = head.loss(module, states, rows)

    picked, targets, owners = [], [], []
    for index, (row, hidden) in enumerate(
        zip(rows, states.hidden.split(states.lengths), strict=True)
    ):
        places = row.places[1::2] if causal else row.places[::2]
        for label, place in zip(row.labels, places, strict=False):
            if label != ptkit.IGNORE:
                picked.append(hidden[place])
                targets.append(label)
                owners.append(index)
    assert sorted(targets) == sorted([0, 0, 1, 2, 0, 0, 1, 2, 1])  # all but the word without token
    twin = torch.nn.CrossEntropyLoss(
        torch.tensor([0.25, 1.0, 3.0], dtype=torch.float64), label_smoothing=smoothing
    )
    logits = torch.stack(picked) @ module.weight.T + module.bias
    expected = twin(logits, torch.tensor(targets))
    got = loss.sums.sum() / loss.weights.sum()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    # row by row, and the gradients
    by_label = [0.25, 1.0, 3.0]
    by_row = [
        sum(by_label[t] for t, owner in zip(targets, owners, strict=True) if owner == index)
        for index in range(len(rows))
    ]
    assert loss.weights.tolist() == pytest.approx(by_row)
    assert loss.weights[-1] == loss.sums[-1] == 0  # the record without tags
    inputs = (states.hidden, module.weight, module.bias)
    for one, two in zip(
        torch.autograd.grad(got, inputs, retain_graph=True),
        torch.autograd.grad(expected, inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("subword", "causal", "place"),
    [("auto", False, 1), ("auto", True, 3), ("first", True, 1), ("last", False, 3)],
)
def test_the_token_that_stands_for_a_word(subword: str, causal: bool, place: int) -> None:
    head = entity_head(subword=subword)
    rows = encoded(head.encode(record("red-hat", ["B-x"]), TOKENIZER))
    module = head.build(ptkit.HeadInfo(6, 80, causal)).double()
    states = states_of(rows, causal=causal)
    loss = head.loss(module, states, rows)
    (gradient,) = torch.autograd.grad(loss.sums.sum(), states.hidden)
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [place]


def test_outputs_are_the_best_labels_of_words_with_a_token() -> None:
    head = entity_head()
    rows = [row for text in TEXTS for row in encoded(head.encode(text, TOKENIZER))]
    module = head.build(ptkit.HeadInfo(6, 80, causal=False)).double()
    states = states_of(rows)
    found = head.outputs(module, states, rows)
    assert [len(output) for output in found] == [6, 3, 2]
    assert rows[1].places[-2:] == (3, 5)  # "red-hat", behind the start, 下 and 雨
    hidden = states.hidden.split(states.lengths)[1][3]
    assert found[1][2] == int((module.weight @ hidden + module.bias).argmax())


# ------------------------------------------------------------------------------------ labels


def test_labels_of_entities_have_both_marks() -> None:
    head = TokenClassification(TokenClassification.Settings())
    texts = [record("a b c", ["I-b", "O", "B-a"]), record("a")]
    assert head.collect_labels(texts) == ["O", "B-a", "I-a", "B-b", "I-b"]


def test_labels_of_tags_are_sorted_with_o_first() -> None:
    head = Tagging(Tagging.Settings())
    assert head.collect_labels([record("a b c", ["VB", "NN", "O"])]) == ["O", "NN", "VB"]
    assert head.collect_labels([record("a b c", ["VB", "NN", "A"])]) == ["A", "NN", "VB"]


def test_labels_of_the_recipe_are_taken_as_they_are() -> None:
    head = TokenClassification(TokenClassification.Settings(labels=("B-z", "O")))
    assert head.collect_labels(iter([])) == ("B-z", "O")


# ------------------------------------------------------------------------------------ errors


def data_error(head: ptkit.TaskHead, given_: ptkit.TaggedRecord) -> str:
    with pytest.raises(ptkit.DataError) as caught:
        head.encode(given_, TOKENIZER)
    return str(caught.value)


def test_a_tag_that_was_not_trained_is_named() -> None:
    message = data_error(entity_head(), record("we saw", ["O", "B-X"], line=7))
    assert message == (
        "train.conll:7: tag 'B-X' is not among the 3 labels: O, B-x, I-x (did you mean 'B-x'?); "
        "correct it, or train with it"
    )
    many = [f"T{i:02}" for i in range(20)]
    message = data_error(Tagging(Tagging.Settings(), many), record("we", ["?"]))
    assert "'?' is not among the 20 labels: T00, T01, T02, T03, T04, T05, T06, T07, T08, T09, " in (
        message
    )
    assert "T11, …; correct it" in message


def test_tags_that_are_not_bio_are_named() -> None:
    expected = (
        "train.conll:3: tag 'NN' is not BIO (O, B-type, I-type), which task 'token-classification' "
        'needs; task.kind = "tagging" takes any tags'
    )
    head, given_ = entity_head(), record("we saw", ["O", "NN"], line=3)
    assert data_error(head, given_) == expected
    with pytest.raises(ptkit.DataError) as caught:
        head.collect_labels([record("we", ["O"]), given_])
    assert str(caught.value) == expected


def test_tags_for_another_number_of_words_are_an_error() -> None:
    message = data_error(entity_head(), record("we saw", ["O"], line=5))
    assert message == "train.conll:5: 1 tags for 2 words; give every word one"


@pytest.mark.parametrize(
    ("tags", "what"),
    [(["O", "O"], "every word is tagged 'O'"), (None, "no word has a tag")],
)
def test_nothing_to_tell_apart_is_an_error(tags: Sequence[str] | None, what: str) -> None:
    with pytest.raises(ptkit.DataError) as caught:
        entity_head().collect_labels([record("we saw", tags)])
    message = f"train.conll: {what}, so there is nothing to learn; label some words"
    assert str(caught.value) == message


def test_a_class_weight_of_an_unknown_tag_is_an_error() -> None:
    head = entity_head(class_weights={"O": 0.5, "B-y": 2})
    with pytest.raises(ptkit.RecipeError) as caught:
        head.collect_labels([record("we saw", ["O", "B-x"])])
    assert str(caught.value) == (
        "task.class_weights: 'B-y' is not among the 3 labels: O, B-x, I-x (did you mean 'B-x'?)"
    )


def test_a_row_without_room_for_a_word_is_an_error() -> None:
    with pytest.raises(ptkit.RecipeError) as caught:
        entity_head(max_tokens=1).encode(record("we"), TOKENIZER)
    assert str(caught.value) == (
        "task.max_tokens = 1 leaves no room for a word: the specials of a row take 1; raise it"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 8, "overlap": 8}, "must be less than max_tokens (8), got 8"),
        ({"labels": ["O"]}, "must be two or more different tags, got O"),
        ({"labels": []}, "must be two or more different tags, got []"),
        ({"labels": ["O", "B-x", "B-x"]}, "must be two or more different tags, got O, B-x, B-x"),
        ({"labels": ["O", "x"]}, "must be BIO tags (O, B-type, I-type), got 'x'"),
        ({"labels": ["B-x", "I-x"]}, "must hold 'O', the tag of words in no entity"),
        ({"class_weights": {"O": -1.0}}, "greater than or equal to 0"),
        ({"label_smoothing": 1.0}, "less than 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TokenClassification.Settings(**settings)
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------ runs


def toy_records(count: int, first: int = 0) -> list[ptkit.TaggedRecord]:
    """Colours begin a thing, and hats behind them are in it; some texts need three windows."""
    found = []
    for i in range(first, first + count):
        colour, rest = ("red", "green", "blue")[i % 3], ("hat", "hat hat")[i // 3 % 2]
        words = [*["saw"] * (1 + i % 4), colour, *rest.split(), *["we"] * (i % 3)]
        tags = [*["O"] * (1 + i % 4), "B-x", *["I-x"] * len(rest.split()), *["O"] * (i % 3)]
        found.append(record(" ".join(words), tags, line=i + 1))
    return found


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("head", "settings"), [(Tagging, {}), (TokenClassification, {"constrained": True})]
)
def test_a_run_learns_to_tag(
    run_toy: RunToy, causal: bool, head: type[ptkit.TaskHead], settings: dict[str, Any]
) -> None:
    result = run_toy(
        head,
        toy_records(60),
        toy_records(24, first=7),
        causal=causal,
        words=["we", "saw", "red", "green", "blue", "hat"],
        task={"max_tokens": 7, **settings},
        training={"max_steps": 80},
    )
    assert result.scores["after"]["equal"] >= 95
    assert result.scores["before"]["equal"] < 50
    assert ptkit.load_adapter(result.adapter).labels == BIO


@pytest.mark.parametrize("max_tokens", [256, 6])
def test_the_heads_keep_the_contract(max_tokens: int) -> None:
    texts = toy_records(6)
    unknown = [dataclasses.replace(text, tags=None) for text in texts[:2]]
    weighted = {"class_weights": {"O": 0.5}, "label_smoothing": 0.1}
    for head in (
        Tagging(Tagging.Settings(max_tokens=max_tokens, **weighted)),
        TokenClassification(TokenClassification.Settings(max_tokens=max_tokens)),
        TokenClassification(TokenClassification.Settings(max_tokens=max_tokens, constrained=True)),
    ):
        check_task_head(head, texts, unanswered=unknown)
