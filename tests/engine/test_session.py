"""A whole run on the tiny backbone: what it leaves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_tasks.generation import Generation
from safetensors.torch import load_file

import ptkit
from ptkit.engine.checkpoint import load_trainable
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.session import run
from ptkit.engine.train import Trainable
from ptkit.errors import DataError, PtkitError
from ptkit.preparation import prepare
from ptkit.recipe import Recipe
from ptkit.registry import Owner, Registry

from .recording import RecordingReporter

MakeRecipe = Callable[..., Recipe]


def test_a_run_leaves_a_whole_folder(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    result = run(make_recipe(), out=tmp_path / "run", device="cpu", reporter=reporter)
    folder = result.folder
    assert {path.name for path in folder.iterdir()} >= {
        "recipe.toml",
        "environment.json",
        "events.jsonl",
        "checkpoints",
        "adapter",
        "predictions.jsonl",
        "scores.json",
        "loss.png",
    }
    assert not list(folder.rglob("*.partial"))
    scores = json.loads((folder / "scores.json").read_text())
    assert list(scores) == ["before", "constant", "after"]
    assert all(set(column) == {"bleu-4", "attribute-share"} for column in scores.values())
    assert scores == result.scores == reporter.scored
    lines = [json.loads(x) for x in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in lines] == [f"validation.json:{i}" for i in range(1, 7)]
    assert {"prompt", "reference", "before", "after"} <= set(lines[0])
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["trainable_parameters"] == 3 * 2 * 2 * 2 * 8
    assert environment["data"]["train"]["rows"] == 20
    assert len(environment["data"]["train"]["sha256"]) == 64
    assert environment["plugins"]["ptkit-adgen"] == "0.1.0"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("train") == 6
    assert kinds.count("validation") == 3
    assert kinds[0] == "untuned"
    assert kinds[-1] == "scores"


def test_the_resolved_recipe_runs_to_the_same_adapter(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry
) -> None:
    first = run(make_recipe(), out=tmp_path / "first", device="cpu")
    again = Recipe.load(first.folder / "recipe.toml", registry=registry)
    second = run(again, out=tmp_path / "second", device="cpu")
    for path in first.adapter.iterdir():
        assert path.read_bytes() == (second.adapter / path.name).read_bytes(), path.name


def test_training_lowers_the_loss_and_the_best_checkpoint_is_the_adapter(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(train={"max_steps": 40, "eval_every": 5, "keep": 1})
    result = run(recipe, out=tmp_path / "run", device="cpu")
    events = [json.loads(x) for x in (result.folder / "events.jsonl").read_text().splitlines()]
    untuned = next(e["loss"] for e in events if e["event"] == "untuned")
    losses = {e["step"]: e["loss"] for e in events if e["event"] == "validation"}
    best = min(losses, key=lambda step: losses[step])
    assert losses[best] < untuned - 0.1
    kept = {path.name for path in (result.folder / "checkpoints").iterdir()}
    assert kept == {f"step-{best:06d}", "step-000040"}
    adapter = ptkit.load_adapter(result.adapter)
    checkpoint = load_file(
        result.folder / "checkpoints" / f"step-{best:06d}" / "trainable.safetensors"
    )
    assert torch.equal(adapter.prefix.embedding.weight, checkpoint["prefix.embedding.weight"])


def test_adapter_is_portable(make_recipe: MakeRecipe, tmp_path: Path, registry: Registry) -> None:
    result = run(make_recipe(), out=tmp_path / "run", device="cpu")
    text = (result.adapter / "adapter.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    moved = shutil.move(result.adapter, tmp_path / "elsewhere")
    shutil.rmtree(result.folder)
    tuned = ptkit.load("tiny", moved, registry=registry, device="cpu")
    assert len(tuned.generate(["类型#裙*颜色#红色"])) == 1


def test_loaded_adapter_answers_as_in_the_run(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry
) -> None:
    result = run(make_recipe(train={"max_steps": 20}), out=tmp_path / "run", device="cpu")
    lines = [json.loads(x) for x in (result.folder / "predictions.jsonl").read_text().splitlines()]
    tuned = ptkit.load("tiny", result.adapter, registry=registry, device="cpu")
    prompts = [line["prompt"] for line in lines]
    assert tuned.enabled
    assert tuned.generate(prompts) == [line["after"] for line in lines]
    with tuned.adapter_off():
        assert not tuned.enabled
        assert tuned.generate(prompts) == [line["before"] for line in lines]
    assert tuned.enabled
    on = tuned.logits(prompts[0])
    tuned.enabled = False
    off = tuned.logits(prompts[0])
    assert float((on - off).abs().max()) > 1e-3
    base = ptkit.load("tiny", kind="tiny", registry=registry, device="cpu")
    torch.testing.assert_close(base.logits(prompts[0]), off)


@pytest.mark.parametrize(
    "prefix",
    [
        {"init": "zero"},
        {"init": "text", "init_text": "写 一 句 广告", "length": None},
        {"init": "text", "init_text": "短", "length": 5},
        {"projection": True, "projection_hidden_size": 4},
        {"projection": True},
    ],
)
def test_every_start_trains(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry, prefix: dict[str, Any]
) -> None:
    result = run(make_recipe(prefix=prefix), out=tmp_path / "run", device="cpu")
    adapter = ptkit.load_adapter(result.adapter)
    assert adapter.length == {4: 4, 5: 5}.get(adapter.length, 3)
    ptkit.load("tiny", adapter, registry=registry, device="cpu")


def test_test_rows_are_scored_if_there_are_any(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text((tmp_path / "validation.json").read_text().splitlines()[0])
    result = run(make_recipe(dataset={"test": "test.json"}), out=tmp_path / "run", device="cpu")
    lines = (result.folder / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["origin"] for line in lines] == ["test.json:1"]


def test_split_and_limit(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        dataset={"validation": None, "split": 0.25, "limit": {"train": 12, "validation": 2}}
    )
    result = run(recipe, out=tmp_path / "run", device="cpu")
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["data"]["train"]["rows"] == 9
    assert environment["data"]["validation"]["rows"] == 2


def test_without_rows_to_score_there_are_no_scores(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    recipe = make_recipe(dataset={"validation": None})
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=reporter)
    assert result.scores == {}
    assert (result.adapter / "adapter.json").exists()
    assert any("no scores" in text for text in reporter.warnings)


def test_skipped_rows_are_counted_and_stored(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with (tmp_path / "train.json").open("a", encoding="utf-8") as file:
        file.write('{"content": "x"}\nnot json\n')
    with pytest.raises(DataError) as refused:
        run(make_recipe(), out=tmp_path / "run", device="cpu")
    assert [line.split(":")[1] for line in refused.value.lines] == ["21", "22"]
    assert not (tmp_path / "run").exists()
    reporter = RecordingReporter()
    recipe = make_recipe(dataset={"on_bad_row": "skip"})
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=reporter)
    assert any("2 bad rows" in text for text in reporter.warnings)
    skipped = (result.folder / "skipped.txt").read_text().splitlines()
    assert [line.split(" ")[0] for line in skipped] == ["train.json:21:", "train.json:22:"]


def test_one_row_is_no_plural(make_recipe: MakeRecipe) -> None:
    reporter = RecordingReporter()
    prepare(make_recipe(dataset={"limit": {"train": 1, "validation": 2}}), reporter)
    assert [stage.split(" of ")[0] for stage in reporter.stages] == [
        "train: 1 row",
        "validation: 2 rows",
    ]


def test_at_most_twenty_bad_rows_are_shown(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{}\n" * 50)
    with pytest.raises(DataError) as refused:
        run(make_recipe(), out=tmp_path / "run", device="cpu")
    assert len(refused.value.bad_rows) == 20
    *rows, last = refused.value.lines
    assert [line.split(":")[1] for line in rows] == ["1", "2", "3"]
    assert last == "train.json: 17 more rows with the same mistake; reading stopped at line 20"


def test_bad_rows_with_the_same_mistake_are_counted(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    good = '{"content": "x", "summary": "y"}\n'
    (tmp_path / "train.json").write_text("3\n" + "{}\n" * 4 + good + "4\n")
    with pytest.raises(DataError) as refused:
        run(make_recipe(), out=tmp_path / "run", device="cpu")
    *rows, last = refused.value.lines
    assert [line.split(":")[1] for line in rows] == ["1", "2", "3", "4", "7"]
    assert last == "train.json: 1 more row with the same mistake"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dataset": {"train": "empty.json"}}, "empty.json: has no rows; dataset.train needs"),
        ({"dataset": {"validation": None, "split": 0.99}}, "leaves none to train on"),
        ({"prefix": {"init": "text", "init_text": " "}}, "prefix.init_text: ' ' has no tokens"),
        ({"backbone": {"max_positions": 8}}, "train.json:1: has"),
    ],
)
def test_refusals_leave_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(PtkitError) as refused:
        run(make_recipe(**sections), out=tmp_path / "run", device="cpu")
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_used_folder_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(
        PtkitError, match=r"exists and is not empty; choose another folder with --out"
    ):
        run(make_recipe(), out=tmp_path / "run", device="cpu")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_a_gpu_that_is_not_there_is_refused(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PtkitError, match="torch sees no CUDA GPU here; use --device cpu"):
        run(make_recipe(), out=tmp_path / "run", device="cuda")


def test_hooks_watch(make_recipe: MakeRecipe, tmp_path: Path, registry: Registry) -> None:
    seen: list[Any] = []

    class Watcher:
        @ptkit.hookimpl
        def ptkit_before_run(self, run: ptkit.RunInfo) -> None:
            seen.append(("before", run.environment["device"]))

        @ptkit.hookimpl
        def ptkit_after_run(self, run: ptkit.RunInfo, scores: dict[str, Any]) -> None:
            seen.append(("after", sorted(scores)))

        @ptkit.hookimpl
        def ptkit_on_run_error(self, run: ptkit.RunInfo, error: BaseException) -> None:
            seen.append(("error", type(error).__name__))

    registry.register(Watcher(), Owner("watcher", "ptkit-watcher", "1.0"))
    run(make_recipe(), out=tmp_path / "run", device="cpu")
    with pytest.raises(PtkitError):
        run(make_recipe(), out=tmp_path / "run", device="cpu")
    with pytest.raises(DataError):
        (tmp_path / "train.json").write_text("")
        run(make_recipe(), out=tmp_path / "other", device="cpu")
    assert seen == [
        ("before", "cpu"),
        ("after", ["after", "before", "constant"]),
        ("error", "DataError"),
    ]


class Reversed(ptkit.Transform):
    """A transform that turns the order around and doubles the weights."""

    name = "reversed"
    settings: ptkit.Settings

    def apply(self, records: Any, *, seed: int) -> Any:
        import dataclasses

        return [dataclasses.replace(r, weight=2.0) for r in reversed(records)]


class Nothing(Reversed):
    name = "nothing"
    on = ("validation",)

    def apply(self, records: Any, *, seed: int) -> Any:
        return []


class Flaky(ptkit.Tracker):
    name = "flaky"

    def start(self, run: ptkit.RunInfo) -> None:
        pass

    def event(self, kind: str, values: Any) -> None:
        raise ConnectionError("no network")

    def finish(self) -> None:
        raise AssertionError("a tracker that failed is not called again")


class Extras:
    @ptkit.hookimpl
    def ptkit_register_transforms(self) -> list[type[ptkit.Transform]]:
        return [Reversed, Nothing]

    @ptkit.hookimpl
    def ptkit_register_trackers(self) -> list[type[ptkit.Tracker]]:
        return [Flaky]


def test_transforms_are_applied(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry
) -> None:
    registry.register(Extras(), Owner("extras", "ptkit-extras", "1.0"))
    run(make_recipe(transforms=[{"kind": "reversed"}]), out=tmp_path / "run", device="cpu")
    with pytest.raises(DataError, match="transform 'nothing' left no rows of dataset.validation"):
        run(make_recipe(transforms=[{"kind": "nothing"}]), out=tmp_path / "other", device="cpu")


def test_a_failing_tracker_is_reported_once_and_ends_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry
) -> None:
    registry.register(Extras(), Owner("extras", "ptkit-extras", "1.0"))
    reporter = RecordingReporter()
    recipe = make_recipe(trackers=[{"kind": "flaky"}])
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=reporter)
    assert [t for t in reporter.warnings if "flaky" in t] == [
        "tracker 'flaky' (ptkit-extras 1.0): event('untuned') raised ConnectionError: no network; "
        "it is left out, and the run goes on"
    ]
    assert result.scores


def test_a_metric_that_repeats_a_score_name_is_left_out(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry
) -> None:
    class Twin(ptkit.RowMetric):
        name = "twin"
        scores = "text"

        def score_row(self, pair: ptkit.Pair) -> dict[str, float]:
            return {"bleu-4": 1.0}

    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_metrics(self) -> list[type[ptkit.Metric]]:
            return [Twin]

    registry.register(Plugin(), Owner("twin", "ptkit-twin", "1.0"))
    recipe = make_recipe(metrics=[{"kind": "bleu-char"}, {"kind": "twin"}])
    reporter = RecordingReporter()
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=reporter)
    assert set(result.scores["after"]) == {"bleu-4", "attribute-share"}
    assert reporter.warnings == [
        "metric 'twin': another metric already gives 'bleu-4'; its scores are left out"
    ]


def test_a_head_is_built_with_the_training_rows_where_it_trains(
    make_recipe: MakeRecipe, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def build(head: Generation, info: ptkit.HeadInfo) -> None:
        seen.append((len(list(info.rows)), len(list(info.rows))))  # again and again

    monkeypatch.setattr(Generation, "build", build)
    result = run(make_recipe(), out=tmp_path / "run", device="cpu")
    assert seen == [(20, 20)]
    ptkit.load("tiny", result.adapter, registry=registry, device="cpu")
    assert seen[1:] == [(0, 0)]


def test_a_checkpoint_holds_all_that_trains(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(prefix={"projection": True, "projection_hidden_size": 4})
    result = run(recipe, out=tmp_path / "run", device="cpu")
    checkpoint = result.folder / "checkpoints" / "step-000006"
    names = set(load_file(checkpoint / "trainable.safetensors"))
    geometry = recipe.backbone.create().geometry
    prefix = PrefixEncoder(geometry, 3, projection_hidden_size=4)
    trainable = Trainable(prefix)
    assert names == set(trainable.named_parameters())
    load_trainable(checkpoint, trainable)
    moments = set(load_file(checkpoint / "optimizer.safetensors"))
    assert moments == {f"{n}.{k}" for n in names for k in ("step", "exp_avg", "exp_avg_sq")}


def test_load_says_what_it_needs(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(PtkitError, match="no such model folder, and no plugin knows that name"):
        ptkit.load("nowhere", registry=registry)
    with pytest.raises(PtkitError, match="is no adapter, it has no adapter.json"):
        ptkit.load("tiny", tmp_path, registry=registry)
    base = ptkit.load("tiny", registry=registry, device="cpu")
    with pytest.raises(PtkitError, match="there is no adapter to switch on"):
        base.enabled = True
    with pytest.raises(PtkitError, match="needs the task head of an adapter"):
        base.predict([])
    with pytest.raises(TypeError, match="takes a list of prompts"):
        base.generate("one")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter.json").write_text("{"), "can't be read"),
        (lambda f: (f / "adapter.json").write_text("[]"), "format must be 1, got 'list'"),
        (lambda f: (f / "adapter.json").write_text('{"format": 9}'), "format must be 1, got 9"),
        (lambda f: (f / "adapter.json").write_text('{"format": 1}'), "is damaged"),
        (lambda f: (f / "prefix.safetensors").unlink(), "the adapter is not whole"),
        (lambda f: (f / "prefix.safetensors").write_bytes(b"x" * 10), "the adapter is not whole"),
    ],
)
def test_damaged_adapters_are_refused(
    make_recipe: MakeRecipe, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    result = run(make_recipe(), out=tmp_path / "run", device="cpu")
    damage(result.adapter)
    with pytest.raises(PtkitError) as refused:
        ptkit.load_adapter(result.adapter)
    assert message in str(refused.value)


def test_an_adapter_in_the_folder_below_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    with pytest.raises(PtkitError, match="did you mean .*adapter"):
        ptkit.load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 7}, "fingerprint"), ({"layers": 3}, "geometry"), ({"buckets": 50}, "tokenizer")],
)
def test_another_base_is_refused_with_what_differs(
    make_recipe: MakeRecipe, tmp_path: Path, change: dict[str, int], named: str
) -> None:
    result = run(make_recipe(), out=tmp_path / "run", device="cpu")
    other = make_recipe(backbone=change).backbone.create()
    with pytest.raises(PtkitError) as refused:
        ptkit.load(other, result.adapter, registry=make_recipe().registry, device="cpu")
    assert any(f"was made for {named}" in line for line in refused.value.lines)
