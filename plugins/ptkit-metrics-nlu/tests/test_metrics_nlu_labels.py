from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ptkit_metrics_nlu.accuracy import Accuracy, ChoiceAccuracy, TagAccuracy
from ptkit_metrics_nlu.labels import F1, Matthews, MultiLabelF1
from pydantic import ValidationError
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from sklearn.preprocessing import MultiLabelBinarizer

from ptkit import LabelledRecord, Metric, Origin, Pair, PluginError
from ptkit.testing import check_metric

LABELS = st.sampled_from(["sport", "news", "tech", ""])
COLUMNS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40)
SETS = st.frozensets(st.sampled_from("abcd")).map(sorted).map(tuple)
UNSCORED = "1 of 3 rows has no reference and is not scored"


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


def f1(**settings: str) -> F1:
    return F1(F1.Settings(**settings))


ACCURACY = Accuracy(Accuracy.Settings())
MATTHEWS = Matthews(Matthews.Settings())
MULTI = MultiLabelF1(MultiLabelF1.Settings())
CHOICE = ChoiceAccuracy(ChoiceAccuracy.Settings())
TAGS = TagAccuracy(TagAccuracy.Settings())

SINGLE = pairs_of("aabb", "aaab")  # what F1's docstring works out
SEVERAL = pairs_of([("a", "b"), ("a",), (), ("c",), ()], [("a",), ("a",), ("b",), ("a", "b"), ()])
TAGGED = pairs_of([("N", "V", "N"), ("V",)], [("N", "N", "N"), ("V",)])


@pytest.mark.parametrize(
    ("metric", "pairs", "scores"),
    [
        (ACCURACY, SINGLE, {"accuracy": 75.0}),
        (f1(), SINGLE, {"f1-macro": 100 * (4 / 5 + 2 / 3) / 2}),
        (f1(average="micro"), SINGLE, {"f1-micro": 75.0}),
        (f1(average="weighted"), SINGLE, {"f1-weighted": 100 * (3 * 4 / 5 + 2 / 3) / 4}),
        (f1(average="binary", positive="b"), SINGLE, {"f1-binary": 200 / 3}),
        # tp 1, tn 2, fp 1, fn 0 for b: (1 * 2 - 1 * 0) / sqrt(2 * 1 * 3 * 2)
        (MATTHEWS, SINGLE, {"mcc": 100 * 2 / 12**0.5}),
        (
            MULTI,
            SEVERAL,
            {
                # a: tp 2, fn 1; b: fp 1, fn 2; c: fp 1
                "f1-micro": 100 * 4 / (4 + 2 + 3),
                "f1-macro": 100 * (4 / 5 + 0 + 0) / 3,
                # rows: 2 of (2 + 1), right, nothing of one, nothing right, rightly nothing
                "f1-samples": 100 * (2 / 3 + 1 + 0 + 0 + 1) / 5,
                "exact-match": 40.0,
            },
        ),
        (CHOICE, pairs_of([0, 1, 7, -1], [0, 0, 1, 1]), {"choice-accuracy": 25.0}),
        (TAGS, TAGGED, {"tag-accuracy": 75.0}),
    ],
    ids=lambda value: value.name if isinstance(value, Metric) else "",
)
def test_by_hand_and_the_contract(metric, pairs, scores):
    found = check_metric(metric, pairs)
    assert found == pytest.approx(scores, abs=1e-9)
    assert list(found) == list(scores)  # the first picks the constant answer
    assert metric.warnings([]) == []
    assert metric.warnings([*pairs[:2], pairs_of([pairs[0].prediction], [None])[0]])[0] == UNSCORED
    assert metric.score(pairs_of([pairs[0].prediction], [None])) == {}


@settings(max_examples=60, deadline=None)
@given(columns=COLUMNS)
def test_labels_score_as_in_scikit_learn(columns):
    given_, wanted = map(list, zip(*columns, strict=True))
    pairs = pairs_of(given_, wanted)
    assert ACCURACY.score(pairs)["accuracy"] == pytest.approx(100 * accuracy_score(wanted, given_))
    for average in ("macro", "micro", "weighted"):
        expected = 100 * f1_score(wanted, given_, average=average, zero_division=0)
        assert f1(average=average).score(pairs)[f"f1-{average}"] == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = 100 * matthews_corrcoef(wanted, given_)
        one = f1_score(wanted, given_, labels=["news"], average="macro", zero_division=0)
    assert MATTHEWS.score(pairs)["mcc"] == pytest.approx(expected, abs=1e-9)
    binary = f1(average="binary", positive="news")
    assert binary.score(pairs)["f1-binary"] == pytest.approx(100 * one)


@settings(max_examples=60, deadline=None)
@given(columns=st.lists(st.tuples(SETS, SETS), min_size=1, max_size=20))
def test_sets_of_labels_score_as_in_scikit_learn(columns):
    given_, wanted = map(list, zip(*columns, strict=True))
    # scikit-learn takes a table of one column for something else than sets: a spare one, not scored
    names = sorted({name for row in given_ + wanted for name in row}) or ["a"]
    table = MultiLabelBinarizer(classes=[*names, "spare", "also spare"])
    truth, said = table.fit_transform(wanted), table.fit_transform(given_)
    expected = {
        f"f1-{average}": 100
        * f1_score(truth, said, average=average, labels=range(len(names)), zero_division=zero)
        for average, zero in (("micro", 0), ("macro", 0), ("samples", 1))
    }
    expected["exact-match"] = 100 * accuracy_score(truth, said)
    assert MULTI.score(pairs_of(given_, wanted)) == pytest.approx(expected, abs=1e-9)


def test_order_and_repeats_of_a_set_make_no_difference():
    pairs = pairs_of([("b", "a", "b"), ["a"]], [["a", "b"], ("a",)])
    assert set(MULTI.score(pairs).values()) == {100.0}


def test_rows_have_scores_where_the_score_is_their_mean():
    assert [ACCURACY.score_row(pair) for pair in SINGLE[2:]] == [
        {"accuracy": 0.0},
        {"accuracy": 100.0},
    ]
    assert CHOICE.score_row(pairs_of([1], [1])[0]) == {"choice-accuracy": 100.0}
    assert MULTI.score_row(SEVERAL[0]) == {"f1-samples": pytest.approx(200 / 3), "exact-match": 0.0}
    assert ACCURACY.score_row(pairs_of("a", [None])[0]) is None


def test_mcc_of_one_label_is_0_and_says_so():
    for given_, wanted, lines in (
        ("ab", "aa", ["every reference is 'a': mcc is 0 / 0, given as 0"]),
        ("bb", "ab", ["every prediction is 'b': mcc is 0 / 0, given as 0"]),
        (
            "aa",
            "aa",
            [
                "every reference is 'a': mcc is 0 / 0, given as 0",
                "every prediction is 'a': mcc is 0 / 0, given as 0",
            ],
        ),
        ("ab", "ab", []),
    ):
        pairs = pairs_of(given_, wanted)
        assert MATTHEWS.score(pairs) == {"mcc": 100.0 if not lines else 0.0}
        assert MATTHEWS.warnings(pairs) == lines


def test_mcc_can_be_negative():
    assert MATTHEWS.score(pairs_of("ab", "ba")) == {"mcc": pytest.approx(-100)}
    assert MATTHEWS.unit == "correlation × 100, -100–100"


def test_labels_that_only_predictions_have_are_named():
    pairs = pairs_of("abcd", "aabb")
    line = "2 labels predicted that no reference has ('c', 'd'): F1 0 each in f1-macro"
    assert f1().warnings(pairs) == [line]
    assert f1(average="weighted").warnings(pairs) == []
    many = pairs_of([(name,) for name in "bcdefghijk"], [("a",)] * 10)
    assert MULTI.warnings(many) == [
        "10 labels predicted that no reference has "
        "('b', 'c', 'd', 'e', 'f', 'g', 'h', 'i' and 2 more): F1 0 each in f1-macro"
    ]
    assert f1().warnings(pairs_of("ab", "aa"))[0].startswith("1 label predicted that")


def test_rows_without_any_label():
    pairs = pairs_of([(), ()], [(), ()])
    assert MULTI.score(pairs) == {
        "f1-micro": 0.0,
        "f1-macro": 0.0,
        "f1-samples": 100.0,
        "exact-match": 100.0,
    }
    assert MULTI.warnings(pairs) == [
        "no row has a label or is given one: f1-micro and f1-macro are 0 / 0, given as 0"
    ]


def test_binary_f1_needs_a_positive_label():
    with pytest.raises(ValidationError) as caught:
        F1.Settings(average="binary")
    assert caught.value.errors()[0]["msg"].removeprefix("Value error, ") == (
        'average = "binary" needs positive, the label whose F1 is wanted, got none; '
        'set it, or average = "macro"'
    )
    with pytest.raises(ValidationError) as caught:
        F1.Settings(positive="yes")
    assert caught.value.errors()[0]["msg"].removeprefix("Value error, ") == (
        'positive is for average = "binary", got average = "macro"; set that, or remove positive'
    )


def test_a_positive_label_that_no_row_has():
    pairs = pairs_of(["entailment"] * 2, ["entailment", "neutral"])
    metric = f1(average="binary", positive="entailmnet")
    assert metric.score(pairs) == {"f1-binary": 0.0}
    assert metric.warnings(pairs) == [
        "no reference is 'entailmnet' (did you mean 'entailment'?), so f1-binary is 0; "
        "set positive of the metric 'f1' to one of 'entailment', 'neutral'"
    ]


def test_tags_of_another_number_than_words():
    pairs = pairs_of([("N",), ("N", "V", "V"), ("V",)], [("N", "N"), ("N", "V"), ("V",)])
    assert TAGS.score(pairs) == {"tag-accuracy": 80.0}
    assert TAGS.warnings(pairs) == [
        "2 predictions have more or fewer tags than words (of 3 rows): "
        "a missing tag counts as wrong, further ones are ignored"
    ]
    assert TAGS.warnings(pairs[:1])[0].startswith("1 prediction has more or fewer tags")
    assert TAGS.score(pairs_of([("N",)], [()])) == {}


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "line"),
    [
        (
            ACCURACY,
            7,
            "a",
            "a.tsv:1: metric 'accuracy': the prediction must be a label (str), got 7 (int); "
            "mend decode() of the task head",
        ),
        (
            f1(),
            None,
            "a",
            "a.tsv:1: metric 'f1': the prediction must be a label (str), got None (NoneType); "
            "mend decode() of the task head",
        ),
        (
            MATTHEWS,
            "a",
            3.5,
            "a.tsv:1: metric 'matthews': the reference must be a label (str), got 3.5 (float); "
            "mend reference() of the task head",
        ),
        (
            MULTI,
            "ab",
            ("a",),
            "a.tsv:1: metric 'multi-label-f1': the prediction must be labels (str) in a tuple or "
            "list, got 'ab' (str); mend decode() of the task head",
        ),
        (
            CHOICE,
            True,
            1,
            "a.tsv:1: metric 'choice-accuracy': the prediction must be the index of a choice "
            "(int), got True (bool); mend decode() of the task head",
        ),
        (
            TAGS,
            ("N", 1),
            ("N", "V"),
            "a.tsv:1: metric 'tag-accuracy': the prediction must be a tag (str) for every word, in "
            "a tuple or list, got ('N', 1) (tuple); mend decode() of the task head",
        ),
        (
            ACCURACY,
            ["a\n" * 40],
            "a",
            "a.tsv:1: metric 'accuracy': the prediction must be a label (str), "
            f"got {repr(['a' + chr(10) * 1 + ('a' + chr(10)) * 39])[:40]}… (list); "
            "mend decode() of the task head",
        ),
    ],
)
def test_values_of_another_type_are_refused(metric, prediction, reference, line):
    with pytest.raises(PluginError) as caught:
        metric.score(pairs_of([prediction], [reference]))
    assert caught.value.lines == (line,)
