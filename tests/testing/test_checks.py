"""Every fault of formats and metrics that the checks find, each in a component of its own."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import ptkit
from ptkit.testing import (
    TinyBackbone,
    WordTokenizer,
    check_dataset_format,
    check_metric,
    tiny_model,
)

from .moods import MoodRecord

# ------------------------------------------------------------------------------------ formats


class Moods(ptkit.DatasetFormat):
    """``mood text``, a line a record."""

    name = "moods"
    record = MoodRecord

    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        for line, text in enumerate(path.read_text().splitlines(), start=1):
            yield self.row(text, ptkit.Origin(name, line))

    def row(self, text: str, origin: ptkit.Origin) -> ptkit.Record | ptkit.BadRow:
        mood, blank, rest = text.partition(" ")
        if not blank:
            return ptkit.BadRow(origin, f"needs a mood and a text, got {text!r}")
        return MoodRecord(origin=origin, text=rest, mood=mood)


@pytest.fixture
def moods(tmp_path: Path) -> Path:
    path = tmp_path / "moods.txt"
    path.write_text("good a fine day\nbroken\nbad rain\n")
    return path


def make(form: type[ptkit.DatasetFormat], path: Path) -> ptkit.DatasetFormat:
    return form(form.Settings(train=ptkit.SourcePath(path.name, path)))


def test_a_good_format_passes_and_its_records_come_back(moods: Path) -> None:
    records = check_dataset_format(make(Moods, moods), moods, bad_rows=1)
    assert [(r.mood, r.text) for r in records if isinstance(r, MoodRecord)] == [
        ("good", "a fine day"),
        ("bad", "rain"),
    ]


class OtherRecord(Moods):
    def row(self, text: str, origin: ptkit.Origin) -> ptkit.Record | ptkit.BadRow:
        return ptkit.GenerationRecord(origin=origin, prompt=text)


class Raises(Moods):
    def row(self, text: str, origin: ptkit.Origin) -> ptkit.Record | ptkit.BadRow:
        mood, rest = text.split(" ", 1)
        return MoodRecord(origin=origin, text=rest, mood=mood)


class NoLine(Moods):
    def row(self, text: str, origin: ptkit.Origin) -> ptkit.Record | ptkit.BadRow:
        found = super().row(text, origin)
        if isinstance(found, ptkit.BadRow):
            return ptkit.BadRow(ptkit.Origin(origin.file, 0), found.message)
        return found


class NoMessage(Moods):
    def row(self, text: str, origin: ptkit.Origin) -> ptkit.Record | ptkit.BadRow:
        found = super().row(text, origin)
        return ptkit.BadRow(origin, "") if isinstance(found, ptkit.BadRow) else found


class Drops(Moods):
    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        return (row for row in super().read(path, name) if not isinstance(row, ptkit.BadRow))


class Lists(Moods):
    def read(self, path: Path, name: str) -> Any:
        return list(super().read(path, name))


class UsesPath(Moods):
    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        return super().read(path, str(path))


class Backwards(Moods):
    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        return reversed(list(super().read(path, name)))


class Remembers(Moods):
    """Leaves out a text that it has seen before, also in an earlier reading."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.seen: set[str] = set()

    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        for row in super().read(path, name):
            if str(row) not in self.seen:
                self.seen.add(str(row))
                yield row


class Negative(Moods):
    def row(self, text: str, origin: ptkit.Origin) -> ptkit.Record | ptkit.BadRow:
        return MoodRecord(origin=origin, text=text, weight=-1.0)


class Empty(Moods):
    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        yield from ()


class BadName(Moods):
    name = "My_Moods"


class Lenient(Moods):
    class Settings(ptkit.DatasetFormat.Settings, extra="ignore"):
        pass


class Columns(BaseModel):
    """Not a `ptkit.Settings`, so that it takes any key."""

    mood: str = "mood"


class LenientInside(Moods):
    class Settings(ptkit.DatasetFormat.Settings):
        columns: Columns | None = None


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (OtherRecord, "gave a GenerationRecord, but record = MoodRecord"),
        (Raises, r"raised ValueError: .* behind row 1 of moods.txt; yield a ptkit.BadRow"),
        (NoLine, "a BadRow has no line"),
        (NoMessage, "has the message ''; say in one line"),
        (Drops, "hold 1 bad rows, but read.. gave 0"),
        (Lists, "returned a list; make it a generator"),
        (UsesPath, "was told to name the file 'named/moods.txt'"),
        (Backwards, "line 2 of moods.txt comes behind line 3"),
        (Remembers, "reading moods.txt again gives other rows"),
        (Negative, "has the weight -1.0"),
        (Empty, "found no records in moods.txt"),
        (BadName, "name must be kebab-case such as 'my-name', got 'My_Moods'"),
        (Lenient, "must forbid unknown keys"),
        (LenientInside, "Columns takes unknown keys"),
    ],
)
def test_faults_of_formats(form: type[ptkit.DatasetFormat], words: str, moods: Path) -> None:
    with pytest.raises(AssertionError, match=words) as raised:
        check_dataset_format(make(form, moods), moods, bad_rows=1)
    assert str(raised.value).startswith(f"dataset format '{form.name}': ")


def test_a_class_in_place_of_an_instance(moods: Path) -> None:
    with pytest.raises(AssertionError, match="hand the check an instance"):
        check_dataset_format(Moods, moods)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ metrics


class WordCount(ptkit.RowMetric):
    """Percent of the reference's words that the prediction has."""

    name = "word-count"
    scores = "text"

    def score_row(self, pair: ptkit.Pair) -> dict[str, float] | None:
        wanted, got = pair.reference.split(), pair.prediction.split()
        return {"words": 100 * len(set(wanted) & set(got)) / len(set(wanted))}

    def warnings(self, pairs: Sequence[ptkit.Pair]) -> list[str]:
        empty = sum(not pair.prediction for pair in pairs)
        return [f"{empty} predictions are empty"] if empty else []


def pair(prediction: str, reference: str) -> ptkit.Pair:
    origin = ptkit.Origin("d.json", 1)
    record = ptkit.GenerationRecord(origin=origin, prompt="", response=reference)
    return ptkit.Pair(record, prediction, reference)


PAIRS = [pair("a red hat", "a red hat"), pair("a hat", "red shoes"), pair("blue", "a blue sky")]


def test_a_good_metric_passes_and_its_scores_come_back() -> None:
    scores = check_metric(WordCount(WordCount.Settings()), PAIRS)
    assert scores == {"words": pytest.approx((100 + 0 + 100 / 3) / 3)}


class FirstOnly(WordCount):
    def score(self, pairs: Sequence[ptkit.Pair]) -> dict[str, float]:
        return super().score(pairs[:1])


class DiesOnEmpty(WordCount):
    def score_row(self, pair: ptkit.Pair) -> dict[str, float] | None:
        wanted, got = set(pair.reference.split()), set(pair.prediction.split())
        return {"words": 100 * len(wanted & got) / len(got)}


class NanOnEmpty(DiesOnEmpty):
    def score_row(self, pair: ptkit.Pair) -> dict[str, float] | None:
        return super().score_row(pair) if pair.prediction else {"words": math.nan}


class DiesOnNothing(WordCount):
    def score(self, pairs: Sequence[ptkit.Pair]) -> dict[str, float]:
        return {"words": sum(len(p.prediction) for p in pairs) / len(pairs)}


class ChangesPairs(WordCount):
    def score(self, pairs: Sequence[ptkit.Pair]) -> dict[str, float]:
        assert isinstance(pairs, list)
        pairs.sort(key=lambda pair: pair.prediction)
        return super().score(pairs)


class Texts(WordCount):
    def score(self, pairs: Sequence[ptkit.Pair]) -> Any:
        return {"words": "high"}


class Alone(WordCount):
    def score(self, pairs: Sequence[ptkit.Pair]) -> Any:
        return 12.5


class TooMuch(WordCount):
    def score(self, pairs: Sequence[ptkit.Pair]) -> dict[str, float]:
        return {"words": 240.0}


class Counts(WordCount):
    """Counts its calls."""

    calls = 0.0

    def score(self, pairs: Sequence[ptkit.Pair]) -> dict[str, float]:
        self.calls += 1
        return {"words": self.calls}


class ChangingNames(WordCount):
    def score_row(self, pair: ptkit.Pair) -> dict[str, float] | None:
        return {"exact" if pair.prediction == pair.reference else "wrong": 1.0}


class WarnsInOne(WordCount):
    def warnings(self, pairs: Sequence[ptkit.Pair]) -> Any:
        return "some are empty"


class NoScores(WordCount):
    def score_row(self, pair: ptkit.Pair) -> dict[str, float] | None:
        return None


class MetricName(WordCount):
    name = "Words"


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (FirstOnly, "the pairs in another order score .* a metric must depend on no order"),
        (DiesOnEmpty, "with the empty prediction '' raised ZeroDivisionError"),
        (NanOnEmpty, "with the empty prediction '': words is nan"),
        (DiesOnNothing, "score.. of no pairs raised ZeroDivisionError"),
        (ChangesPairs, "changed its pairs"),
        (Texts, "words is a str, 'high'; return plain floats"),
        (Alone, "must return a dict of name to score, got 12.5"),
        (TooMuch, "words is 240.0, but its unit is 'percent"),
        (Counts, "keep nothing between calls"),
        (ChangingNames, r"gives \['exact'\] for one pair and \['wrong'\] for another"),
        (WarnsInOne, "warnings.. must return a list of strings"),
        (NoScores, "gave no scores"),
        (MetricName, "must be kebab-case"),
    ],
)
def test_faults_of_metrics(metric: type[ptkit.Metric], words: str) -> None:
    with pytest.raises(AssertionError, match=words) as raised:
        check_metric(metric(metric.Settings()), PAIRS)
    assert str(raised.value).startswith(f"metric '{metric.name}': ")


# ------------------------------------------------------------------------------------ imports


def test_torch_at_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("")  # the check looks at the name, and the real one is slow
    (tmp_path / "eager_metric.py").write_text(
        "import torch\nimport ptkit\n\n"
        "class Eager(ptkit.Metric):\n"
        "    name = 'eager'\n    scores = 'text'\n\n"
        "    def score(self, pairs):\n        return {'one': 1.0}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    eager: Any = importlib.import_module("eager_metric")
    with pytest.raises(AssertionError, match="importing eager_metric imports torch"):
        check_metric(eager.Eager(eager.Eager.Settings()), PAIRS)


def test_the_checks_of_formats_and_metrics_import_no_torch() -> None:
    code = (
        "import sys\nfrom ptkit.testing import TinyBackbone, check_dataset_format, check_metric\n"
        "backbone = TinyBackbone()\nbackbone.geometry, backbone.fingerprint\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------ tiny model


def test_word_tokenizer() -> None:
    tokenizer = WordTokenizer(["red", "hat", ",", "帽"], buckets=5)
    assert tokenizer.vocab_size == 12
    assert tokenizer.offsets("red, 帽hat") == ([3, 5, 6, 4], [(0, 3), (3, 4), (5, 6), (6, 9)])
    assert tokenizer.pieces("red hat") == tokenizer.encode("red hat") == [3, 4]
    assert tokenizer.decode([*tokenizer.start_ids, 3, 4, tokenizer.eos_id]) == "red hat"
    (unknown,) = tokenizer.encode("shoe")
    assert 7 <= unknown < 12
    assert tokenizer.decode([unknown]) == f"⟨{unknown - 7}⟩"
    assert tokenizer.encode("<eos>")[0] >= 3
    assert tokenizer.fingerprint == WordTokenizer(["red", "hat", ",", "帽"], buckets=5).fingerprint
    assert tokenizer.fingerprint != WordTokenizer(["red", "hat"], buckets=7).fingerprint


@pytest.mark.parametrize(("words", "buckets"), [(["two words"], 5), (["red"], 0)])
def test_word_tokenizer_refuses(words: list[str], buckets: int) -> None:
    with pytest.raises(ValueError, match=r"is not a single word|must be 1 or more"):
        WordTokenizer(words, buckets=buckets)


@pytest.mark.parametrize("causal", [True, False])
def test_tiny_backbone(causal: bool) -> None:
    import torch

    backbone = TinyBackbone(TinyBackbone.Settings(causal=causal))
    before = torch.get_rng_state()
    first, second = (backbone.load("cpu", "float32") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    modules = [m for m in (first.body, first.lm_head) if m is not None]
    count = sum(p.numel() for module in modules for p in module.parameters())
    assert count == backbone.geometry.parameters
    same, other = (
        second.body.state_dict(),
        TinyBackbone(TinyBackbone.Settings(causal=causal, seed=1))
        .load("cpu", "float32")
        .body.state_dict(),
    )
    assert all(torch.equal(value, same[name]) for name, value in first.body.state_dict().items())
    assert not all(torch.equal(value, same[name]) for name, value in other.items())
    assert tiny_model(backbone).geometry.causal is causal


def test_tiny_bert_has_one_width() -> None:
    with pytest.raises(ptkit.CheckpointError, match=r"heads x head_size = hidden_size, got 4 x 4"):
        TinyBackbone(TinyBackbone.Settings(causal=False, head_size=4))
