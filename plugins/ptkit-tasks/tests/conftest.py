"""Whole runs of a head on records that a test makes, on the tiny backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ptkit_tasks
import pytest

import ptkit
from ptkit.registry import Owner, Registry, empty_registry
from ptkit.testing import TinyBackbone

RunToy = Callable[..., ptkit.RunResult]


def toy_plugin(
    head: type[ptkit.TaskHead], parts: dict[str, Sequence[ptkit.Record]], folder: Path
) -> object:
    """The tiny backbone, a format that gives the records of ``parts``, and the metric "equal"."""

    class Records(ptkit.DatasetFormat):
        name = "records"
        record = head.accepts

        def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
            yield from parts[path.name]

    class Equal(ptkit.RowMetric):
        """The share of predictions that equal their reference."""

        name = "equal"
        scores = head.predicts

        def score_row(self, pair: ptkit.Pair) -> dict[str, float]:
            return {"equal": 100.0 * (pair.prediction == pair.reference)}

    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_backbones(self) -> list[type[ptkit.Backbone]]:
            return [TinyBackbone]

        @ptkit.hookimpl
        def ptkit_register_dataset_formats(self) -> list[type[ptkit.DatasetFormat]]:
            return [Records]

        @ptkit.hookimpl
        def ptkit_register_metrics(self) -> list[type[ptkit.Metric]]:
            return [Equal]

        @ptkit.hookimpl
        def ptkit_resolve_source(self, source: str) -> Path | None:
            return folder if source == "tiny" else None

    return Plugin()


@pytest.fixture
def toy_registry(tmp_path: Path) -> Callable[..., Registry]:
    """A fresh registry that knows the heads of this package and the records of a test."""

    def make(head: type[ptkit.TaskHead], parts: dict[str, Sequence[ptkit.Record]]) -> Registry:
        for name in parts:
            (tmp_path / name).touch()
        registry = empty_registry()
        registry.register(toy_plugin(head, parts, tmp_path), Owner("toy", "toy", "1.0"))
        registry.register(ptkit_tasks, Owner("tasks", "ptkit-tasks", "0.1.0"))
        assert not registry.failures
        return registry

    return make


@pytest.fixture
def run_toy(tmp_path: Path, toy_registry: Callable[..., Registry]) -> RunToy:
    """Train ``head`` on ``train`` and score it on ``test``, as ``ptkit run`` does.

    ``task`` and ``training`` are merged into the recipe's sections; ``resume`` goes on with the run
    of the same ``out``.
    """

    def run(
        head: type[ptkit.TaskHead],
        train: Sequence[ptkit.Record],
        test: Sequence[ptkit.Record],
        *,
        causal: bool = False,
        words: Sequence[str] = (),
        task: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        transforms: Sequence[dict[str, Any]] = (),
        out: str = "run",
        resume: bool = False,
    ) -> ptkit.RunResult:
        registry = toy_registry(head, {"train": train, "test": test})
        # a single layer learns what these few rows tell apart in a hundred steps
        plain = {"hidden": "none"} if "hidden" in head.Settings.model_fields else {}
        data = {
            "ptkit": 1,
            "backbone": {
                "kind": "tiny",
                "source": "tiny",
                "causal": causal,
                "words": list(words),
            },
            "prefix": {"length": 4},
            "dataset": {"kind": "records", "train": "train", "test": "test"},
            "transforms": list(transforms),
            "task": {"kind": head.name, **plain, **(task or {})},
            "metrics": [{"kind": "equal"}],
            "train": {
                "max_steps": 100,
                "batch_size": 16,
                "learning_rate": 0.05,
                "head_learning_rate": (training or {}).get("learning_rate", 0.05),
                **(training or {}),
            },
        }
        recipe = ptkit.Recipe.from_dict(data, folder=tmp_path, name="toy", registry=registry)
        return ptkit.run(recipe, out=tmp_path / out, device="cpu", resume=resume)

    return run
