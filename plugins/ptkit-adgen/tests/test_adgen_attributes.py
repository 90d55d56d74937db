from __future__ import annotations

import pytest
from ptkit_adgen.attributes import AttributeShare, attribute_values

from ptkit import GenerationRecord, Origin, Pair, Record

ORIGIN = Origin("x.json", 1)


def pair(prompt: str, prediction: str) -> Pair:
    return Pair(GenerationRecord(origin=ORIGIN, prompt=prompt), prediction, "一条裙子")


@pytest.fixture
def metric() -> AttributeShare:
    return AttributeShare(AttributeShare.Settings())


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("类型#裙*版型#宽松*图案#条纹", ["裙", "宽松", "条纹"]),
        ("类型#裙", ["裙"]),
        (" 类型#裙*版型# 宽松\n", ["裙", "宽松"]),
        ("图案#条纹*图案#条纹", ["条纹", "条纹"]),
        ("一条裙子", []),
        ("", []),
        ("类型#裙*", []),
        ("类型#裙*宽松", []),
        ("类型#*版型#宽松", []),
        ("#裙", []),
        ("类型#裙#红", []),
    ],
)
def test_attribute_lists(prompt, values):
    assert attribute_values(prompt) == values


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("这条宽松的连衣裙", 200 / 3),
        ("类型#裙*版型#宽松*图案#条纹", 100.0),
        ("衣服", 0.0),
        ("", 0.0),
    ],
)
def test_the_share_of_values_found(metric, prediction, score):
    row = metric.score_row(pair("类型#裙*版型#宽松*图案#条纹", prediction))
    assert row == {"attribute-share": pytest.approx(score)}


def test_other_prompts_are_left_out(metric):
    assert metric.score_row(pair("写一段广告", "裙")) is None
    assert metric.score_row(Pair(Record(origin=ORIGIN), "裙", "裙")) is None
    assert metric.score([pair("写一段广告", "裙")]) == {}
    assert metric.score([pair("写一段广告", ""), pair("类型#裙", "裙")]) == {
        "attribute-share": 100.0
    }


def test_the_mean_over_rows_does_not_depend_on_their_order(metric):
    pairs = [pair("类型#裙*版型#宽松", "裙"), pair("类型#裤", "裙"), pair("类型#裙", "裙")]
    assert metric.score(pairs) == metric.score(pairs[::-1]) == {"attribute-share": 50.0}
