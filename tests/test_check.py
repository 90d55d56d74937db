"""``ptkit check``: its numbers against counts by hand, its messages, what it must not import."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import ptkit
from ptkit import cli
from ptkit.check import PartReport, Report, check
from ptkit.commands import checked
from ptkit.counting import Bin, Equal, content_hash, histogram, label_kind, percentile
from ptkit.memory import Memory, by_layers, gib, weight_bytes
from ptkit.preparation import prepare
from ptkit.records import IGNORE, GenerationRecord, Origin, Row
from ptkit.registry import Owner, Registry
from ptkit.reporter import Reporter
from ptkit.rowstore import RowStore
from ptkit.samples import token_texts
from ptkit.testing import TinyBackbone, WordTokenizer

from .conftest import RecipeMaker, write_rows
from .testing.heads import ChoiceRecord, CrfTagger, MultipleChoice, TagRecord

ROOT = Path(ptkit.__file__).parents[1]
QUICKSTART = ROOT / "recipes" / "quickstart.toml"
WORDS = ["red", "blue", "shoe", "hat", "a", "nice"]

# With the start token in front, prompts have 3, 2 and 4 tokens; with eos behind, so have answers.
ROWS = [
    {"content": "red shoe", "summary": "a shoe"},
    {"content": "hat", "summary": "nice"},
    {"content": "blue red hat", "summary": "a nice hat"},
]
OTHERS = [{"content": "blue shoe", "summary": "nice shoe"}]

Checker = Callable[..., Report]


@pytest.fixture
def run_check(tmp_path: Path, make_recipe: RecipeMaker) -> Checker:
    """Check a recipe on these rows; ``validation=None`` for none, sections as for `make_recipe`."""

    def run(
        train: list[dict[str, Any]],
        validation: list[dict[str, Any]] | None = OTHERS,
        /,
        shown: int = 2,
        **sections: Any,
    ) -> Report:
        dataset = sections.pop("dataset", {})
        if validation is None:
            dataset = {"validation": None, **dataset}
        make_recipe()  # writes files of its own, which the rows replace
        recipe = make_recipe(backbone={"words": WORDS}, dataset=dataset, **sections)
        write_rows(tmp_path / "train.json", train)
        write_rows(tmp_path / "validation.json", validation or OTHERS)
        return check(recipe, Reporter(), shown=shown)

    return run


def part(report: Report, name: str = "train") -> PartReport:
    return next(part for part in report.parts if part.name == name)


def shown(report: Report, width: int = 100) -> str:
    """The report as a file gets it."""
    file = io.StringIO()
    checked.show(report, Console(file=file, width=width))
    return file.getvalue()


# ------------------------------------------------------------------------------------------ data


def test_lengths_and_cuts_by_hand(run_check: Checker) -> None:
    report = run_check(ROWS, task={"max_source_tokens": 3, "max_target_tokens": 1})
    train = part(report)
    prompt, target = train.lengths
    assert (prompt.what, prompt.total, prompt.cut) == ("prompt", 3 + 2 + 4, 1)
    assert (target.what, target.total, target.cut) == ("target", 3 + 2 + 4, 2)
    assert prompt.percent == target.percent == {50: 3, 90: 4, 99: 4, 100: 4}
    assert prompt.histogram == [Bin(2, 2, 1), Bin(3, 3, 1), Bin(4, 4, 1)]
    assert (train.cut, train.cut_both) == (2, 1)
    assert report.suggestions == [
        "the prompt is cut in 33.3 % of the train rows; "
        "task.max_source_tokens = 4 (now 3) would keep all",
        "the target is cut in 66.7 % of the train rows and 100.0 % of the validation rows; "
        "task.max_target_tokens = 3 (now 1) would keep all",
    ]


def test_the_suggested_limits_cut_nothing(run_check: Checker) -> None:
    report = run_check(ROWS, task={"max_source_tokens": 4, "max_target_tokens": 3})
    assert [side.cut for side in part(report).lengths] == [0, 0]
    assert report.suggestions == []


def test_a_limit_that_keeps_most(run_check: Checker) -> None:
    rows = [*ROWS[:1] * 60, *[{"content": "hat", "summary": "a " * 3}] * 39]
    rows.append({"content": "hat", "summary": "a " * 300})
    report = run_check(rows, task={"max_target_tokens": 2})
    assert report.suggestions == [
        "the target is cut in 40.0 % of the train rows; "
        "task.max_target_tokens = 300 (now 2) would keep all, 3 would keep 99 %"
    ]
    report = run_check([{"content": "hat", "summary": "a " * 600}])
    assert report.suggestions[0].endswith("would keep all; the backbone takes 512 tokens in all")


def test_a_few_cut_rows_are_no_reason_to_change_anything(run_check: Checker) -> None:
    rows = [*ROWS[:1] * 199, {"content": "hat", "summary": "a " * 30}]
    report = run_check(rows)
    assert part(report).cut == 1
    assert report.suggestions == []


def test_rows_that_are_there_twice(run_check: Checker) -> None:
    report = run_check([*ROWS, ROWS[0], ROWS[0]], [OTHERS[0], ROWS[1], OTHERS[0]])
    assert part(report).repeats == Equal(
        2, [("train.json:1", "train.json:4"), ("train.json:1", "train.json:5")]
    )
    validation = part(report, "validation")
    assert validation.repeats == Equal(1, [("validation.json:1", "validation.json:3")])
    assert validation.shared == Equal(1, [("train.json:2", "validation.json:2")])
    assert part(report).shared is None
    assert (
        "1 of 3 validation rows are training rows, too (validation.json:2 = train.json:2): their "
        "scores show memory, not skill; remove them"
    ) in report.warnings


def test_more_equal_rows_than_are_named(run_check: Checker) -> None:
    report = run_check(ROWS[:1] * 6, OTHERS)
    text = " ".join(shown(report).split())
    assert "twice in train train.json:1 = train.json:2, train.json:1 = train.json:3" in text
    assert "train.json:1 = train.json:4 and 2 more" in text


def test_what_a_record_says_is_not_where_it_is() -> None:
    def record(line: int, prompt: str, response: str | None, weight: float = 1.0) -> int:
        return content_hash(
            GenerationRecord(
                origin=Origin("a", line), prompt=prompt, response=response, weight=weight
            )
        )

    assert record(1, "x", "y") == record(2, "x", "y", weight=2.0)
    different = {record(1, *texts) for texts in (("x", "y"), ("xy", ""), ("x", None), ("y", "x"))}
    assert len(different) == 4


def test_bad_rows_that_are_skipped(run_check: Checker) -> None:
    bad = [{"content": " ", "summary": "a"}] * 7
    report = run_check([*ROWS, *bad], dataset={"on_bad_row": "skip"})
    train = part(report)
    assert (train.records, train.skipped, len(train.messages)) == (3, 7, 5)
    assert train.messages[0].startswith("train.json:4: key 'content' is empty")
    assert "7 bad rows of train are skipped" in report.warnings
    assert "rejected  train.json:4: key 'content' is empty" in shown(report)
    assert "rejected  and 2 more\n" in shown(report)


def test_bad_rows_that_are_errors(run_check: Checker) -> None:
    with pytest.raises(ptkit.DataError, match=r"train\.json:4: key 'content' is empty"):
        run_check([*ROWS, {"content": " ", "summary": "a"}])


def test_what_a_run_would_refuse(run_check: Checker) -> None:
    with pytest.raises(ptkit.PtkitError, match=r"prefix\.init_text: ' ' has no tokens"):
        run_check(ROWS, prefix={"init": "text", "init_text": " ", "length": None})


def test_a_split_holds_rows_out_of_a_streamed_file(
    make_recipe: RecipeMaker, tmp_path: Path
) -> None:
    recipe = make_recipe(dataset={"validation": None, "split": 0.25})
    parts = prepare(recipe, Reporter()).parts
    assert parts["train"].records is None  # streamed
    lines = {
        name: [part.origins[i].line for i in range(part.count)] for name, part in parts.items()
    }
    assert len(lines["validation"]) == 5
    assert sorted(lines["train"] + lines["validation"]) == list(range(1, 21))
    again = prepare(recipe, Reporter()).parts["validation"]
    assert [again.origins[i].line for i in range(again.count)] == lines["validation"]
    report = check(recipe, Reporter())
    assert [(part.name, part.records) for part in report.parts] == [
        ("train", 15),
        ("validation", 5),
    ]


def test_a_check_keeps_lengths_only() -> None:
    store = RowStore(keep=False)
    store.append([Row((5, 6, 7), cut=2, cut_targets=1)])
    assert (store.length(0), store.cuts[0], store.target_cuts[0]) == (3, 2, 1)
    with pytest.raises(ValueError, match="keeps lengths only"):
        store[0]
    whole = RowStore()
    whole.append([Row((5, 6, 7), cut=2, cut_targets=1)])
    assert whole[0].row == Row((5, 6, 7), cut=2, cut_targets=1)


# --------------------------------------------------------------------------------------- numbers


def test_histogram() -> None:
    assert histogram(np.array([7])) == [Bin(7, 7, 1)]
    counts = {0: 1, 1: 1, 11: 1}
    assert histogram(np.array([0, 1, 11])) == [Bin(i, i, counts.get(i, 0)) for i in range(12)]
    counts = {98: 2, 100: 1, 120: 1}
    assert histogram(np.array([98, 99, 100, 121])) == [
        Bin(i, i + 1, counts.get(i, 0)) for i in range(98, 122, 2)
    ]


def test_histograms_stay_small() -> None:
    for high in (13, 99, 1_234, 50_000):
        bins = histogram(np.arange(high + 1))
        assert len(bins) <= 12
        assert sum(part.rows for part in bins) == high + 1
        assert bins[-1].first <= high <= bins[-1].last


def test_percentiles_are_values() -> None:
    values = np.arange(1, 201)
    assert [percentile(values, p) for p in (50, 90, 99, 100)] == [100, 180, 198, 200]


def test_steps_and_tokens_by_hand(run_check: Checker) -> None:
    """Three rows of 6, 4 and 8 tokens, half of them targets; two epochs in steps of two rows."""
    train = {"max_steps": None, "epochs": 2.0, "batch_size": 2}
    plan = run_check(ROWS, train=train).plan
    assert (plan.steps, plan.epochs, plan.steps_looked_at) == (3, 2.0, 3)
    assert plan.tokens_per_step == pytest.approx(2 * 18 / 3)
    assert plan.targets_per_step == pytest.approx(2 * 9 / 3)
    assert plan.micro_batches_per_step == 1
    assert run_check(ROWS, train={**train, "tokens_per_micro_batch": 1}).plan == type(plan)(
        **{**plan.__dict__, "micro_batches_per_step": 2.0}
    )


def test_what_all_rows_begin_with_is_told(run_check: Checker) -> None:
    rows = [{**row, "content": f"nice red blue hat shoe {row['content']}"} for row in ROWS]
    report = run_check(rows, train={"max_steps": 5, "batch_size": 3})
    assert report.plan.stem >= 5
    assert report.largest.stem == report.plan.stem
    assert report.largest.tokens == report.plan.tokens_per_step
    assert f"3 rows, {report.largest.tokens} tokens" in " ".join(shown(report).split())
    shared = f"the first {report.plan.stem} tokens of all rows, computed once a micro-batch"
    assert shared in shown(report)
    report = run_check(ROWS, train={"max_steps": 5, "batch_size": 3})
    assert report.plan.stem == report.largest.stem == 0
    assert "computed once" not in shown(report)


def test_padding_by_hand(run_check: Checker) -> None:
    plan = run_check(ROWS, train={"max_steps": 5, "batch_size": 3}).plan
    assert plan.padding == pytest.approx(100 * (1 - 18 / (3 * 8)))
    assert (plan.steps, plan.epochs) == (5, 5.0)


def test_only_the_first_steps_of_a_long_run_are_looked_at(run_check: Checker) -> None:
    report = run_check(ROWS, train={"max_steps": 5000, "batch_size": 3})
    assert report.plan.steps_looked_at == 2000
    assert report.plan.tokens_per_step == 18
    assert "18 tokens, 9 of them trained on (mean of the first 2,000 steps)" in shown(report)


def test_what_trains(run_check: Checker) -> None:
    report = run_check(ROWS)
    assert (report.prefix_length, report.trainable) == (3, 3 * 2 * 2 * 2 * 8)
    assert not report.head_trains
    report = run_check(ROWS, prefix={"projection": True, "projection_hidden_size": 5})
    width = 2 * 2 * 2 * 8
    assert report.trainable == 3 * width + (width + 1) * 5 + (5 + 1) * width
    text = {"init": "text", "init_text": "a nice red hat", "length": None}
    assert run_check(ROWS, prefix=text).prefix_length == 4


def test_memory_is_of_the_largest_micro_batch(run_check: Checker) -> None:
    report = run_check(ROWS, train={"max_steps": 5, "batch_size": 3})
    assert sorted(report.largest.lengths) == [4, 6, 8]
    assert report.largest.targets == 9
    assert [(m.device, m.dtype, m.recomputed) for m in report.estimates] == [
        ("cpu", "float32", 0),
        ("cpu", "float32", 2),
        ("cuda", "bfloat16", 0),
        ("cuda", "bfloat16", 2),
    ]


def test_memory_of_a_base_that_processes_share(run_check: Checker) -> None:
    report = run_check(ROWS, train={"shard_base": True})
    geometry, (_, _, alone, _) = TinyBackbone().geometry, report.estimates
    each = []
    for processes in (2, 4, 8):
        saved = weight_bytes(geometry, 2) - weight_bytes(geometry, 2, processes=processes)
        each.append(f"{gib(alone.total - saved)} with {processes}")
    line = (
        "train.shard_base: the memory above is for one process; of several each takes, with no "
        f"layer computed again on GPUs, {each[0]}, {each[1]}, {each[2]}"
    )
    assert report.suggestions == [line]
    assert run_check(ROWS).suggestions == []


def test_a_shared_base_is_estimated_for_gpus_alone(
    run_check: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each estimate looks at every micro-batch of the first steps."""
    asked: list[tuple[str, int]] = []

    def counted(*args: Any, device: str, processes: int, **kwargs: Any) -> list[Memory]:
        asked.append((device, processes))
        return by_layers(*args, device=device, processes=processes, **kwargs)

    monkeypatch.setattr("ptkit.check.by_layers", counted)
    run_check(ROWS, train={"shard_base": True})
    assert asked == [("cpu", 1), ("cuda", 1), ("cuda", 2), ("cuda", 4), ("cuda", 8)]


def test_memory_with_a_type_of_ones_own(make_recipe: RecipeMaker) -> None:
    report = check(make_recipe(backbone={"dtype": "float16"}), Reporter())
    assert {m.dtype for m in report.estimates} == {"float16"}


# -------------------------------------------------------------------------------------- warnings


def test_nothing_to_warn_of(run_check: Checker) -> None:
    assert run_check(ROWS, train={"batch_size": 3}).warnings == []


@pytest.mark.parametrize(
    ("sections", "validation", "warning"),
    [
        (
            {"train": {"batch_size": 16, "max_steps": 2}},
            OTHERS,
            "train.batch_size = 16 is more than the 3 training rows, so that a step has rows "
            "twice; lower it",
        ),
        (
            {"train": {"batch_size": 3, "max_steps": 63}},
            OTHERS,
            "every training row is seen 63 times; more than 20 mostly learns them by heart: lower "
            "train.max_steps or train.epochs, or set train.patience",
        ),
        (
            {"prefix": {"length": 4}},
            OTHERS,
            "the prefix has more virtual tokens (4) than there are training rows (3); a shorter "
            "prefix.length is likely to do better",
        ),
        (
            {},
            None,
            "there is no validation data, so no best checkpoint is picked and nothing is scored; "
            "set dataset.validation, or dataset.split = 0.1",
        ),
        (
            {"dataset": {"test": "validation.json"}},
            None,
            "there is no validation data, so no best checkpoint is picked; set "
            "dataset.validation, or dataset.split = 0.1",
        ),
        (
            {"task": {"sampling": {"max_new_tokens": 200_000}}},
            OTHERS,
            "1 validation rows are answered twice, before and after, with up to 200000 tokens "
            "each: up to 400,000 tokens; dataset.limit.validation takes fewer rows",
        ),
    ],
)
def test_warnings(
    run_check: Checker,
    sections: dict[str, Any],
    validation: list[dict[str, Any]] | None,
    warning: str,
) -> None:
    report = run_check(ROWS, validation, **{"train": {"batch_size": 3}, **sections})
    assert report.warnings == [warning]
    assert "warnings\n  –  " in shown(report)


# ------------------------------------------------------------------------------------- first rows


def test_a_row_as_text_ids_and_what_is_trained_on(run_check: Checker) -> None:
    report = run_check(ROWS, shown=1)
    (sample,) = part(report).first
    assert sample.origin == "train.json:1"
    assert sample.fields == {"prompt": "red shoe", "response": "a shoe"}
    (row,) = sample.rows
    assert row.ids == [2, 3, 5, 7, 5, 1]  # pad, eos, start, then the words in their order
    assert [(run.trained, run.pieces) for run in row.runs] == [
        (False, ["⟨2⟩", "red", " shoe"]),
        (True, [" a", " shoe", "⟨eos⟩"]),
    ]
    assert (row.trained, row.cut) == (3, 0)
    text = shown(report)
    assert "train row 1, train.json:1\n" in text
    assert "  read (3)        ⟨2⟩|red|␣shoe\n" in text
    assert "  trained on (3)  ␣a|␣shoe|⟨eos⟩\n" in text


def test_as_many_rows_as_asked_for(run_check: Checker) -> None:
    assert len(part(run_check(ROWS, shown=0)).first) == 0
    assert len(part(run_check(ROWS, shown=9)).first) == 3
    assert "row 1" not in shown(run_check(ROWS, shown=0))


def test_long_texts_and_cut_rows_are_shown_as_such(run_check: Checker) -> None:
    report = run_check([{"content": "hat", "summary": "red\n" * 800}, *ROWS], shown=1)
    text = shown(report)
    assert "red⏎red⏎" in text
    assert "… (3,200 characters)" in text
    assert "15 tokens, 788 more were cut" in text


class ByteTokenizer(WordTokenizer):
    """Each id is a byte, plus 10."""

    eos_id = 1

    def decode(self, ids: Any) -> str:
        return bytes(i - 10 for i in ids if i >= 10).decode("utf-8", "replace")


def test_characters_of_several_tokens() -> None:
    ids = [2, *(10 + byte for byte in "a好".encode()), 1]
    assert token_texts(ids, ByteTokenizer()) == ["⟨2⟩", "a", "�", "�", "�", "⟨eos⟩"]


def test_what_labels_are() -> None:
    text = Row((2, 5, 6), (IGNORE, IGNORE, 6))
    tags = Row((2, 5, 6), (IGNORE, 0, 1))
    assert label_kind([text, Row((2,), (IGNORE,))]) == "text"
    assert label_kind([text, tags]) == "tags"
    assert label_kind([text, Row((2, 5, 6), (1,))]) == "plain"
    assert label_kind([Row((2, 5))]) == "plain"


# ------------------------------------------------------------------------------------ other heads


class Choices(ptkit.DatasetFormat):
    name = "choices"
    record = ChoiceRecord

    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        for found in ptkit.read_json_rows(path, name):
            assert not isinstance(found, ptkit.BadRow)
            origin, row = found
            yield ChoiceRecord(
                origin=origin, question=row["q"], choices=tuple(row["of"]), answer=row["a"]
            )


class Tags(ptkit.DatasetFormat):
    name = "tags"
    record = TagRecord

    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        for found in ptkit.read_json_rows(path, name):
            assert not isinstance(found, ptkit.BadRow)
            origin, row = found
            yield TagRecord(origin=origin, words=tuple(row["words"]), tags=tuple(row["tags"]))


class OtherHeads:
    @ptkit.hookimpl
    def ptkit_register_dataset_formats(self) -> list[type[ptkit.DatasetFormat]]:
        return [Choices, Tags]

    @ptkit.hookimpl
    def ptkit_register_task_heads(self) -> list[type[ptkit.TaskHead]]:
        return [MultipleChoice, CrfTagger]


@pytest.fixture
def others(registry: Registry) -> None:
    registry.register(OtherHeads(), Owner("others", "ptkit-others", "1.0"))


@pytest.mark.usefixtures("others")
def test_rows_that_share_a_loss(run_check: Checker) -> None:
    rows = [{"q": "hat", "of": ["red", "blue hat"], "a": 1}]
    report = run_check(
        rows,
        [{"q": "shoe", "of": ["red", "blue"], "a": 0}],
        dataset={"kind": "choices"},
        task={"kind": "toy-choice", "max_target_tokens": None},
        metrics=[],
        train={"max_steps": 1, "batch_size": 1},
    )
    train = part(report)
    assert (train.records, train.sequences) == (1, 2)
    (side,) = train.lengths
    assert (side.what, side.total) == ("input", 3 + 4)
    assert report.head_trains
    assert report.largest.targets == 0
    assert report.plan.micro_batches_per_step == 1
    first, second = train.first[0].rows
    assert (first.labels, second.labels) == (["0"], ["1"])
    assert [run.trained for run in first.runs] == [False]
    text = shown(report)
    assert "parameters, plus the head's own" in text
    assert "train: tokens a sequence before anything is cut" in text
    assert "rows  sequences  rejected" in text


@pytest.mark.usefixtures("others")
def test_labels_of_tokens_are_named(run_check: Checker) -> None:
    rows = [{"words": ["red", "hat"], "tags": ["O", "B"]}, {"words": ["a"], "tags": ["O"]}]
    report = run_check(
        rows,
        [{"words": ["nice"], "tags": ["B"]}],
        dataset={"kind": "tags"},
        task={"kind": "crf-tagger", "max_target_tokens": None},
        metrics=[],
    )
    (row,) = part(report).first[0].rows
    assert [(run.trained, run.pieces, run.labels) for run in row.runs] == [
        (False, ["⟨2⟩"], []),
        (True, ["red", " hat"], ["O", "B"]),
    ]
    assert "trained on (2)  red=O|␣hat=B\n" in shown(report)


@pytest.mark.usefixtures("others")
def test_a_head_without_named_limits(run_check: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CrfTagger, "encode", lambda self, record, tokenizer: [Row((2, 5), cut=3)])
    report = run_check(
        [{"words": ["red"], "tags": ["O"]}],
        [{"words": ["nice"], "tags": ["B"]}],
        dataset={"kind": "tags"},
        task={"kind": "crf-tagger", "max_target_tokens": None},
        metrics=[],
    )
    assert report.suggestions == [
        "the input is cut in 100.0 % of the train rows and 100.0 % of the validation rows; "
        "raise the limit of task 'crf-tagger'"
    ]


# ------------------------------------------------------------------------------------ command line


def test_text_fits_the_terminal_and_has_no_blanks_at_its_ends(run_check: Checker) -> None:
    report = run_check(ROWS * 5, ROWS)
    for width in (80, 120):
        for line in shown(report, width).splitlines():
            assert len(line) <= width
            assert line == line.rstrip()
            assert "…" not in line


def test_bars() -> None:
    assert checked.bar(1) == "█" * 30
    assert checked.bar(0) == ""
    assert checked.bar(1e-9) == "▏"
    assert checked.bar(0.5 + 1 / 240) == "█" * 15 + "▏"


def test_the_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(QUICKSTART), "--rows", "1"]) == 0
    text = capsys.readouterr().out
    assert "train row 1, nano:train:1\n" in text
    assert "train row 2" not in text
    assert "memory of training, estimated, in MiB" in text
    assert text.endswith(f"next  ptkit run {QUICKSTART}\n")


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    train = "train={ max_steps = 200, batch_size = 4 }"
    settings = [train, "dataset.limit=20", "prefix.length=2"]
    given = [part for setting in settings for part in ("--set", setting)]
    assert cli.main(["check", str(QUICKSTART), "--json", *given]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found = json.loads(captured.out)
    train = found["parts"][0]
    assert (train["records"], train["skipped"], len(train["first"])) == (20, 0, 2)
    assert [side["what"] for side in train["lengths"]] == ["prompt", "target"]
    assert list(train["lengths"][0]["percent"]) == ["50", "90", "99", "100"]
    assert found["plan"]["records_per_step"] == 4
    assert found["largest"]["rows"] == 4
    assert found["largest"]["tokens"] >= found["largest"]["longest"]
    for memory in found["estimates"]:
        parts = ("weights", "adapter", "optimizer", "activations")
        working = max(memory["logits"], memory["layer"])
        assert memory["total"] == sum(memory[name] for name in parts) + working
    assert found["warnings"] == ["every training row is seen 40 times; more than 20 mostly learns "
        "them by heart: lower train.max_steps or train.epochs, or set train.patience"]  # fmt: skip


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(QUICKSTART), "--set", "train.max_step=5"]) == 2
    assert "did you mean 'max_steps'?" in capsys.readouterr().err
    bad = write_rows(tmp_path / "bad.json", [{"content": "x"}])
    assert cli.main(["check", str(QUICKSTART), "--set", f'dataset.train="{bad}"']) == 2
    captured = capsys.readouterr()
    assert f"{bad}:1: key 'summary' is missing" in captured.err
    assert captured.out == ""


def test_neither_weights_nor_torch_are_needed(tmp_path: Path) -> None:
    import ptkit_nano

    model = Path(ptkit_nano.__file__).parent / "model"
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(model / name, tmp_path)
    arguments = ["check", str(QUICKSTART), "--set", f'backbone.source="{tmp_path}"']
    code = (
        f"import sys; from ptkit.cli import main; code = main({arguments}); "
        "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\nnext  ptkit run" in done.stdout
