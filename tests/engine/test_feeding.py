"""Micro-batches that are made ahead: the same ones, in order, and no thread stays behind."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from ptkit.engine.feeding import Feeder, Rows, StepData, split
from ptkit.records import EncodedRow, Row
from ptkit.rowstore import RowStore


def store() -> RowStore:
    made = RowStore()
    made.append([Row((5, 6, 7), token_types=(0, 0, 1))], weight=2.0)
    made.append([Row((8,))])
    made.append([Row((9, 10))], weight=0.5)
    return made


def step(index: int) -> StepData:
    return StepData(index, [[index]], 10, [])


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "ptkit-feeder"]


def test_a_split_by_hand() -> None:
    found = list(split(store(), [[0], [1], [2]], 4, "packed"))
    assert [[row.record for row in batch.rows] for batch in found] == [[0, 1], [2]]
    assert [batch.weights.tolist() for batch in found] == [[2.0, 1.0], [0.5]]
    assert [batch.tokens for batch in found] == [4, 2]
    # padded, three and one tokens take six
    found = list(split(store(), [[0], [1], [2]], 6, "padded"))
    assert [(len(batch.rows), batch.tokens) for batch in found] == [(2, 6), (1, 2)]


def test_flat_numbers_by_hand() -> None:
    rows = Rows(store())
    assert rows.lengths == [3, 1, 2]
    assert rows.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert rows.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert rows.token_types is not None
    assert rows.token_types.tolist() == [0, 0, 1, 0, 0, 0]
    assert rows.ids.dtype == rows.positions.dtype == torch.int64
    assert rows.ids is rows.ids
    assert Rows.of(rows) is rows
    plain = [EncodedRow(Row((1, 2)), 0)]
    assert Rows.of(plain).token_types is None
    assert Rows.of(plain) == plain


@pytest.mark.parametrize("ahead", [False, True])
def test_every_step_once_in_order(*, ahead: bool) -> None:
    with Feeder(step, 3, 40, ahead=ahead) as feeder:
        assert [feeder.next().step for _ in range(3, 40)] == list(range(3, 40))
        with pytest.raises(StopIteration):
            feeder.next()
    assert threads() == []


def test_two_steps_are_made_ahead_and_not_more() -> None:
    made: list[int] = []

    def make(index: int) -> StepData:
        made.append(index)
        return step(index)

    with Feeder(make, 0, 100, ahead=True) as feeder:
        assert feeder.next().step == 0
        for _ in range(200):
            if len(made) == 4:
                break
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]  # given, two that wait, and one that has no place yet
    assert threads() == []


def test_on_a_cpu_nothing_is_made_before_it_is_asked_for() -> None:
    made: list[int] = []

    def make(index: int) -> StepData:
        made.append(index)
        time.sleep(0.02)
        return step(index)

    with Feeder(make, 0, 100, ahead=False) as feeder:
        assert made == []
        feeder.next()
        assert made == [0]
        assert feeder.waited >= 0.02
        assert threads() == []


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_raised_is_raised_by_the_step_that_it_is_of(*, ahead: bool) -> None:
    def make(index: int) -> StepData:
        if index == 2:
            raise OSError("train.json:17: can't be read")
        return step(index)

    with Feeder(make, 0, 100, ahead=ahead) as feeder:
        assert [feeder.next().step, feeder.next().step] == [0, 1]
        with pytest.raises(OSError, match=r"^train.json:17: can't be read$"):
            feeder.next()
    assert threads() == []


@pytest.mark.parametrize("asked", [0, 1, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_no_thread_stays_behind_an_error(error: type[BaseException], asked: int) -> None:
    def leave() -> None:
        with Feeder(step, 0, 1000, ahead=True) as feeder:
            for _ in range(asked):
                feeder.next()
            raise error

    for _ in range(20):
        with pytest.raises(error):
            leave()
        assert threads() == []
