from __future__ import annotations

import os
import subprocess
import sys

import ptkit_metrics_zh
import pytest
from ptkit_metrics_zh.bleu import BleuChar
from ptkit_metrics_zh.rouge import RougeZh
from ptkit_metrics_zh.words import Words

from ptkit import Origin, Pair, Record

# computed with the published evaluation code
GOLDEN = [
    (
        "这是一款简约的牛仔外套,破洞设计,将牛仔布破洞,带来一种随意与个性。"
        "破洞的牛仔外套,展现出时尚气息,带来一种休闲感。同时,刺绣图案,让整件外套更加立体。",
        "简约而不简单的牛仔外套,白色的衣身十分百搭。衣身多处有做旧破洞设计,打破单调乏味,"
        "增加一丝造型看点。衣身后背处有趣味刺绣装饰,丰富层次感,彰显别样时尚。",
        {"rouge-1": 30.7692, "rouge-2": 12.0482, "rouge-l": 28.8889, "bleu-4": 13.9796},
    ),
    (
        "你好",
        "你好，世界",
        {"rouge-1": 50.0, "rouge-2": 0.0, "rouge-l": 50.0, "bleu-4": 13.2674},
    ),
    ("abc", "xyz", {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0, "bleu-4": 0.0}),
]
ZEROS = {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0, "bleu-4": 0.0}


def pair(prediction: str, reference: str | None) -> Pair:
    return Pair(Record(origin=Origin("x.json", 1)), prediction, reference)


@pytest.fixture(scope="module")
def rouge() -> RougeZh:
    return RougeZh(RougeZh.Settings())


@pytest.fixture(scope="module")
def bleu() -> BleuChar:
    return BleuChar(BleuChar.Settings())


@pytest.fixture(scope="module")
def score_row(rouge, bleu):
    def score_row(prediction: str, reference: str) -> dict[str, float]:
        row = pair(prediction, reference)
        return {**rouge.score_row(row), **bleu.score_row(row)}

    return score_row


def test_what_is_registered():
    assert ptkit_metrics_zh.ptkit_register_metrics() == [RougeZh, BleuChar]
    assert (RougeZh.name, BleuChar.name) == ("rouge-zh", "bleu-char")
    assert RougeZh.scores == BleuChar.scores == "text"


@pytest.mark.parametrize(("prediction", "reference", "scores"), GOLDEN)
def test_published_numbers(score_row, prediction, reference, scores):
    assert score_row(prediction, reference) == pytest.approx(scores, abs=1e-3)


def test_means_over_rows(rouge, bleu):
    pairs = [pair(prediction, reference) for prediction, reference, _ in GOLDEN]
    assert rouge.score(pairs) == pytest.approx(
        {"rouge-1": 80.7692 / 3, "rouge-2": 12.0482 / 3, "rouge-l": 78.8889 / 3}, abs=1e-3
    )
    assert bleu.score(pairs) == pytest.approx({"bleu-4": 27.2470 / 3}, abs=1e-3)


def test_the_order_of_rows_makes_no_difference(rouge, bleu):
    pairs = [pair(prediction, reference) for prediction, reference, _ in GOLDEN] + [pair("", "裙")]
    assert rouge.score(pairs[::-1]) == pytest.approx(rouge.score(pairs), abs=1e-12)
    assert bleu.score(pairs[::-1]) == pytest.approx(bleu.score(pairs), abs=1e-12)


def test_a_perfect_match(score_row):
    assert score_row("宽松的裤子", "宽松的裤子") == pytest.approx(
        dict.fromkeys(ZEROS, 100.0), abs=1e-5
    )


def test_one_word_has_no_word_pairs(score_row):
    assert score_row("裤子", "裤子")["rouge-1"] == pytest.approx(100, abs=1e-5)
    assert score_row("裤子", "裤子")["rouge-2"] == 0.0


@pytest.mark.parametrize("prediction", ["", " ", "\n", "\u3000\t\r\n", "\x1c"])
def test_an_empty_prediction_scores_0(score_row, prediction):
    assert score_row(prediction, "宽松的裤子") == ZEROS


ODD = [
    "。",
    "。！？",
    "? ? ?",
    " 。 \n ， ",
    "……",
    "”",
    "裙",
    "a",
    "😀",
    "👩‍👩‍👧",
    "\u200b",
    "\ufeff",
    "\0",
    "\n裙",
    "裙\n\n裤",
    "......a",
    "宽松的裤子" * 600,
    "哈" * 3000,
    "a" * 3000,
    "。" * 3000,
    "1 " * 1000,
]


@pytest.mark.parametrize("text", ODD, ids=[ascii(text[:8]) for text in ODD])
def test_odd_texts_get_a_score(score_row, text):
    for prediction, reference in [(text, "宽松的裤子"), ("宽松的裤子", text)]:
        scores = score_row(prediction, reference)
        assert scores.keys() == ZEROS.keys()
        assert all(0 <= score <= 100 for score in scores.values())


@pytest.mark.parametrize("reference", [None, "", " \n"])
def test_rows_without_a_reference_are_not_scored(rouge, bleu, reference):
    pairs = [pair("裤子", reference), pair("宽松的裤子", "宽松的裤子")]
    assert rouge.score_row(pairs[0]) is None
    assert bleu.score_row(pairs[0]) is None
    assert bleu.score(pairs) == {"bleu-4": pytest.approx(100)}
    assert bleu.score(pairs[:1]) == {}


@pytest.mark.parametrize("metric", ["rouge", "bleu"])
@pytest.mark.parametrize(
    ("empty", "lines"),
    [
        (0, []),
        (1, ["1 of 5 predictions is empty and scores 0"]),
        (3, ["3 of 5 predictions are empty and score 0"]),
    ],
)
def test_empty_predictions_are_counted(request, metric, empty, lines):
    pairs = [pair(" ", "裙")] * empty + [pair("裙", "裙")] * (5 - empty)
    assert request.getfixturevalue(metric).warnings(pairs) == lines


def test_missing_references_are_counted(bleu):
    pairs = [pair("裙", "裙"), pair("", "裙"), pair("", None)]
    assert bleu.warnings(pairs) == [
        "1 of 2 predictions is empty and scores 0",
        "1 of 3 references is empty; its row is not scored",
    ]
    assert bleu.warnings([*pairs, pair("裙", " ")])[1] == (
        "2 of 4 references are empty; their rows are not scored"
    )


def test_cuts_are_remembered(rouge):
    words = Words()
    assert words.spaced("宽松的裤子") == words.spaced("宽松的裤子") == "宽松 的 裤子"
    assert words.spaced.cache_info().hits == 1
    assert words.spaced.cache_info().maxsize == 16_384


def test_words_added_to_jieba_change_no_score():
    code = (
        "import jieba; from ptkit_metrics_zh.words import Words;"
        "jieba.setLogLevel('ERROR'); jieba.add_word('宽松的裤子');"
        "print(Words().spaced('宽松的裤子'))"
    )
    assert run(code) == "宽松 的 裤子\n"


def test_registering_imports_nothing_heavy():
    code = (
        "import ptkit_metrics_zh, sys; ptkit_metrics_zh.ptkit_register_metrics();"
        "print({'jieba', 'nltk', 'rouge_chinese', 'numpy', 'torch'} & set(sys.modules))"
    )
    assert run(code) == "set()\n"


def test_scoring_says_nothing_and_leaves_no_file(tmp_path):
    code = (
        "from ptkit import Origin, Pair, Record;"
        "from ptkit_metrics_zh.bleu import BleuChar; from ptkit_metrics_zh.rouge import RougeZh;"
        "row = Pair(Record(origin=Origin('x', 1)), '宽松的裤子', '裤子');"
        "[kind(kind.Settings()).score([row]) for kind in (RougeZh, BleuChar)];"
        "import os, tempfile; print(os.listdir(tempfile.gettempdir()))"
    )
    assert run(code, TMPDIR=str(tmp_path)) == "[]\n"


def run(code: str, **environment: str) -> str:
    """What ``code`` prints, in a process of its own that may say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONUTF8": "1", **environment},
    )
    assert done.stderr == ""
    return done.stdout
