"""The shuffled control."""

from __future__ import annotations

import pytest
from ptkit_tasks.controls import ShuffleResponses

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
