"""The head ``multiple-choice``: rows and cuts by hand, its loss beside torch's, a whole run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from ptkit_tasks.choices import MultipleChoice
from torch import nn
from torch.nn import functional as F

import ptkit
from ptkit.testing import TinyBackbone, WordTokenizer, check_task_head

RunToy = Callable[..., ptkit.RunResult]

WORDS = WordTokenizer(["a", "b", "c", "d", "e"])  # ids 3 4 5 6 7, behind pad, eos and start


def record(
    question: str, choices: Sequence[str], answer: int | None = None, line: int = 1
) -> ptkit.ChoiceRecord:
    return ptkit.ChoiceRecord(
        origin=ptkit.Origin("a.jsonl", line),
        question=question,
        choices=tuple(choices),
        answer=answer,
    )


def head(**settings: Any) -> MultipleChoice:
    return MultipleChoice(MultipleChoice.Settings(**{"hidden": "none", **settings}))


class Marking(WordTokenizer):
    """Two texts as BERT takes them, with start and eos for its marks."""

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> ptkit.Joined:
        tokens = (2, *first, 1, *(() if second is None else (*second, 1)))
        types = tuple(int(index > len(first) + 1) for index in range(len(tokens)))
        return ptkit.Joined(tokens, types, 1, len(first) + 2)


MARKING = Marking(["a", "b", "c", "d", "e"])

# ------------------------------------------------------------------------------------ rows


def test_a_row_is_the_question_with_a_choice() -> None:
    assert head().encode(record("a b", ["c", "d e"], 1), MARKING) == [
        ptkit.Row((2, 3, 4, 1, 5, 1), (0,), (0, 0, 0, 0, 1, 1)),
        ptkit.Row((2, 3, 4, 1, 6, 7, 1), (1,), (0, 0, 0, 0, 1, 1, 1)),
    ]
    assert head().encode(record("a", ["c", "d"]), WORDS) == [
        ptkit.Row((2, 3, 5)),
        ptkit.Row((2, 3, 6)),
    ]


def test_labels_in_words() -> None:
    assert [head().label_text(label) for label in (1, 0)] == ["right", "wrong"]


@pytest.mark.parametrize(
    ("limit", "rows"),
    [
        # three marks; the question goes first, and only then the choice
        (9, [((2, 3, 4, 5, 6, 1, 7, 1), 0), ((2, 3, 4, 5, 6, 1, 7, 7, 1), 0)]),
        (8, [((2, 3, 4, 5, 6, 1, 7, 1), 0), ((2, 3, 4, 5, 1, 7, 7, 1), 1)]),
        (6, [((2, 3, 4, 1, 7, 1), 2), ((2, 3, 1, 7, 7, 1), 3)]),
        (4, [((2, 1, 7, 1), 4), ((2, 1, 7, 1), 5)]),
    ],
)
def test_the_question_is_cut_before_the_choices(
    limit: int, rows: list[tuple[tuple[int, ...], int]]
) -> None:
    found = head(max_tokens=limit).encode(record("a b c d", ["e", "e e"], 0), MARKING)
    assert [(row.tokens, row.cut) for row in found] == rows
    assert all(len(row.token_types) == len(row.tokens) for row in found)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            record("a", ["b"], 0, line=4),
            "a.jsonl:4: needs two choices or more, got 1; add some, or leave the row out",
        ),
        (
            record("a", ["b", "c"], 2, line=5),
            "a.jsonl:5: answer 2 is none of its 2 choices, which count from 0 to 1; correct it",
        ),
        (
            record("a", ["b", "c", "d"], -1),
            "a.jsonl:1: answer -1 is none of its 3 choices, which count from 0 to 2; correct it",
        ),
    ],
)
def test_records_that_can_not_be_learnt(wrong: ptkit.ChoiceRecord, message: str) -> None:
    for call in (lambda: head().encode(wrong, WORDS), lambda: head().reference(wrong)):
        with pytest.raises(ptkit.DataError) as error:
            call()
        assert error.value.lines == (message,)


def test_a_limit_that_the_specials_fill_is_refused() -> None:
    with pytest.raises(ptkit.RecipeError) as error:
        head(max_tokens=3).encode(record("a", ["b", "c"], 0), MARKING)
    assert str(error.value) == (
        "task.max_tokens = 3 leaves no room for text: what stands around it has 3 tokens; raise it"
    )


def test_the_first_token_of_a_causal_model_is_refused() -> None:
    with pytest.raises(ptkit.RecipeError, match='task.pooling = "first" takes the first token'):
        head(pooling="first").build(ptkit.HeadInfo(8, 64, causal=True))


# ------------------------------------------------------------------------------------ loss

COUNTS = (2, 4, 3)
ANSWERS = (1, 0, 2)


def test_the_loss_is_the_cross_entropy_of_the_choices() -> None:
    """Three records of two, four and three choices, in float64, beside torch's for each."""
    made = head(dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    module = made.build(ptkit.HeadInfo(8, 64, causal=False)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    lengths = [1 + i % 3 for i in range(sum(COUNTS))]
    hidden = torch.randn(sum(lengths), 8, dtype=torch.float64, generator=generator)
    hidden.requires_grad_()
    rows = [
        ptkit.EncodedRow(ptkit.Row((2,), (int(part == answer),)), index, part)
        for index, (count, answer) in enumerate(zip(COUNTS, ANSWERS, strict=True))
        for part in range(count)
    ]
    loss = made.loss(module, ptkit.States(hidden, lengths, None, causal=False), rows)
    assert loss.weights.tolist() == [1.0] * 3
    first = [sum(lengths[:i]) for i in range(len(lengths))]
    weights = dict(module.named_parameters())
    scores = (hidden[first] @ weights["output.weight"].T + weights["output.bias"])[:, 0]
    expected = torch.stack(
        [
            F.cross_entropy(own, torch.tensor(answer))
            for own, answer in zip(scores.split(COUNTS), ANSWERS, strict=True)
        ]
    )
    torch.testing.assert_close(loss.sums, expected)
    # a bias moves all scores alike, so that its gradient is nothing but rounding
    wanted = [hidden, *module.parameters()]
    for left, right in zip(
        torch.autograd.grad(loss.sums.sum(), wanted, retain_graph=True),
        torch.autograd.grad(expected.sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


def test_a_record_without_an_answer_has_no_loss() -> None:
    made = head(dropout=0.0)
    module = made.build(ptkit.HeadInfo(8, 64, causal=False))
    rows = [
        ptkit.EncodedRow(ptkit.Row((2,), labels), index, part)
        for index, own in enumerate([((), ()), ((0,), (1,))])
        for part, labels in enumerate(own)
    ]
    loss = made.loss(module, ptkit.States(torch.ones(4, 8), [1] * 4, None, causal=False), rows)
    assert loss.weights.tolist() == [0.0, 1.0]
    assert loss.sums.tolist() == pytest.approx([0.0, 0.6931472])


def test_the_best_choice_is_the_answer_and_the_first_of_equal_ones() -> None:
    rows = [ptkit.Row((2,))] * 3
    assert head().decode(record("a", "bcd"), rows, [0.1, 0.3, -2.0], WORDS) == 1
    assert head().decode(record("a", "bcd"), rows, [0.3, 0.3, 0.3], WORDS) == 0
    assert head().reference(record("a", "bcd", 2)) == 2
    assert head().reference(record("a", "bcd")) is None
    given = [record("a", "bcd", answer) for answer in (1, 2, 1, 0)]
    assert head().constants(given, seed=0) == [1]


# ------------------------------------------------------------------------------------ contract

COLOURS = ["red", "green", "blue", "black", "white", "pink", "brown", "grey"]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"hidden": "tanh", "pooling": "mean", "max_tokens": 6}, {"pooling": "last"}]
)
def test_it_keeps_the_contract(settings: dict[str, Any], causal: bool) -> None:
    records = [
        record(f"which is {'so ' * (i % 4)}{word}", (COLOURS[i:] + COLOURS[:i])[: 2 + i % 3], i % 2)
        for i, word in enumerate(COLOURS[:6])
    ]
    check_task_head(
        head(**settings),
        records,
        unanswered=[record("which is it", COLOURS[:3])],
        backbone=TinyBackbone(TinyBackbone.Settings(causal=causal)),
    )


# ------------------------------------------------------------------------------------ whole runs


def questions(count: int, seed: int) -> list[ptkit.ChoiceRecord]:
    """Two to four choices; the right one is the only one with "warm"."""
    draw = random.Random(seed)
    made = []
    for line in range(1, count + 1):
        size = draw.randrange(2, 5)
        answer = draw.randrange(size)
        choices = [
            f"{draw.choice(COLOURS[:4])} {'warm' if index == answer else 'cold'}"
            for index in range(size)
        ]
        made.append(record("what", choices, answer, line))
    return made


@pytest.mark.parametrize("causal", [True, False])
def test_a_run_learns_to_choose(run_toy: RunToy, causal: bool) -> None:
    result = run_toy(
        MultipleChoice,
        questions(64, 0),
        questions(40, 1),
        causal=causal,
        words=["what", "warm", "cold", *COLOURS[:4]],
        training={"max_steps": 60},
    )
    assert result.scores["after"]["equal"] >= 97.5
    assert result.scores["constant"]["equal"] < 60
