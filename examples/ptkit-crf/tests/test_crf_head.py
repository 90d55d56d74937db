"""The head ``crf-entities``: rows by hand, losses and predictions, what it refuses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import ptkit
import pytest
import torch
from ptkit.testing import TinyBackbone, WordTokenizer, check_task_head, tiny_model
from pydantic import ValidationError

from ptkit_crf.bio import bio_labels
from ptkit_crf.head import CrfEntities

LABELS = bio_labels(["x"])
TOKENIZER = WordTokenizer(["we", "saw", "red", "hat", "-"])
WE, SAW, RED, HAT, DASH = TOKENIZER.encode("we saw red hat -")


def record(
    text: str, tags: Sequence[str] | None = None, *, line: int = 1
) -> ptkit.TaggedRecord:
    """The words of a text, which stand between blanks."""
    spans, behind = [], 0
    for word in text.split():
        start = text.index(word, behind)
        behind = start + len(word)
        spans.append((start, behind))
    return ptkit.TaggedRecord(
        origin=ptkit.Origin("train.conll", line),
        text=text,
        words=tuple(spans),
        tags=None if tags is None else tuple(tags),
    )


RECORDS = [
    record("we saw red hat", ["O", "O", "B-x", "I-x"]),
    record("red", ["B-x"], line=2),
    record("we saw we saw red hat hat", [*"OOOO", "B-x", "I-x", "I-x"], line=3),
    record("hat saw red hat", ["B-x", "O", "B-x", "B-x"], line=4),
]


def head(labels: Sequence[str] = LABELS, **settings: Any) -> CrfEntities:
    return CrfEntities(CrfEntities.Settings(**settings), labels)


def encoded(
    some: CrfEntities, records: Sequence[ptkit.TaggedRecord]
) -> list[ptkit.EncodedRow]:
    return [
        ptkit.EncodedRow(row, index, part)
        for index, given in enumerate(records)
        for part, row in enumerate(some.encode(given, TOKENIZER))
    ]


def module_of(some: CrfEntities, backbone: TinyBackbone) -> torch.nn.Module:
    """Of random weights, so that scores of tags count, too."""
    shape = backbone.geometry
    info = ptkit.HeadInfo(shape.hidden_size, shape.vocab_size, shape.causal)
    module = some.build(info)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=generator)
    return module


@pytest.mark.parametrize("settings", [{}, {"max_tokens": 4, "overlap": 1}])
@pytest.mark.parametrize("causal", [True, False])
def test_the_head_keeps_the_contract(settings: dict[str, int], causal: bool) -> None:
    check_task_head(
        head((), **settings),
        RECORDS,
        unanswered=[record("we saw we saw hat"), record("")],
        backbone=TinyBackbone(TinyBackbone.Settings(causal=causal)),
    )


# ------------------------------------------------------------------ rows


def test_a_row_by_hand() -> None:
    (row,) = head().encode(record("we red-hat saw", ["O", "B-x", "O"]), TOKENIZER)
    assert row.tokens == (*TOKENIZER.start_ids, WE, RED, DASH, HAT, SAW)
    assert row.labels == (0, 1, 0)
    assert row.places == (1, 1, 2, 4, 5, 5)  # first and last token of each word
    assert row.cut == 0


def test_windows_by_hand() -> None:
    """Three words a row, one of them shared, which the earlier row is asked for."""
    some = head(max_tokens=4, overlap=1)
    one, two = some.encode(
        record("we saw red hat we", [*"OO", "B-x", *"OO"]), TOKENIZER
    )
    start = TOKENIZER.start_ids
    assert (one.tokens, one.labels) == ((*start, WE, SAW, RED), (0, 0, 1))
    assert (two.tokens, two.labels) == ((*start, RED, HAT, WE), (0, 0))
    assert (one.places, two.places) == ((1, 1, 2, 2, 3, 3), (2, 2, 3, 3))


def test_a_word_longer_than_a_row_is_cut() -> None:
    (row,) = head(max_tokens=3).encode(record("red-hat-hat", ["B-x"]), TOKENIZER)
    assert row.tokens == (*TOKENIZER.start_ids, RED, DASH)
    assert (row.places, row.cut) == ((1, 2), 3)


def test_a_word_without_a_token_has_a_tag_and_no_place() -> None:
    space = "\u3000"
    text = ptkit.TaggedRecord(
        origin=ptkit.Origin("train.conll", 1),
        text=f"we{space}hat",
        words=((0, 2), (2, 3), (3, 6)),
        tags=("B-x", "I-x", "O"),
    )
    (row,) = head().encode(text, TOKENIZER)
    assert (row.tokens, row.labels) == ((*TOKENIZER.start_ids, WE, HAT), (1, 2, 0))
    assert row.places == (1, 1, -1, -1, 2, 2)


def test_tags_are_made_well_formed() -> None:
    (row,) = head().encode(record("red hat saw", ["I-x", "I-x", "O"]), TOKENIZER)
    assert row.labels == (1, 2, 0)  # an I-x that continues nothing begins an entity


def test_labels_are_bio_tags_of_all_types() -> None:
    given = [record("we saw", ["B-y", "O"]), record("we", ["I-x"]), record("we")]
    assert head(()).collect_labels(given) == bio_labels(["x", "y"])
    assert head((), types=["z"]).collect_labels(given) == bio_labels(["z"])


# ------------------------------------------------------------------ states


def test_the_loss_is_minus_the_log_of_the_probability_of_the_tags() -> None:
    """Against all sequences, and the same however the text is cut into windows."""
    some = head(transition_rate=3.0)
    backbone = TinyBackbone(TinyBackbone.Settings(causal=False))
    module, model = module_of(some, backbone), tiny_model(backbone)
    rows = encoded(some, RECORDS[:2])
    states = model.states(rows)
    with torch.no_grad():
        loss = some.loss(module, states, rows)
        emissions = module.get_submodule("emissions")(states.at([[1, 2, 3, 4], []]))
    first, after, last = (
        3 * module.get_parameter(f"chain.{name}").detach()
        for name in ("first", "after", "last")
    )
    scores = {}
    for path in itertools.product(range(3), repeat=4):
        # I-x, number 2, may neither begin nor stand behind O, number 0
        if path[0] != 2 and (0, 2) not in itertools.pairwise(path):
            emitted = sum(float(emissions[i, tag]) for i, tag in enumerate(path))
            followed = sum(float(after[a, b]) for a, b in itertools.pairwise(path))
            ends = float(first[path[0]] + last[path[-1]])
            scores[path] = emitted + followed + ends
    total = math.log(sum(math.exp(score) for score in scores.values()))
    assert float(loss.sums[0]) == pytest.approx(total - scores[0, 0, 1, 2], abs=1e-4)
    assert loss.weights.tolist() == [4, 1]  # words
    output = some.outputs(module, states, rows)[0]
    found = some.decode(RECORDS[0], [rows[0].row], [output], TOKENIZER)
    best = max(scores, key=scores.__getitem__)
    assert found == ptkit.entities(RECORDS[0], [LABELS[tag] for tag in best])


def test_windows_share_one_chain() -> None:
    """With emissions that follow from the token alone, windows change nothing."""
    whole, cut = head(), head(max_tokens=4, overlap=2)
    backbone = TinyBackbone(TinyBackbone.Settings(causal=False))
    module = module_of(whole, backbone)
    table = torch.randn(
        TOKENIZER.vocab_size,
        backbone.geometry.hidden_size,
        generator=torch.Generator().manual_seed(2),
    )
    found = []
    for some in (whole, cut):
        rows = encoded(some, RECORDS)
        hidden = table[[token for row in rows for token in row.tokens]]
        lengths = [len(row.tokens) for row in rows]
        states = ptkit.States(hidden, lengths, None, causal=False)
        loss = some.loss(module, states, rows)
        outputs = some.outputs(module, states, rows)
        predictions = []
        for index, given in enumerate(RECORDS):
            own = [i for i, row in enumerate(rows) if row.record == index]
            parts = [outputs[i] for i in own]
            inputs = [rows[i].row for i in own]
            predictions.append(some.decode(given, inputs, parts, TOKENIZER))
        found.append((loss, predictions, len(rows)))
    (one, best, few), (other, also, many) = found
    assert many > few == len(RECORDS)
    assert torch.allclose(one.sums, other.sums, atol=1e-5)
    assert one.weights.tolist() == other.weights.tolist() == [4, 1, 7, 4]
    assert best == also
    assert any(best)


def test_neighbours_decide_for_a_word_without_a_token() -> None:
    some = head()
    row = ptkit.Row((2, WE, HAT), (), places=(1, 1, -1, -1, 2, 2))
    rows = [ptkit.EncodedRow(row, 0)]
    backbone = TinyBackbone(TinyBackbone.Settings(causal=False))
    module = module_of(some, backbone)
    states = ptkit.States(
        torch.ones(3, backbone.geometry.hidden_size), [3], None, causal=False
    )
    ((emissions, _),) = some.outputs(module, states, rows)
    assert emissions.shape == (3, 3)
    assert emissions[1].tolist() == [0, 0, 0]
    assert emissions[0].tolist() == emissions[2].tolist() != [0, 0, 0]


@pytest.mark.parametrize(
    ("subword", "causal", "place"),
    [
        ("auto", False, 1),
        ("auto", True, 2),
        ("first", True, 1),
        ("last", False, 2),
    ],
)
def test_which_token_stands_for_a_word(subword: str, causal: bool, place: int) -> None:
    some = head(subword=subword)
    backbone = TinyBackbone(TinyBackbone.Settings(causal=causal))
    module = module_of(some, backbone)
    rows = [ptkit.EncodedRow(ptkit.Row((2, RED, HAT), (), places=(1, 2)), 0)]
    hidden = torch.randn(
        3, backbone.geometry.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    states = ptkit.States(hidden, [3], None, causal=causal)
    ((emissions, _),) = some.outputs(module, states, rows)
    expected = module.get_submodule("emissions")(hidden[place : place + 1])
    assert torch.allclose(emissions, expected)


def test_no_entity_is_the_constant() -> None:
    assert head().constants(RECORDS, seed=0) == [[]]


# ------------------------------------------------------------------ refusals


def refused(call: Any) -> str:
    with pytest.raises(ptkit.PtkitError) as caught:
        call()
    return str(caught.value)


def test_tags_that_are_not_bio() -> None:
    given = record("we saw", ["NOUN", "O"], line=7)
    expected = (
        "train.conll:7: 'NOUN' is not a BIO tag: O, B-type or I-type; set the scheme "
        "of the data in [dataset]"
    )
    assert refused(lambda: head().collect_labels([given])) == expected
    assert refused(lambda: head().encode(given, TOKENIZER)) == expected


def test_no_entity_at_all() -> None:
    given = [record("we saw", ["O", "O"])]
    assert refused(lambda: head().collect_labels(given)) == (
        "train.conll: no word is tagged as an entity, so there is nothing to learn; "
        "tag some, or set task.types"
    )


def test_tags_for_other_words() -> None:
    given = record("we saw", ["O"], line=9)
    assert refused(lambda: head().encode(given, TOKENIZER)) == (
        "train.conll:9: 1 tags for 2 words; give every word one"
    )


def test_a_type_that_was_not_trained() -> None:
    given = record("we saw", ["O", "B-hats"], line=3)
    some = head(bio_labels(["hat", "shoe"]))
    assert refused(lambda: some.encode(given, TOKENIZER)) == (
        "train.conll:3: type 'hats' is not among hat, shoe (did you mean 'hat'?); "
        "correct it, or train with it"
    )


def test_rows_without_room() -> None:
    some = head(max_tokens=1)
    assert refused(lambda: some.encode(record("we"), TOKENIZER)) == (
        "task.max_tokens = 1 leaves no room for a word: the specials of a row take 1; "
        "raise it"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_tokens": 8, "overlap": 8},
            r"must be less than max_tokens \(8\), got 8",
        ),
        ({"types": ["x", "x"]}, "must be different names, none empty, got x, x"),
        ({"types": ["x", ""]}, "must be different names, none empty, got x, "),
        ({"types": []}, r"must be one name or more, got \[\]"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        head(**settings)
