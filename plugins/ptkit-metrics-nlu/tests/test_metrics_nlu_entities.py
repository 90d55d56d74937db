from __future__ import annotations

import random
import warnings

import pytest
from ptkit_metrics_nlu.entities import EntityF1
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score

from ptkit import Entity, Origin, Pair, PluginError, TaggedRecord, entities
from ptkit.testing import check_metric

PLAIN = EntityF1(EntityF1.Settings())
BY_TYPE = EntityF1(EntityF1.Settings(by_type=True))
KEYS = ["entity-f1", "entity-precision", "entity-recall", "entity-f1-macro"]
TAGS = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG"]


def record(words: int) -> TaggedRecord:
    """Words of two characters, with a blank between them."""
    spans = tuple((3 * index, 3 * index + 2) for index in range(words))
    return TaggedRecord(origin=Origin("a.conll", 1), text=" ".join(["ab"] * words), words=spans)


def pair(given: list[str], wanted: list[str] | None) -> Pair:
    row = record(len(given))
    reference = None if wanted is None else entities(row, wanted)
    return Pair(row, entities(row, given), reference)


def entity(kind: str, start: int, end: int) -> Entity:
    return Entity(type=kind, start=start, end=end, text="x" * (end - start))


def raw(given: object, wanted: object) -> Pair:
    return Pair(record(1), given, wanted)


def test_by_hand():
    pairs = [
        # PER right, LOC one word short
        pair(["B-PER", "I-PER", "O", "B-LOC", "O"], ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"]),
        # the same span, another type; LOC found where none is
        pair(["B-ORG", "O", "B-LOC"], ["B-PER", "O", "O"]),
        pair(["O"], ["B-LOC"]),
        pair(["O"], ["O"]),
    ]
    # right 1 of 4 given and 4 wanted; PER 2 * 1 / (1 + 2), LOC 0, ORG 0
    scores = check_metric(PLAIN, pairs)
    assert list(scores) == KEYS
    assert scores == pytest.approx(dict(zip(KEYS, [25, 25, 25, 200 / 9], strict=True)))
    by_type = {"entity-f1/LOC": 0.0, "entity-f1/ORG": 0.0, "entity-f1/PER": 200 / 3}
    assert check_metric(BY_TYPE, pairs) == pytest.approx({**scores, **by_type})
    assert PLAIN.warnings(pairs) == [
        "1 type predicted that no reference has ('ORG'): F1 0 each in entity-f1-macro"
    ]


def test_precision_and_recall_differ():
    pairs = [pair(["B-A", "B-A", "B-A", "B-B"], ["B-A", "O", "O", "O"])]
    assert PLAIN.score(pairs) == pytest.approx(dict(zip(KEYS, [40, 25, 100, 25], strict=True)))


@pytest.mark.parametrize("seed", range(30))
def test_random_tags_score_as_in_seqeval(seed):
    """Ill-formed tags too: an I- behind O or behind another type begins an entity."""
    rng = random.Random(seed)
    rows = []
    for _ in range(rng.randint(1, 12)):
        wanted = rng.choices(TAGS, k=rng.randint(1, 12))
        given = [tag if rng.random() < 0.7 else rng.choice(TAGS) for tag in wanted]
        rows.append((given, wanted))
    truth, said = [wanted for _, wanted in rows], [given for given, _ in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # undefined scores
        report = classification_report(truth, said, output_dict=True)
        expected = {
            "entity-f1": f1_score(truth, said),
            "entity-precision": precision_score(truth, said),
            "entity-recall": recall_score(truth, said),
            "entity-f1-macro": f1_score(truth, said, average="macro"),
        }
    for kind, scores in report.items():
        if " avg" not in kind:
            expected[f"entity-f1/{kind}"] = scores["f1-score"]
    found = BY_TYPE.score([pair(given, wanted) for given, wanted in rows])
    assert found == pytest.approx({name: 100 * float(x) for name, x in expected.items()})


def test_the_same_span_in_another_row_is_another_entity():
    pairs = [pair(["B-A", "O"], ["O", "O"]), pair(["O", "O"], ["B-A", "O"])]
    assert PLAIN.score(pairs)["entity-f1"] == 0.0


def test_repeats_order_and_texts_make_no_difference():
    first, second = entity("A", 0, 2), entity("B", 4, 9)
    other = Entity(type="A", start=0, end=2, text="")
    scores = PLAIN.score([raw([second, first, other], (first, second))])
    assert set(scores.values()) == {100.0}


@pytest.mark.parametrize(
    ("given", "wanted", "line"),
    [
        ([], [], "no reference and no prediction has an entity: scores are 0 / 0, given as 0"),
        (
            [],
            [entity("A", 0, 1)],
            "no prediction has an entity: entity-precision is 0 / 0, given as 0",
        ),
        ([entity("A", 0, 1)], [], "no reference has an entity: entity-recall is 0 / 0, given as 0"),
    ],
)
def test_undefined_scores_are_0(given, wanted, line):
    pairs = [raw(given, wanted)]
    assert PLAIN.score(pairs) == dict.fromkeys(KEYS, 0.0)
    assert PLAIN.warnings(pairs)[0] == line


def test_rows_without_a_reference():
    pairs = [pair(["B-A"], ["B-A"]), pair(["B-A"], None), pair(["B-A"], None)]
    assert PLAIN.score(pairs)["entity-precision"] == 100.0
    assert PLAIN.warnings(pairs) == ["2 of 3 rows have no reference and are not scored"]
    assert PLAIN.score(pairs[1:]) == PLAIN.score([]) == {}
    assert PLAIN.warnings([]) == []


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["B-PER"], "['B-PER'] (list)"),
        ("O", "'O' (str)"),
        ([{"type": "A", "start": 0}], "[{'type': 'A', 'start': 0}] (list)"),
        ([{"type": 5, "start": 0, "end": 1}], "[{'type': 5, 'start': 0, 'end': 1}] (list)"),
        (
            [{"end": True, "type": "A", "start": 0}],
            "[{'end': True, 'type': 'A', 'start': 0}] (list)",
        ),
        ([entity("A", 0, 1), {}], "[{'type': 'A', 'start': 0, 'end': 1, 'te… (list)"),
    ],
)
def test_predictions_that_are_no_entities(given, shown):
    with pytest.raises(PluginError) as caught:
        PLAIN.score([raw(given, [])])
    assert caught.value.lines == (
        "a.conll:1: metric 'entity-f1': the prediction must be a list of entities (ptkit.Entity: "
        f"type, start, end, text), got {shown}; mend decode() of the task head",
    )
