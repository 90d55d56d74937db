"""What a backbone says of itself: notes and progress in a run, its variant in adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from ptkit.engine.adapter import load_adapter
from ptkit.engine.session import load_model, run
from ptkit.errors import CheckpointError
from ptkit.models import LoadedBackbone, LoadProgress
from ptkit.recipe import Recipe
from ptkit.testing import TinyBackbone

from .recording import RecordingReporter

MakeRecipe = Callable[..., Recipe]


class Told(RecordingReporter):
    """Also keeps the progress of loading."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[tuple[int, int | None]] = []

    def progress(
        self, what: str, done: int, total: int | None, values: Mapping[str, float]
    ) -> None:
        if what == "loading":
            self.loaded.append((done, total))


load_tiny = TinyBackbone.load


def load_in_two(
    self: TinyBackbone, device: str, dtype: str, progress: LoadProgress | None = None
) -> LoadedBackbone:
    for done in (1, 2):
        if progress is not None:
            progress(done, 2)
    return load_tiny(self, device, dtype)


def test_a_run_shows_notes_and_loading(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyBackbone, "notes", ["the weights are random", "the words are few"])
    monkeypatch.setattr(TinyBackbone, "load", load_in_two)
    reporter = Told()
    run(make_recipe(), out=tmp_path / "run", device="cpu", reporter=reporter)
    place = next(i for i, text in enumerate(reporter.stages) if text.startswith("backbone: "))
    assert reporter.stages[place + 1 : place + 3] == TinyBackbone.notes
    assert reporter.loaded == [(1, 2), (2, 2)]


def test_the_tokenizers_stop_ids_reach_the_model() -> None:
    backbone = TinyBackbone()
    backbone.tokenizer.stop_ids = (7, 9)
    assert load_model(backbone, "cpu").stop_ids == (7, 9)


def test_an_adapter_is_refused_on_another_variant(
    make_recipe: MakeRecipe, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only values that both sides give are compared: a plugin may add one later."""
    monkeypatch.setattr(TinyBackbone, "variant", {"rope": "half", "prompt": "plain", "old": "x"})
    folder = make_adapter()
    adapter, backbone = load_adapter(folder), make_recipe().backbone.create()
    assert adapter.manifest["backbone"]["variant"] == TinyBackbone.variant
    monkeypatch.setattr(TinyBackbone, "variant", {"rope": "float32", "prompt": "plain", "new": "y"})
    with pytest.raises(CheckpointError) as refused:
        adapter.check_fits(backbone)
    assert refused.value.lines == (
        f'{folder}: was made with backbone.rope = "half", but here it is "float32"',
    )
    monkeypatch.setattr(TinyBackbone, "variant", {"rope": "half", "new": "y"})
    assert adapter.check_fits(backbone) == []
