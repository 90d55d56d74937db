"""Answers in contexts: windows by hand, losses against a plain loop, exact characters back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ptkit_tasks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ptkit_tasks.extraction import NO_ANSWER, SpanExtraction, answer_tokens, characters
from pydantic import ValidationError

import ptkit
from ptkit.registry import Owner, empty_registry
from ptkit.testing import TinyBackbone, WordTokenizer, check_task_head

TOKENIZER = WordTokenizer(["who", "what", "we", "saw", "the", "red", "hat"])
WHO, WHAT, WE, SAW, THE, RED, HAT = range(3, 10)


def record(
    context: str, *answers: str, question: str = "who", line: int = 1
) -> ptkit.ExtractionRecord:
    """``answers``: pieces of the context, each where it stands first."""
    return ptkit.ExtractionRecord(
        origin=ptkit.Origin("train.json", line),
        key=str(line),
        question=question,
        context=context,
        answers=tuple(ptkit.Answer(text, context.index(text)) for text in answers),
    )


def head_of(*labels: str, **settings: Any) -> SpanExtraction:
    return SpanExtraction(SpanExtraction.Settings(**settings), labels)


def encoded(rows: Sequence[ptkit.Row]) -> list[ptkit.EncodedRow]:
    return [ptkit.EncodedRow(row, 0, part) for part, row in enumerate(rows)]


# ------------------------------------------------------------------------------------ rows


def test_a_row_by_hand() -> None:
    rows = head_of().encode(record("we saw the red hat", "red hat"), TOKENIZER)
    assert rows == [ptkit.Row((2, WHO, WE, SAW, THE, RED, HAT), (4, 5), places=(2, 0, 5))]


def test_windows_by_hand() -> None:
    """The docstring's, and the stride that the answer's length shortens."""
    settings = {"max_tokens": 4, "max_answer_tokens": 2}
    text = record("saw the red", "the red")
    rows = head_of(**settings).encode(text, TOKENIZER)
    assert rows == [
        ptkit.Row((2, WHO, SAW, THE), (0, 0), places=(2, 0, 2)),
        ptkit.Row((2, WHO, THE, RED), (1, 2), places=(2, 1, 2)),
    ]
    rows = head_of(max_tokens=5, stride=2, max_answer_tokens=1).encode(
        record("we saw the red hat", "the"), TOKENIZER
    )
    assert [row.places for row in rows] == [(2, 0, 3), (2, 2, 3)]
    assert [row.labels for row in rows] == [(3, 3), (1, 1)]  # both hold it


def test_the_first_answer_is_trained_on() -> None:
    (row,) = head_of().encode(record("we saw the red hat", "red", "we"), TOKENIZER)
    assert row.labels == (4, 4)


def test_a_question_without_an_answer_points_to_none() -> None:
    (row,) = head_of().encode(record("we saw"), TOKENIZER)
    assert row.labels == (0, 0)


def test_an_unknown_answer_gives_rows_to_predict_from() -> None:
    unknown = dataclasses.replace(record("we saw the"), answers=None)
    rows = head_of(max_tokens=4, max_answer_tokens=1, stride=1).encode(unknown, TOKENIZER)
    assert [row.labels for row in rows] == [(), ()]
    assert head_of().reference(unknown) is None


def test_a_long_question_is_cut_and_counted() -> None:
    head = head_of(max_question_tokens=2, max_tokens=5, max_answer_tokens=1, stride=2)
    rows = head.encode(record("we saw the", question="who what who what"), TOKENIZER)
    assert [row.tokens for row in rows] == [(2, WHO, WHAT, WE, SAW), (2, WHO, WHAT, THE)]
    assert [row.cut for row in rows] == [2, 0]
    assert [row.cut_targets for row in rows] == [0, 0]


def test_an_answer_that_no_window_holds_is_counted_and_not_trained_on() -> None:
    head = head_of(max_tokens=4, stride=2, max_answer_tokens=1)
    rows = head.encode(record("we saw the red hat", "saw the red"), TOKENIZER)
    assert [row.labels for row in rows] == [(), (), ()]
    assert [(row.cut, row.cut_targets) for row in rows] == [(3, 3), (0, 0), (0, 0)]


def test_an_empty_context_is_a_row_that_has_no_answer() -> None:
    (row,) = head_of().encode(record(""), TOKENIZER)
    assert row == ptkit.Row((2, WHO), (0, 0), places=(2, 0, 0))


def test_no_room_for_a_context_is_an_error() -> None:
    with pytest.raises(ptkit.RecipeError) as caught:
        head_of(max_tokens=3).encode(record("we", question="who what", line=9), TOKENIZER)
    assert str(caught.value) == (
        "train.json:9: task.max_tokens = 3 leaves no room for a context: the question and the "
        "specials take 3; raise it, or lower task.max_question_tokens"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_answer": "maybe"}, "no_answer"),
        ({"stride": 0}, "greater than or equal to 1"),
        ({"n_best": 0}, "greater than or equal to 1"),
        ({"max_answer_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SpanExtraction.Settings(**settings)


def test_a_context_of_several_questions_is_encoded_once() -> None:
    class Counting(WordTokenizer):
        asked: list[str] = []

        def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
            self.asked.append(text)
            return super().offsets(text)

    context = "we saw the red hat"
    texts = [record(context, "red"), record(context, "we")]
    assert len(head_of().encode_batch(texts, Counting())) == 2
    assert Counting.asked.count(context) == 1


# ------------------------------------------------------------------------------------ characters


class ByteTokenizer(ptkit.Tokenizer):
    """A token a byte of UTF-8, so that characters share tokens' spans; a blank belongs to what
    follows it."""

    pad_id, eos_id, start_ids, vocab_size = 0, 1, (2,), 259
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return [3 + byte for byte in text.encode()]

    def pieces(self, text: str) -> list[int]:
        return self.encode(text)

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans = [], []
        for at, character in enumerate(text):
            new = self.encode(character)
            ids += new
            before = at and text[at - 1] == " " and character != " "
            spans += [(at - 1 if before else at, at + 1)] * len(new)
        return ids, spans

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - 3 for i in ids if i > 2).decode(errors="replace")


def perfect(rows: Sequence[ptkit.Row]) -> list[Any]:
    """What a head that knows everything would put out."""
    found: list[Any] = []
    for row in rows:
        first, last = row.labels
        if first:
            found.append((-50.0, [(0.0, first - 1, last - 1)]))
        else:
            wrong = [(-50.0, i, i) for i in range(min(3, row.places[2]))]
            found.append((0.0, wrong))
    return found


LETTERS = "ab é e\u0301 雨 😀👩‍👧 ñ\u0301 \n . '"


@st.composite
def answered(draw: st.DrawFn, longest: int) -> ptkit.ExtractionRecord:
    """A context and an answer of at most so many characters, without white space around it."""
    context = draw(st.text(LETTERS, max_size=40).filter(str.strip))
    at = [i for i, character in enumerate(context) if not character.isspace()]
    start = draw(st.sampled_from(at))
    end = draw(st.sampled_from([i for i in at if start <= i < start + longest])) + 1
    answer = ptkit.Answer(context[start:end], start)
    return ptkit.ExtractionRecord(
        origin=ptkit.Origin("a", 1), key="a", question="who", context=context, answers=(answer,)
    )


@given(st.data(), st.integers(1, 6), st.integers(0, 30), st.integers(1, 40))
def test_windows_lose_no_answer_that_fits(
    data: st.DataObject, longest: int, more: int, stride: int
) -> None:
    """With a token a byte, and up to 4 bytes a character, the answer comes back as it was."""
    tokenizer = ByteTokenizer()
    text = data.draw(answered(longest))
    limit = 4 * longest
    head = head_of(max_tokens=len("who") + 2 + limit + more, stride=stride, max_answer_tokens=limit)
    rows = head.encode(text, tokenizer)
    assert text.answers is not None
    answer = text.answers[0]
    assert sum(row.cut for row in rows) == 0
    assert any(row.labels != (0, 0) for row in rows)
    got = head.decode(text, rows, perfect(rows), tokenizer)
    assert (got["text"], got["start"]) == (answer.text, answer.start)
    assert text.context[got["start"] :].startswith(got["text"])


@given(answered(8), st.integers(1, 10))
def test_words_that_hold_the_answer_come_back_whole(
    text: ptkit.ExtractionRecord, stride: int
) -> None:
    head = head_of(max_tokens=12, stride=stride, max_answer_tokens=8)
    rows = head.encode(text, TOKENIZER)
    assert text.answers is not None
    answer = text.answers[0]
    got = head.decode(text, rows, perfect(rows), TOKENIZER)
    start, end = got["start"], got["start"] + len(got["text"])
    assert text.context[start:end] == got["text"]
    assert start <= answer.start
    assert answer.start + len(answer.text) <= end
    _, spans = TOKENIZER.offsets(text.context)  # the fewest words: no border could be further in
    inside = [s for s in spans if s[0] < answer.start + len(answer.text) and s[1] > answer.start]
    assert (start, end) == (inside[0][0], inside[-1][1])


def test_of_equal_pieces_the_one_that_is_meant_comes_back() -> None:
    context = "red red red"
    text = dataclasses.replace(record(context), answers=(ptkit.Answer("red", 4),))
    rows = head_of().encode(text, TOKENIZER)
    assert rows[0].labels == (2, 2)
    assert head_of().decode(text, rows, perfect(rows), TOKENIZER)["start"] == 4


def test_tokens_that_share_a_character_are_all_the_answers() -> None:
    _, spans = ByteTokenizer().offsets("a😀b")
    assert answer_tokens(ptkit.Answer("😀", 1), spans) == range(1, 5)
    assert answer_tokens(ptkit.Answer(" ", 1), [(0, 1), (2, 3)]) is None


def test_blanks_of_tokens_are_not_of_the_answer() -> None:
    spans = [(0, 2), (2, 6), (6, 8)]  # "we", " saw", " ."
    assert characters("we saw .", spans, 1, 1) == (3, 6)
    assert characters("we  .", [(0, 2), (2, 4)], 1, 1) is None


# ------------------------------------------------------------------------------------ losses


TEXTS = [
    record("we saw the red hat", "red hat"),
    record("we saw", question="who what who"),
    record(""),
    dataclasses.replace(record("the hat"), answers=None),
    record("the red hat saw the red hat we", "we"),
]


def states_of(rows: Sequence[ptkit.EncodedRow], *, causal: bool) -> ptkit.States:
    lengths = [len(row.tokens) for row in rows]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(sum(lengths), 6, generator=generator, dtype=torch.float64)
    return ptkit.States(hidden.requires_grad_(), lengths, None, causal=causal)


def bench(*, causal: bool, **settings: Any) -> tuple[SpanExtraction, Any, Any, Any]:
    head = head_of(max_tokens=8, stride=2, max_answer_tokens=2, **settings)
    rows = [row for text in TEXTS for row in encoded(head.encode(text, TOKENIZER))]
    assert len(rows) > len(TEXTS)
    module = head.build(ptkit.HeadInfo(6, 80, causal, seed=1)).double()
    with torch.no_grad():
        module.weight.mul_(50)
        module.bias.add_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    return head, rows, module, states_of(rows, causal=causal)


def by_hand(row: Any, hidden: Any, module: Any, *, causal: bool) -> tuple[Any, Any]:
    """[1 + c] log-probabilities of either pointer of one row, "not here" first."""
    begin, _, count = row.places
    scores = hidden @ module.weight.T + module.bias  # [s, 4]
    none = scores[len(row.tokens) - 1 if causal else 0]
    pointers = [
        torch.stack([none[2 + i], *(scores[begin + k, i] for k in range(count))]) for i in (0, 1)
    ]
    first, last = (values - values.exp().sum().log() for values in pointers)
    return first, last


@pytest.mark.parametrize("causal", [False, True])
def test_the_loss_is_the_mean_of_both_pointers(causal: bool) -> None:
    head, rows, module, states = bench(causal=causal)
    loss = head.loss(module, states, rows)
    hidden = states.hidden.split(states.lengths)
    expected = []
    for row, own in zip(rows, hidden, strict=True):
        first, last = by_hand(row, own, module, causal=causal)
        if row.labels:
            expected.append(-(first[row.labels[0]] + last[row.labels[1]]) / 2)
        else:
            expected.append(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(loss.sums, torch.stack(expected), rtol=1e-12, atol=1e-12)
    assert loss.weights.tolist() == [float(bool(row.labels)) for row in rows]
    inputs = (states.hidden, module.weight, module.bias)
    for one, two in zip(
        torch.autograd.grad(loss.sums.sum(), inputs, retain_graph=True),
        torch.autograd.grad(torch.stack(expected).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_outputs_are_the_best_spans_of_each_window(causal: bool) -> None:
    head, rows, module, states = bench(causal=causal, n_best=4)
    found = head.outputs(module, states, rows)
    hidden = states.hidden.split(states.lengths)
    for row, own, (none, spans) in zip(rows, hidden, found, strict=True):
        first, last = (p.tolist() for p in by_hand(row, own, module, causal=causal))
        assert none == pytest.approx(first[0] + last[0])
        every = [
            (first[i] + last[j], i - 1, j - 1)
            for i in range(1, row.places[2] + 1)
            for j in range(i, min(i + 2, row.places[2] + 1))  # two tokens at most
        ]
        best = sorted(every, reverse=True)[:4]
        assert [span[1:] for span in spans] == [span[1:] for span in best]
        assert [span[0] for span in spans] == pytest.approx([span[0] for span in best])


def test_rows_without_any_context_have_no_span() -> None:
    head = head_of()
    rows = encoded(head.encode(record(""), TOKENIZER))
    module = head.build(ptkit.HeadInfo(6, 80, causal=False)).double()
    ((none, spans),) = head.outputs(module, states_of(rows, causal=False), rows)
    assert (none, spans) == (0.0, [])  # it is certain


# ------------------------------------------------------------------------------------ decisions


CONTEXT = "we saw the red hat"


def decided(*outputs: Any, labels: Sequence[str] = (), **settings: Any) -> Any:
    head = head_of(*labels, max_tokens=5, stride=2, max_answer_tokens=1, **settings)
    text = record(CONTEXT)
    rows = head.encode(text, TOKENIZER)
    assert [row.places[1:] for row in rows] == [(0, 3), (2, 3)]
    return head.decode(text, rows, outputs, TOKENIZER)


def test_the_best_span_of_all_windows_wins_and_counts_once() -> None:
    got = decided(
        (-9.0, [(-1.0, 2, 2), (-3.0, 0, 0)]),  # the, we
        (-9.0, [(-0.5, 0, 0), (-2.0, 1, 2)]),  # the again, red hat
    )
    assert got == {
        "text": "the",
        "start": 7,
        "score": -0.5,
        "n_best": [
            {"text": "the", "start": 7, "score": -0.5},
            {"text": "red hat", "start": 11, "score": -2.0},
            {"text": "we", "start": 0, "score": -3.0},
        ],
    }
    assert len(decided((-9.0, [(-1.0, 0, 0)]), (-9.0, [(-2.0, 0, 0)]), n_best=1)["n_best"]) == 1


def test_no_answer_is_predicted_where_the_least_sure_window_is_surer_of_it() -> None:
    one, two = (-1.0, [(-2.0, 0, 0)]), (-0.1, [(-5.0, 0, 0)])
    got = decided(one, two, labels=[NO_ANSWER])
    assert (got["text"], got["start"], got["score"]) == ("", -1, -1.0)
    assert [found["text"] for found in got["n_best"]] == ["", "we", "the"]
    # -1 is 1 above -2
    assert decided(one, two, labels=[NO_ANSWER], no_answer_threshold=0.9)["text"] == ""
    assert decided(one, two, labels=[NO_ANSWER], no_answer_threshold=1.1)["text"] == "we"
    # one window that knows the answer is enough
    assert decided((-4.0, [(-2.0, 0, 0)]), two, labels=[NO_ANSWER])["text"] == "we"
    # where every question has an answer, there is one
    assert decided(one, two)["text"] == "we"
    assert [found["text"] for found in decided(one, two)["n_best"]] == ["we", "the"]


def test_without_any_span_there_is_no_answer() -> None:
    text = record("")
    rows = head_of().encode(text, TOKENIZER)
    none = {"text": "", "start": -1, "score": 0.0}
    got = head_of().decode(text, rows, [(0.0, [])], TOKENIZER)
    assert got == {**none, "n_best": []}
    head = head_of(NO_ANSWER)
    assert head.decode(text, rows, [(0.0, [])], TOKENIZER) == {**none, "n_best": [none]}


def test_whether_there_may_be_no_answer_is_learnt_from_the_data() -> None:
    with_answer, without = record("we saw", "we"), record("we saw")
    unknown = dataclasses.replace(without, answers=None)
    assert head_of().collect_labels([with_answer, unknown]) == []
    assert head_of().collect_labels([with_answer, without]) == [NO_ANSWER]
    assert head_of(no_answer=True).collect_labels([with_answer]) == [NO_ANSWER]
    assert head_of(no_answer=False).collect_labels([without]) == []


def test_references_are_the_texts_of_all_answers() -> None:
    assert head_of().reference(record("we saw", "we", "we saw")) == ["we", "we saw"]
    assert head_of().reference(record("we saw")) == []


def test_the_constant_controls_are_no_answer_and_the_most_frequent_one() -> None:
    texts = [record("we saw", "saw"), record("we saw", "we"), record("we saw", "we"), record("we")]
    assert [found["text"] for found in head_of().constants(texts, seed=0)] == ["", "we"]
    assert [found["text"] for found in head_of().constants([], seed=0)] == [""]


# ------------------------------------------------------------------------------------ runs


COLOURS = ("red", "green", "blue", "black")


def toy_records(count: int, first: int = 0) -> list[ptkit.ExtractionRecord]:
    """The answer to "what" is the colour and what follows it; some contexts have none, and some
    are two windows long."""
    found = []
    for i in range(first, first + count):
        colour = COLOURS[i % 4]
        before, behind = "we saw the " * (i % 3), " we saw" * (i // 3 % 3)
        if i % 5 == 0:
            found.append(record(f"{before}the hat{behind}", question="what", line=i + 1))
        else:
            context = f"{before}the {colour} hat{behind}"
            found.append(record(context, f"{colour} hat", question="what", line=i + 1))
    return found


class ToyFormat(ptkit.DatasetFormat):
    """Records that are made, not read; "validation" files have others."""

    name = "toy-answers"
    record = ptkit.ExtractionRecord

    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        yield from toy_records(24, first=7) if "validation" in name else toy_records(60)


class ExactMatch(ptkit.RowMetric):
    """The share of predictions that are a reference, or empty where there is none."""

    scores = "answer"
    name = "exact"

    def score_row(self, pair: ptkit.Pair) -> dict[str, float] | None:
        return {self.name: 100.0 * (pair.prediction["text"] in (pair.reference or [""]))}


class Toys:
    """What a plugin for this test would register."""

    @ptkit.hookimpl
    def ptkit_register_backbones(self) -> list[type[ptkit.Backbone]]:
        return [TinyBackbone]

    @ptkit.hookimpl
    def ptkit_register_dataset_formats(self) -> list[type[ptkit.DatasetFormat]]:
        return [ToyFormat]

    @ptkit.hookimpl
    def ptkit_register_metrics(self) -> list[type[ptkit.Metric]]:
        return [ExactMatch]

    @ptkit.hookimpl
    def ptkit_resolve_source(self, source: str) -> Path | None:
        return Path(__file__) if source.startswith("toy") else None


@pytest.mark.parametrize("causal", [False, True])
def test_a_run_learns_to_answer(tmp_path: Path, causal: bool) -> None:
    registry = empty_registry()
    registry.register(Toys(), Owner("toys", "ptkit-toys", "1"))
    registry.register(ptkit_tasks, Owner("tasks", "ptkit-tasks", "0.1.0"))
    words = ["what", "we", "saw", "the", "hat", *COLOURS]
    recipe = ptkit.Recipe.from_dict(
        {
            "ptkit": 1,
            "backbone": {"kind": "tiny", "source": "toy", "causal": causal, "words": words},
            "prefix": {"length": 4},
            "dataset": {
                "kind": "toy-answers",
                "train": "toy:train",
                "validation": "toy:validation",
            },
            "task": {
                "kind": "span-extraction",
                "max_tokens": 11,
                "stride": 4,
                "max_answer_tokens": 3,
            },
            "metrics": [{"kind": "exact"}],
            "train": {
                "max_steps": 150,
                "batch_size": 16,
                "eval_every": 50,
                "head_learning_rate": 2e-2,
            },
        },
        folder=tmp_path,
        name="toy",
        registry=registry,
    )
    result = ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    assert result.scores["after"]["exact"] >= 95
    assert result.scores["constant"]["exact"] < 50
    assert ptkit.load_adapter(result.adapter).labels == (NO_ANSWER,)


@pytest.mark.parametrize("max_tokens", [384, 8])
def test_the_head_keeps_the_contract(max_tokens: int) -> None:
    head = head_of(max_tokens=max_tokens, stride=3, max_answer_tokens=3)
    texts = toy_records(8)
    assert len({len(head.encode(text, TOKENIZER)) for text in texts}) > (max_tokens == 8)
    unknown = [dataclasses.replace(text, answers=None) for text in texts[:2]]
    check_task_head(head, texts, unanswered=unknown)


def test_scores_are_finite_numbers() -> None:
    head, rows, module, states = bench(causal=False)
    for none, spans in head.outputs(module, states, rows):
        assert math.isfinite(none)
        assert all(math.isfinite(score) for score, _, _ in spans)


def test_an_answer_that_is_not_in_the_context_is_not_trained_on() -> None:
    """Its start is -1; the next answer that is there takes its place, if there is one."""
    head, tokenizer = head_of(), WordTokenizer(["a", "b", "c", "q"])
    lost, there = ptkit.Answer("x y", -1), ptkit.Answer("c", 4)
    rows = [
        head.encode(
            ptkit.ExtractionRecord(
                origin=ptkit.Origin("f", 1), key="1", question="q", context="a b c", answers=answers
            ),
            tokenizer,
        )[0]
        for answers in ((lost,), (lost, there))
    ]
    assert [row.labels for row in rows] == [(), (3, 3)]
