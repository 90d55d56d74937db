"""Fixtures for the tests of plugins: a registry of their own, and whole runs on a tiny model.

They are not loaded by themselves; a ``conftest.py`` names them::

    pytest_plugins = ["ptkit.testing.fixtures"]

and a test asks for them::

    def test_haikus_train(tiny_run, tmp_path):
        (tmp_path / "poems.txt").write_text("old pond/a frog jumps in/sound of water\\n" * 4)
        result = tiny_run(
            ptkit_haiku,
            ptkit_tasks,
            dataset={"kind": "haiku", "train": "poems.txt", "validation": "poems.txt"},
            task={"kind": "generation", "max_target_tokens": 12},
        )
        assert result.adapter.is_dir()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from ptkit.hookspecs import hookimpl
from ptkit.models import Backbone
from ptkit.recipe import Recipe
from ptkit.registry import Owner, Registry, empty_registry
from ptkit.reporter import Reporter
from ptkit.testing.tiny import TinyBackbone

if TYPE_CHECKING:
    from ptkit.engine.session import RunResult

MakeRegistry = Callable[..., Registry]
"""What `registry` gives: plugins to a registry that has them and the tiny backbone."""


class TinyRun(Protocol):
    """What `tiny_run` gives: plugins and sections of a recipe to the result of their run."""

    def __call__(
        self,
        *plugins: object,
        dataset: Mapping[str, Any],
        task: Mapping[str, Any],
        metrics: Sequence[Mapping[str, Any]] = (),
        **sections: Any,
    ) -> RunResult: ...


class _Tiny:
    @hookimpl
    def ptkit_register_backbones(self) -> list[type[Backbone]]:
        return [TinyBackbone]

    @hookimpl
    def ptkit_resolve_source(self, source: str) -> Path | None:
        return Path(__file__).parent if source == "tiny" else None


def _name(plugin: object) -> str:
    return plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__name__


@pytest.fixture
def registry() -> MakeRegistry:
    """``registry(plugin, …)``: a registry with these plugins and `TinyBackbone`, and nothing else.

    A plugin is what an entry point leads to: a module or an object with hooks. One that can't be
    used fails the test with the line that ``ptkit plugins`` would show.
    """

    def make(*plugins: object) -> Registry:
        made = empty_registry()
        made.register(_Tiny(), Owner("tiny", "ptkit", "0"))
        for plugin in plugins:
            name = _name(plugin)
            made.register(plugin, Owner(name, name, "0"))
        failed = [*map(str, made.failures)]
        failed += [f"{name!r} is registered twice" for _, name in made.collisions]
        if failed:
            pytest.fail("\n".join(failed), pytrace=False)
        return made

    return make


class _Strict(Reporter):
    def failure(self, text: str) -> None:
        pytest.fail(text, pytrace=False)


@pytest.fixture
def tiny_run(registry: MakeRegistry, tmp_path: Path) -> TinyRun:
    """``tiny_run(plugin, …, dataset={…}, task={…})``: a run of four steps on `TinyBackbone`.

    Files are looked for in ``tmp_path``, and the run folder is made there. ``metrics``, and any
    other section of a recipe such as ``train={"max_steps": 40}`` or ``backbone={"kind": "tiny",
    "causal": False}``, may be given. A run goes on without a metric or tracker that fails; here
    that fails the test.
    """

    def run(
        *plugins: object,
        dataset: Mapping[str, Any],
        task: Mapping[str, Any],
        metrics: Sequence[Mapping[str, Any]] = (),
        **sections: Any,
    ) -> RunResult:
        from ptkit.engine import session

        data: dict[str, Any] = {
            "ptkit": 1,
            "backbone": {"kind": "tiny"},
            "prefix": {"length": 3},
            "dataset": dict(dataset),
            "task": dict(task),
            "metrics": [dict(metric) for metric in metrics],
            **sections,
        }
        data["train"] = {"max_steps": 4, "batch_size": 4, **sections.get("train", {})}
        made = registry(*plugins)
        recipe = Recipe.from_dict(data, folder=tmp_path, name="tiny", registry=made)
        folder = tmp_path / f"run-{sum(1 for _ in tmp_path.glob('run-*')) + 1}"
        return session.run(recipe, out=folder, device="cpu", reporter=_Strict())

    return run
