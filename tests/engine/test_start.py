"""``[prefix] start``: an adapter that is trained further, its projection kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ptkit
from ptkit.check import check
from ptkit.engine.adapter import Adapter, load_adapter
from ptkit.engine.compare import compare_runs, run_row
from ptkit.engine.start import continue_head
from ptkit.errors import CheckpointError, PtkitError, RecipeError
from ptkit.recipe import Recipe
from ptkit.reporter import Reporter

RecipeMaker = Callable[..., Recipe]
LONGER = {"max_steps": 40, "learning_rate": 5e-3, "eval_every": 20}
PROJECTED = {"projection": True, "projection_hidden_size": 12, "dropout": 0.0}


def starting(make_recipe: RecipeMaker, adapter: Path | str, **sections: Any) -> Recipe:
    """A recipe that goes on with an adapter; the length of the tests' recipe is taken out."""
    sections.setdefault("prefix", {})
    own = {"length": None, "dropout": 0.0, "start": str(adapter)}
    sections["prefix"] = {**own, **sections["prefix"]}
    return make_recipe(**sections)


def first_loss(folder: Path) -> float:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return float(next(event["loss"] for event in events if event["event"] == "train"))


@pytest.fixture
def trained(make_recipe: RecipeMaker, tmp_path: Path) -> Path:
    ptkit.run(make_recipe(prefix=PROJECTED, train=LONGER), out=tmp_path / "first", device="cpu")
    return tmp_path / "first"


def test_training_goes_on(make_recipe: RecipeMaker, trained: Path, tmp_path: Path) -> None:
    five = {"max_steps": 5, "learning_rate": 5e-3}
    said: list[str] = []
    reporter = Reporter()
    reporter.stage = said.append  # type: ignore[method-assign]
    fresh, goes_on = tmp_path / "fresh", tmp_path / "goes-on"
    ptkit.run(make_recipe(prefix=PROJECTED, train=five), out=fresh, device="cpu")
    recipe = starting(make_recipe, trained, train=five)
    ptkit.run(recipe, out=goes_on, device="cpu", reporter=reporter)
    assert f"start: {trained / 'adapter'}" in said
    assert first_loss(goes_on) < first_loss(fresh) - 0.1
    before, after = load_adapter(trained), load_adapter(goes_on)
    assert (after.length, after.prefix.projection_hidden_size) == (3, 12)
    for name, tensor in after.prefix.state_dict().items():
        start = before.prefix.state_dict()[name]
        assert tensor.shape == start.shape
        assert not torch.equal(tensor, start)  # all of it still trains
        assert torch.allclose(tensor, start, atol=0.1)


def test_the_adapter_that_was_trained_further_has_no_path(
    make_recipe: RecipeMaker, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe = starting(make_recipe, trained / "adapter", train={"max_steps": 1})
    ptkit.run(recipe, out=out, device="cpu")
    manifest = load_adapter(out).manifest
    assert manifest["recipe"]["prefix"] == {"start": "adapter", "dropout": 0.0}
    for name in ("adapter.json", "README.md"):
        assert str(tmp_path) not in (out / "adapter" / name).read_text(encoding="utf-8")
    assert "3 tokens a layer, from adapter" in (out / "report.html").read_text(encoding="utf-8")
    assert "from an adapter" in run_row(compare_runs([trained, out]), 1)


def test_the_written_recipe_is_the_same(
    make_recipe: RecipeMaker, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = starting(make_recipe, make_adapter())
    path = tmp_path / "written.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    again = Recipe.load(path, registry=recipe.registry)
    assert again.resolved() == recipe.resolved()
    assert again.prefix.start is not None
    assert again.prefix.length is None


def test_check_counts_what_trains(make_recipe: RecipeMaker, trained: Path) -> None:
    report = check(starting(make_recipe, trained), Reporter())
    width = 2 * 2 * 2 * 8
    assert report.prefix_length == 3
    assert report.trainable == 3 * width + (width + 1) * 12 + (12 + 1) * width


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("length", 3),
        ("init", "zero"),
        ("init_std", 0.5),
        ("init_text", "好"),
        ("projection", True),
        ("projection_hidden_size", 3),
    ],
)
def test_what_the_adapter_has_itself_is_refused(
    make_recipe: RecipeMaker, make_adapter: Callable[..., Path], key: str, value: Any
) -> None:
    with pytest.raises(RecipeError) as refused:
        starting(make_recipe, make_adapter(), prefix={key: value})
    assert refused.value.lines == (
        f"tiny: prefix.{key}: is given together with start, which is an adapter that has its own; "
        "remove it",
    )


def test_each_key_has_a_line(make_recipe: RecipeMaker, make_adapter: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as refused:
        starting(make_recipe, make_adapter(), prefix={"length": 3, "projection": True})
    assert len(refused.value.lines) == 2


def test_without_a_start_nothing_has_changed(make_recipe: RecipeMaker) -> None:
    assert make_recipe().resolved()["prefix"] == {
        "length": 3,
        "init": "normal",
        "init_std": 1.0,
        "projection": False,
        "dropout": 0.1,
    }


def test_what_is_no_adapter(make_recipe: RecipeMaker, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"prefix.start: no such file, folder or named source"):
        starting(make_recipe, "no")
    recipe = starting(make_recipe, tmp_path)
    line = f"{tmp_path}: is no adapter, it has no adapter.json"
    with pytest.raises(CheckpointError, match=line):
        ptkit.run(recipe, out=tmp_path / "x", device="cpu")
    with pytest.raises(CheckpointError, match=line):
        check(recipe, Reporter())


def test_an_adapter_of_another_base_is_refused_before_the_model_is_loaded(
    make_recipe: RecipeMaker,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = starting(make_recipe, make_adapter(), backbone={"seed": 7})
    monkeypatch.setattr("ptkit.engine.session.load_model", None)
    with pytest.raises(CheckpointError, match="was made for fingerprint"):
        ptkit.run(recipe, out=tmp_path / "x", device="cpu")


def test_a_manifest_without_a_shape(
    make_recipe: RecipeMaker, make_adapter: Callable[..., Path]
) -> None:
    from ptkit.manifest import checksum

    folder = make_adapter()
    path = folder / "adapter.json"
    manifest = {**json.loads(path.read_text()), "prefix": {"length": "3"}}
    path.write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))
    with pytest.raises(CheckpointError) as refused:
        check(starting(make_recipe, folder), Reporter())
    assert refused.value.lines == (f"{path}: is damaged: it has no shape of the prefix",)


def test_a_run_is_not_resumed_from_another_start(
    make_recipe: RecipeMaker, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder, out = make_adapter(), tmp_path / "out"
    ptkit.run(starting(make_recipe, folder), out=out, device="cpu")
    ptkit.run(starting(make_recipe, folder), out=out, device="cpu", resume=True)
    make_adapter("adapter", seed=1)
    with pytest.raises(PtkitError) as refused:
        ptkit.run(starting(make_recipe, folder), out=out, device="cpu", resume=True)
    assert "was started with start.checksum " in refused.value.lines[0]


# ------------------------------------------------------------------------------ the head


class Moods(ptkit.TaskHead):
    """Only what continuing needs: a name and labels."""

    name = "moods"
    accepts = ptkit.GenerationRecord
    predicts = "label"
    encode = loss = decode = reference = None  # type: ignore[assignment]


def test_the_head_goes_on_if_its_labels_are_the_same(
    make_adapter: Callable[..., Path],
) -> None:
    module = torch.nn.Linear(2, 2)
    weights = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    adapter = load_adapter(make_adapter())
    task = {"task": {"kind": "moods", "labels": ["good", "bad"]}}
    start = Adapter({**adapter.manifest, **task}, adapter.prefix, weights, Path("old"))
    other = Moods(Moods.Settings(), labels=["bad", "good"])
    assert continue_head(start, other, module) == "start: old; the head starts anew"
    assert not torch.equal(module.weight, torch.ones(2, 2))
    same = Moods(Moods.Settings(), labels=["good", "bad"])
    assert continue_head(start, same, module) == "start: old"
    assert torch.equal(module.weight, torch.ones(2, 2))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert continue_head(start, other, None) == "start: old"
