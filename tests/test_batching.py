"""Which records a step takes, and how its rows are split."""

from __future__ import annotations

import pytest

from ptkit.batching import Order, micro_batches


def test_an_epoch_takes_every_record_once() -> None:
    order = Order(10, 4, seed=3)
    first = [record for step in range(5) for record in order.step(step)]  # two epochs
    assert sorted(first[:10]) == sorted(first[10:]) == list(range(10))
    assert first[:10] != first[10:]


def test_steps_do_not_depend_on_how_the_order_was_used() -> None:
    fresh, used = Order(10, 4, seed=3), Order(10, 4, seed=3)
    for step in range(9):
        used.step(step)
    assert fresh.step(7) == used.step(7)
    assert Order(10, 4, seed=4).step(7) != fresh.step(7)


@pytest.mark.parametrize(("epochs", "sizes"), [(1, [4, 4, 2]), (1.5, [4, 4, 4, 3]), (0.01, [1])])
def test_epochs_end_the_order(epochs: float, sizes: list[int]) -> None:
    order = Order(10, 4, seed=0, epochs=epochs)
    assert order.steps == len(sizes)
    assert [len(order.step(step)) for step in range(len(sizes))] == sizes


def test_a_step_can_be_larger_than_the_data() -> None:
    assert sorted(Order(3, 7, seed=0).step(0)) == sorted(
        [0, 1, 2] * 2 + [Order(3, 7, seed=0).step(0)[6]]
    )


@pytest.mark.parametrize(
    ("lengths", "budget", "layout", "split"),
    [
        ([3, 3, 3], 6, "packed", [[0, 1], [2]]),
        ([3, 3, 3], 9, "packed", [[0, 1, 2]]),
        ([9, 1], 6, "packed", [[0], [1]]),  # a row over the budget stands alone
        ([1, 5, 1, 1], 8, "padded", [[0], [1], [2, 3]]),
        ([4, 4], 8, "padded", [[0, 1]]),
    ],
)
def test_micro_batches(
    lengths: list[int], budget: int, layout: str, split: list[list[int]]
) -> None:
    groups = [[index] for index in range(len(lengths))]
    assert micro_batches(groups, lengths, budget, layout) == split


def test_groups_are_not_split() -> None:
    assert micro_batches([[0, 1], [2, 3]], [6, 6], 7) == [[0], [1]]
