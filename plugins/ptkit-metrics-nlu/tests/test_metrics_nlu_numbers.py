from __future__ import annotations

import warnings

import numpy as np
import pytest
from ptkit_metrics_nlu.regression import MeanError, PearsonSpearman

from ptkit import LabelledRecord, Origin, Pair, PluginError
from ptkit.testing import check_metric

CORRELATION = PearsonSpearman(PearsonSpearman.Settings())
ERROR = MeanError(MeanError.Settings())
NOTHING = {"pearson": 0.0, "spearman": 0.0}


@pytest.fixture(autouse=True)
def no_library_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pairs_of(predictions, references) -> list[Pair]:
    return [
        Pair(LabelledRecord(origin=Origin("a.tsv", line), text="x"), prediction, reference)
        for line, (prediction, reference) in enumerate(
            zip(predictions, references, strict=True), start=1
        )
    ]


def test_correlations_by_hand():
    # deviations -1 -1 2 and -1 0 1: 3 / sqrt(6 * 2); ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 * 2)
    scores = check_metric(CORRELATION, pairs_of([0.0, 0, 3], [1.0, 2, 3]))
    assert scores == pytest.approx({"pearson": 100 * 3 / 12**0.5, "spearman": 100 * 1.5 / 3**0.5})
    assert CORRELATION.score(pairs_of([1.0, 2], [2.0, 1])) == pytest.approx(
        {"pearson": -100, "spearman": -100}
    )
    assert CORRELATION.unit == "correlation × 100, -100–100"


def test_correlations_are_numpys():
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = rng.normal(size=30)
        given = wanted + rng.normal(size=30)
        ranks = np.corrcoef(given.argsort().argsort(), wanted.argsort().argsort())[0, 1]
        expected = {"pearson": 100 * np.corrcoef(given, wanted)[0, 1], "spearman": 100 * ranks}
        assert CORRELATION.score(pairs_of(given.tolist(), wanted.tolist())) == pytest.approx(
            expected, abs=1e-9
        )


def test_errors_by_hand():
    scores = check_metric(ERROR, pairs_of([1.0, 2.0, 6.0], [1.0, 4.0, 2.0]))
    assert scores == pytest.approx({"mae": 2.0, "rmse": (20 / 3) ** 0.5})
    assert ERROR.score(pairs_of([2.5], [2.5])) == {"mae": 0.0, "rmse": 0.0}
    assert ERROR.unit == "the labels' own unit (lower is better)"


@pytest.mark.parametrize(
    ("given", "wanted", "reason"),
    [
        ([1.5], [2.0], "1 pair of numbers, at least 2 are needed"),
        ([float("nan")] * 2, [1.0, 2.0], "0 pairs of numbers, at least 2 are needed"),
        ([2.5, 2.5], [1.0, 2.0], "all predictions are 2.5"),
        ([1.0, 2.0], [3.0, 3.0], "all references are 3"),
    ],
)
def test_undefined_correlations_are_0(given, wanted, reason):
    pairs = pairs_of(given, wanted)
    assert CORRELATION.score(pairs) == NOTHING
    line = f"{reason}: pearson and spearman are undefined, given as 0"
    assert CORRELATION.warnings(pairs)[-1] == line


def test_numbers_that_are_not_finite_are_left_out():
    odd = [float("nan"), float("inf"), 10**400]
    pairs = pairs_of([1.0, 2.0, 6.0, *odd], [1.0, 4.0, 2.0, 1.0, 1.0, 1.0])
    assert ERROR.score(pairs) == ERROR.score(pairs[:3])
    assert CORRELATION.score(pairs) == CORRELATION.score(pairs[:3])
    for metric in (ERROR, CORRELATION):
        assert metric.warnings(pairs) == [
            "3 of 6 rows have a number that is not finite and left out"
        ]
        assert metric.warnings(pairs[:4]) == [
            "1 of 4 rows has a number that is not finite and left out"
        ]
    assert ERROR.score(pairs[3:]) == {}


def test_numbers_near_the_ends_of_floats():
    pairs = pairs_of([1e308, -1e300, 5e307], [-7e307, 1e300, 0.0])
    # off by 1.7e308, 2e300 and 5e307, whose sum is beyond floats
    assert ERROR.score(pairs) == pytest.approx(
        {"mae": 1e308 * (2.2 / 3), "rmse": 1e308 * ((1.7**2 + 0.5**2) / 3) ** 0.5}
    )
    large, small = [1.7, 1.6, 0.0], [1.0, 0.2, 0.0]
    huge = pairs_of([1e308 * x for x in large], [1e308 * x for x in small])
    assert CORRELATION.score(huge) == pytest.approx(CORRELATION.score(pairs_of(large, small)))
    tiny = pairs_of([5e-324, 0.0, 1e-320], [1.0, 0.0, 2.0])
    assert CORRELATION.score(tiny)["spearman"] == pytest.approx(100)
    near = pairs_of([1.0, 1.0 + 2**-52, 1.0], [1.0, 2.0, 3.0])
    assert set(CORRELATION.score(near)) == set(NOTHING)


def test_rows_without_a_reference():
    pairs = pairs_of([1.0, 2.0, 3.0], [1.0, 3.0, None])
    assert ERROR.score(pairs) == {"mae": 0.5, "rmse": pytest.approx(0.5**0.5)}
    assert ERROR.warnings(pairs) == ["1 of 3 rows has no reference and is not scored"]
    for metric in (ERROR, CORRELATION):
        assert metric.score(pairs[2:]) == {}
        assert metric.warnings([]) == []


@pytest.mark.parametrize("metric", [CORRELATION, ERROR], ids=lambda metric: metric.name)
@pytest.mark.parametrize(("got", "shown"), [("3.5", "'3.5' (str)"), (True, "True (bool)")])
def test_predictions_that_are_no_numbers(metric, got, shown):
    with pytest.raises(PluginError) as caught:
        metric.score(pairs_of([1.0, got], [1.0, 2.0]))
    assert caught.value.lines == (
        f"a.tsv:2: metric {metric.name!r}: the prediction must be a number (float), got {shown}; "
        "mend decode() of the task head",
    )
