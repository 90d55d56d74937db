"""Bootstrap intervals, against numpy with the resamples written out."""

from __future__ import annotations

import numpy as np
import pytest

from ptkit.engine.bootstrap import RESAMPLES, SEED, Bootstrap

BEFORE = [10.0, 20.0, 30.0, 40.0, 55.0, 60.0]
AFTER = [15.0, 22.0, 31.0, 39.0, 70.0, 80.0]


def columns(**values: list[float | None]) -> dict[str, list[dict[str, float]]]:
    return {
        name: [{} if value is None else {"m": value} for value in column]
        for name, column in values.items()
    }


def picked(rows: int) -> np.ndarray:
    generator = np.random.default_rng(SEED)
    return np.stack([generator.integers(rows, size=rows) for _ in range(RESAMPLES)])


def test_means_and_paired_differences_are_numpys() -> None:
    bootstrap = Bootstrap(columns(before=BEFORE, after=AFTER))
    drawn = picked(6)
    before, after = np.array(BEFORE)[drawn].mean(1), np.array(AFTER)[drawn].mean(1)
    mean = bootstrap.mean("after", "m")
    assert mean is not None
    assert mean.value == pytest.approx(np.mean(AFTER))
    assert mean[1:] == pytest.approx(np.percentile(after, [2.5, 97.5]))
    change = bootstrap.difference("after", "before", "m")
    assert change is not None
    assert change.value == pytest.approx(np.mean(AFTER) - np.mean(BEFORE))
    assert change[1:] == pytest.approx(np.percentile(after - before, [2.5, 97.5]))
    # paired: the rows' own spread cancels, so that it is far narrower than the mean's
    assert change.high - change.low < mean.high - mean.low


def test_rows_without_a_score_count_nothing() -> None:
    holes = [10.0, None, 30.0, 40.0, None, 60.0, 5.0, 80.0, 20.0, 35.0]
    mean = Bootstrap(columns(after=holes)).mean("after", "m")
    values = np.array([np.nan if value is None else value for value in holes])[picked(10)]
    assert mean is not None
    assert mean.value == pytest.approx(35.0)
    assert mean[1:] == pytest.approx(np.nanpercentile(np.nanmean(values, 1), [2.5, 97.5]))


def test_equal_rows_leave_no_doubt() -> None:
    assert Bootstrap(columns(after=[5.0] * 9)).mean("after", "m") == (5.0, 5.0, 5.0)


@pytest.mark.parametrize("values", [[], [3.0], [None, 3.0], [float("nan"), 3.0]])
def test_less_than_two_scores_give_no_interval(values: list[float | None]) -> None:
    bootstrap = Bootstrap(columns(before=values, after=values))
    assert bootstrap.mean("after", "m") is None
    assert bootstrap.difference("after", "before", "m") is None


def test_unknown_columns_and_scores_give_no_interval() -> None:
    bootstrap = Bootstrap(columns(after=AFTER))
    assert bootstrap.mean("constant", "m") is None
    assert bootstrap.mean("after", "other") is None
    assert Bootstrap({}).mean("after", "m") is None


def test_it_is_the_same_every_time() -> None:
    one, two = (Bootstrap(columns(after=AFTER)).mean("after", "m") for _ in range(2))
    assert one == two


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        rows = draw.normal(50, 10, size=100).tolist()
        mean = Bootstrap(columns(after=rows), resamples=400).mean("after", "m")
        assert mean is not None
        hits += mean.low <= 50 <= mean.high
    assert 88 <= hits <= 99
