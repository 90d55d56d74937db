"""The shuffled controls."""

from __future__ import annotations

import pytest
from ptkit_tasks.controls import ShuffleLabels, ShuffleResponses

import ptkit

RECORDS = [
    ptkit.GenerationRecord(origin=ptkit.Origin("a.json", i), prompt=f"p{i}", response=f"r{i}")
    for i in range(1, 9)
]


def test_every_prompt_gets_the_response_of_another_row() -> None:
    shuffle = ShuffleResponses(ShuffleResponses.Settings())
    got = list(shuffle.apply(RECORDS, seed=0))
    assert [r.prompt for r in got] == [r.prompt for r in RECORDS]
    assert sorted(r.response for r in got) == sorted(r.response for r in RECORDS)
    assert all(r.response != f"r{r.prompt[1:]}" for r in got)
    assert got == list(shuffle.apply(RECORDS, seed=0))
    assert got != list(shuffle.apply(RECORDS, seed=1))


def test_other_records_are_refused() -> None:
    other = ptkit.Record(origin=ptkit.Origin("b.json", 3))
    with pytest.raises(ptkit.RecipeError, match="b.json:3: transform 'shuffle-responses' takes"):
        list(ShuffleResponses(ShuffleResponses.Settings()).apply([other], seed=0))


def test_every_text_gets_the_label_of_another_row() -> None:
    records = [
        ptkit.LabelledRecord(origin=ptkit.Origin("a.csv", i), text=f"t{i}", label=f"l{i}")
        for i in range(1, 9)
    ]
    shuffle = ShuffleLabels(ShuffleLabels.Settings())
    got = list(shuffle.apply(records, seed=0))
    assert [r.text for r in got] == [r.text for r in records]
    assert sorted(r.label for r in got) == [r.label for r in records]
    assert all(r.label != f"l{r.text[1:]}" for r in got)
    assert got == list(shuffle.apply(records, seed=0))
    assert got != list(shuffle.apply(records, seed=1))


def test_the_answer_to_a_question_is_drawn_from_its_own_choices() -> None:
    """Of two, three or four choices the first one is right; what is drawn knows nothing of it."""
    records = [
        ptkit.ChoiceRecord(
            origin=ptkit.Origin("a.jsonl", i),
            question=f"q{i}",
            choices=("a", "b", "c", "d")[: 2 + i % 3],
            answer=0,
        )
        for i in range(900)
    ]
    shuffle = ShuffleLabels(ShuffleLabels.Settings())
    got = list(shuffle.apply(records, seed=0))
    assert [(r.question, r.choices) for r in got] == [(r.question, r.choices) for r in records]
    for size in (2, 3, 4):
        own = [r.answer for r in got if len(r.choices) == size]
        shares = [own.count(answer) / len(own) for answer in range(size)]
        assert sum(shares) == pytest.approx(1)
        # 300 draws: a standard deviation is 3 %
        assert shares == pytest.approx([1 / size] * size, abs=0.1)
    assert got == list(shuffle.apply(records, seed=0))
    assert got != list(shuffle.apply(records, seed=1))


def test_shuffle_labels_refuses_other_records() -> None:
    with pytest.raises(ptkit.RecipeError) as error:
        list(ShuffleLabels(ShuffleLabels.Settings()).apply(RECORDS, seed=0))
    assert str(error.value) == (
        "a.json:1: transform 'shuffle-labels' takes LabelledRecord or ChoiceRecord, got "
        "GenerationRecord; remove it from the recipe"
    )
