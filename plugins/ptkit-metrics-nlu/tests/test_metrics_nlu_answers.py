from __future__ import annotations

import re
import string
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize
from ptkit_metrics_nlu.answers import Cmrc, Squad, cmrc_segments, longest_common_run, squad_words

from ptkit import Answer, ExtractionRecord, Origin, Pair, PluginError
from ptkit.testing import check_metric

SQUAD = Squad(Squad.Settings())
SQUAD_1 = Squad(Squad.Settings(version="1.1"))
CMRC = Cmrc(Cmrc.Settings())


def pair(said: str, answers: list[str] | None, line: int = 1) -> Pair:
    gold = None if answers is None else tuple(Answer(text, 0) for text in answers)
    record = ExtractionRecord(
        origin=Origin("dev.json", line), key="q", question="?", context="…", answers=gold
    )
    return Pair(record, {"text": said, "start": -1, "score": 0.5}, answers)


# ------------------------------------------------------------------------------------ SQuAD
# after Rajpurkar and others' evaluate-v1.1.py and evaluate-v2.0.py
# (https://rajpurkar.github.io/SQuAD-explorer/), restated


def normalized(text: str) -> str:
    kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def pair_f1(said: str, gold: str, *, version: str) -> float:
    said_words, gold_words = normalized(said).split(), normalized(gold).split()
    if version == "2.0" and (not said_words or not gold_words):
        return float(said_words == gold_words)
    same = sum((Counter(said_words) & Counter(gold_words)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(said_words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def official_squad(said: str, golds: list[str], *, version: str) -> tuple[float, float]:
    if version == "2.0":
        golds = [gold for gold in golds if normalized(gold)] or [""]
    exact = max(normalized(said) == normalized(gold) for gold in golds)
    return 100.0 * exact, 100 * max(pair_f1(said, gold, version=version) for gold in golds)


@pytest.mark.parametrize(
    ("said", "golds", "exact", "f1"),
    [
        ("the tall Eiffel Tower", ["Eiffel Tower!"], 0, 80),  # 2 common of 3 and 2
        ("The Eiffel-Tower", ["eiffel tower"], 0, 0),  # the hyphen goes, the words grow together
        ("A cat", ["the  CAT."], 100, 100),
        ("cat cat cat", ["cat"], 0, 50),  # repeated: 1 common of 3 and 1
        ("cat cat", ["cat cat dog"], 0, 80),  # 2 common of 2 and 3
        ("dog", ["cat", "a dog", "dog house"], 100, 100),  # the best of three
        ("dog", ["cat", "dog house"], 0, 200 / 3),
        ("", ["cat"], 0, 0),
        ("…", ["..."], 0, 0),  # no ASCII punctuation is a word
        ("“Théa”", ["“théa”"], 100, 100),
        ("theatre", ["atre"], 0, 0),  # articles are whole words
        ("a.n. other", ["other"], 100, 100),  # a.n. becomes an, an article
        ("１９９８", ["1998"], 0, 0),
        ("", [], 100, 100),
        ("", [""], 100, 100),
        ("The", [], 100, 100),  # no word is no answer
        ("cat", [], 0, 0),
        ("cat", [""], 0, 0),
    ],
)
def test_squad_by_hand(said, golds, exact, f1):
    row = pair(said, golds)
    for metric in (SQUAD, SQUAD_1):
        assert metric.score_row(row) == pytest.approx({"exact-match": exact, "f1": f1})


@pytest.mark.parametrize(
    ("said", "golds", "by_2", "by_1"),
    [
        ("a", ["The"], (100, 100), (100, 0)),  # 2.0: no answer, and nothing said
        ("", ["The", "!"], (100, 100), (100, 0)),
        ("cat", ["The"], (0, 0), (0, 0)),
        ("an", ["The", "cat"], (0, 0), (100, 0)),  # 2.0: only cat is an answer
        ("cat", ["The", "cat"], (100, 100), (100, 100)),
    ],
)
def test_answers_without_a_word(said, golds, by_2, by_1):
    row = pair(said, golds)
    assert SQUAD.score_row(row) == {"exact-match": by_2[0], "f1": by_2[1]}
    assert SQUAD_1.score_row(row) == {"exact-match": by_1[0], "f1": by_1[1]}


SAYINGS = st.lists(
    st.sampled_from(
        ["the", "A", "an", "cat", "Cat.", "dog", "-", "U.S.", "théa", "\u00a0", "…", "'s"]
    ),
    max_size=5,
).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(
    said=st.one_of(SAYINGS, st.text(max_size=8)), golds=st.lists(SAYINGS, min_size=1, max_size=3)
)
def test_squad_is_the_official_script(said, golds):
    if not any(golds):
        golds = ["cat"]
    for metric in (SQUAD, SQUAD_1):
        exact, f1 = official_squad(said, golds, version=metric.settings.version)
        found = metric.score_row(pair(said, golds))
        assert found == pytest.approx({"exact-match": exact, "f1": f1}, abs=1e-9)


def test_squad_scores_of_both_kinds_of_questions():
    pairs = [
        pair("cat", ["cat"]),
        pair("big cat", ["cat", "cats"]),
        pair("", ["dog"]),
        pair("", []),
        pair("dog", []),
    ]
    assert check_metric(SQUAD, pairs) == pytest.approx(
        {
            "exact-match": 40.0,
            "f1": (100 + 200 / 3 + 0 + 100 + 0) / 5,
            "has-answer-exact-match": 100 / 3,
            "has-answer-f1": (100 + 200 / 3) / 3,
            "no-answer-accuracy": 50.0,
        }
    )
    assert list(SQUAD.score(pairs[:3])) == ["exact-match", "f1"]
    assert SQUAD.score(pairs[3:]) == {
        "exact-match": 50.0,
        "f1": 50.0,
        "no-answer-accuracy": 50.0,
    }
    assert SQUAD.warnings(pairs) == ["1 of 3 questions with an answer is answered with nothing"]


def test_squad_words():
    assert squad_words("The U.S. Army's  a-team") == ["us", "armys", "ateam"]


# ------------------------------------------------------------------------------------ CMRC
# after Cui and others' cmrc2018_evaluate.py, version 5 (https://github.com/ymcui/cmrc2018),
# restated

SPECIAL = [*"-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』", "……"]


def segmented(text: str) -> list[str]:
    segments: list[str] = []
    rest = ""
    for char in [*text.lower().strip(), None]:
        if char in SPECIAL:
            continue
        if char is None or re.search("[\u4e00-\u9fa5]", char):
            if rest:
                segments += word_tokenize(rest, preserve_line=True)
                rest = ""
            segments += [char] if char else []
        else:
            rest += char
    return segments


def longest_run(first, second) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, one in enumerate(first):
        for j, other in enumerate(second):
            if one == other:
                table[i + 1][j + 1] = table[i][j] + 1
    return max(map(max, table))


def official_cmrc(said: str, golds: list[str]) -> tuple[float, float]:
    f1s = []
    for gold in golds:
        run = longest_run(segmented(gold), segmented(said))
        if run == 0:
            f1s.append(0.0)
            continue
        precision, recall = run / len(segmented(said)), run / len(segmented(gold))
        f1s.append(2 * precision * recall / (precision + recall))
    bare = ["".join(c for c in x.lower().strip() if c not in SPECIAL) for x in (said, *golds)]
    return 100.0 * (bare[0] in bare[1:]), 100 * max(f1s)


@pytest.mark.parametrize(
    ("said", "golds", "exact", "f1"),
    [
        ("1998年5月", ["1998年"], 0, 200 / 3),  # a run of 2, of 4 and 2
        ("《红楼梦》", ["红楼梦"], 100, 100),
        ("红楼梦……", ["红楼梦"], 0, 600 / 7),  # "…" is no mark: one word of its own
        ("红梦", ["红楼梦"], 0, 40),  # runs of 1, not 2: 1 of 2 and 3
        ("哈哈哈", ["哈"], 0, 50),  # repeated: 1 of 3 and 1
        ("windows 系统", ["Windows系统"], 0, 100),  # blanks count for exact match only
        ("Hello, World", ["hello world"], 0, 40),  # the ASCII comma is a word and breaks the run
        ("清朝", ["明朝", "清 朝", "清朝"], 100, 100),
        ("清朝", ["明朝"], 0, 50),
        ("", ["清朝"], 0, 0),
        ("。", ["清朝"], 0, 0),
        ("。", ["，"], 100, 0),  # nothing but marks: equal, without a segment in common
        ("𠮷", ["𠮷"], 100, 100),  # beyond 9FA5: a word, not a Chinese character
        ("", [], 100, 100),
        (" - ", [""], 100, 100),
        ("清朝", [], 0, 0),
    ],
)
def test_cmrc_by_hand(said, golds, exact, f1):
    assert CMRC.score_row(pair(said, golds)) == pytest.approx(
        {"exact-match": exact, "f1": f1, "average": (exact + f1) / 2}
    )


CHINESE = st.text("红楼梦红楼梦1998ab .,'\"-…，。《》A\u9fa5\u9fa6", max_size=12)


@settings(max_examples=300, deadline=None)
@given(said=CHINESE, golds=st.lists(CHINESE, min_size=1, max_size=3))
def test_cmrc_is_the_official_script(said, golds):
    if not any(golds):
        golds = ["红"]
    exact, f1 = official_cmrc(said, golds)
    expected = {"exact-match": exact, "f1": f1, "average": (exact + f1) / 2}
    assert CMRC.score_row(pair(said, golds)) == pytest.approx(expected, abs=1e-9)


def test_cmrc_scores_and_warnings():
    pairs = [pair("清朝", ["清朝"]), pair("明", ["明朝"]), pair("", ["唐"]), pair("", [])]
    scores = {"exact-match": 50.0, "f1": (100 + 200 / 3 + 0 + 100) / 4}
    scores["average"] = (scores["exact-match"] + scores["f1"]) / 2
    assert check_metric(CMRC, pairs) == pytest.approx(scores)
    assert CMRC.warnings(pairs) == [
        "1 of 3 questions with an answer is answered with nothing",
        "1 of 4 questions has no answer, for which CMRC 2018 has no rule: "
        "100 for saying nothing, else 0",
    ]
    twice = CMRC.warnings([*pairs, *pairs])
    assert twice[0] == "2 of 6 questions with an answer are answered with nothing"
    assert twice[1].startswith("2 of 8 questions have no answer")


def test_cmrc_segments():
    assert cmrc_segments("《Hello World》是1998年。") == ["hello", "world", "是", "1998", "年"]
    assert cmrc_segments("don't  stop。") == ["do", "n't", "stop"]
    # a full stop inside stays with its word: the text is not cut into sentences
    assert cmrc_segments("at the end. yes.") == ["at", "the", "end.", "yes", "."]


@settings(max_examples=200, deadline=None)
@given(first=st.text("abc", max_size=10), second=st.text("abc", max_size=10))
def test_the_longest_common_run(first, second):
    assert longest_common_run(first, second) == longest_run(first, second)
    assert longest_common_run("abcde", "xbcxde") == 2


# ------------------------------------------------------------------------------------ both


@pytest.mark.parametrize("metric", [SQUAD, CMRC], ids=lambda metric: metric.name)
class TestBoth:
    def test_rows_without_a_reference(self, metric):
        pairs = [pair("x", ["x"]), pair("x", None)]
        assert metric.score_row(pairs[1]) is None
        assert set(metric.score(pairs).values()) == {100.0}
        assert metric.score(pairs[1:]) == metric.score([]) == {}
        assert metric.warnings(pairs) == ["1 of 2 rows has no reference and is not scored"]
        assert metric.warnings([]) == []

    def test_a_prediction_of_nothing_at_all(self, metric):
        row = pair("x", ["x"])
        nothing = Pair(row.record, {}, ["x"])
        assert metric.score_row(nothing) == metric.score_row(pair("", ["x"]))
        assert metric.warnings([nothing]) == [
            "1 of 1 question with an answer is answered with nothing"
        ]

    @pytest.mark.parametrize(
        ("got", "shown"),
        [
            ("x", "'x' (str)"),
            ({"answer": "x"}, "{'answer': 'x'} (dict)"),
            ({"text": None}, "{'text': None} (dict)"),
        ],
    )
    def test_predictions_that_are_no_answers(self, metric, got, shown):
        with pytest.raises(PluginError) as caught:
            metric.score([Pair(pair("", [], line=7).record, got, ["x"])])
        assert caught.value.lines == (
            f"dev.json:7: metric {metric.name!r}: the prediction must be an answer "
            f'({{"text": …}}, "" for none), got {shown}; mend decode() of the task head',
        )

    def test_references_that_are_no_lists(self, metric):
        with pytest.raises(PluginError) as caught:
            metric.score_row(Pair(pair("", []).record, {"text": "x"}, "x"))
        assert caught.value.lines == (
            f"dev.json:1: metric {metric.name!r}: the reference must be a list of answers (str), "
            "empty for a question without one, got 'x' (str); mend reference() of the task head",
        )

    @pytest.mark.parametrize(
        "said", ["\0", "👩‍👩‍👧", "İ", "\u200b", "\n", "the " * 2000, "红" * 2000]
    )
    def test_odd_texts_get_a_score(self, metric, said):
        for row in (pair(said, ["红楼梦", "cat"]), pair("红楼梦 cat", [said]), pair(said, [])):
            assert all(0 <= value <= 100 for value in metric.score_row(row).values())
