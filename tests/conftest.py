"""A fresh registry with a tiny backbone and our plugins, and recipes on it that run in a second."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ptkit_adgen
import ptkit_metrics_zh
import ptkit_tasks
import pytest
import torch

import ptkit
from ptkit.recipe import Recipe
from ptkit.registry import Owner, Registry, empty_registry
from ptkit.testing import TinyBackbone

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

COLOURS = ["红色", "蓝色", "白色", "黑色"]
KINDS = ["裙", "裤", "上衣"]


class TinyPlugin:
    """The tiny backbone, as a plugin would bring it."""

    @ptkit.hookimpl
    def ptkit_register_backbones(self) -> list[type[ptkit.Backbone]]:
        return [TinyBackbone]

    @ptkit.hookimpl
    def ptkit_resolve_source(self, source: str) -> Path | None:
        return Path(__file__).parent if source == "tiny" else None


@pytest.fixture
def registry() -> Registry:
    """Nothing global: every test gets its own."""
    fresh = empty_registry()
    fresh.register(TinyPlugin(), Owner("tiny", "ptkit-tiny", "1.0"))
    for name, plugin in (
        ("adgen", ptkit_adgen),
        ("metrics-zh", ptkit_metrics_zh),
        ("tasks", ptkit_tasks),
    ):
        fresh.register(plugin, Owner(name, f"ptkit-{name}", "0.1.0"))
    assert not fresh.failures
    return fresh


def adgen_rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """Rows in ADGEN's form that follow a rule, words apart for the word tokenizer."""
    rows = []
    for index in range(first, first + count):
        colour, kind = COLOURS[index % 4], KINDS[index // 4 % 3]
        rows.append(
            {
                "content": f"类型#{kind}*颜色#{colour}",
                "summary": f"这 条 {colour} 的 {kind} 很 好看 第 {index} 款",
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


RecipeMaker = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def _ctrl_c_works() -> Iterator[None]:
    """Ctrl-C as in a terminal, also where the tests were started in the background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def make_recipe(tmp_path: Path, registry: Registry) -> RecipeMaker:
    """A recipe on the tiny backbone; sections given as keyword arguments are merged into it."""
    write_rows(tmp_path / "train.json", adgen_rows(20))
    write_rows(tmp_path / "validation.json", adgen_rows(6, first=20))

    def make(**sections: Any) -> Recipe:
        data: dict[str, Any] = {
            "ptkit": 1,
            "backbone": {"kind": "tiny", "source": "tiny"},
            "prefix": {"length": 3},
            "dataset": {
                "kind": "adgen",
                "train": "train.json",
                "validation": "validation.json",
            },
            "task": {"kind": "generation", "max_target_tokens": 12},
            "metrics": [{"kind": "bleu-char"}],
            "train": {"max_steps": 6, "batch_size": 4, "eval_every": 2},
        }
        for key, value in sections.items():
            if isinstance(value, dict):
                merged = {**data.get(key, {}), **value}
                data[key] = {k: v for k, v in merged.items() if v is not None}
            else:
                data[key] = value
        return Recipe.from_dict(data, folder=tmp_path, name="tiny", registry=registry)

    return make


AdapterMaker = Callable[..., Path]


@pytest.fixture
def make_adapter(make_recipe: RecipeMaker, tmp_path: Path) -> AdapterMaker:
    """The adapter folder of a recipe, with a random prefix instead of a trained one."""
    from ptkit.engine.adapter import describe_backbone, save_adapter
    from ptkit.engine.prefix import PrefixEncoder

    def make(name: str = "adapter", *, seed: int = 0, **sections: Any) -> Path:
        recipe = make_recipe(**sections)
        backbone = recipe.backbone.create()
        prefix = PrefixEncoder(backbone.geometry, 3)
        prefix.initialize(std=1.0, seed=seed)
        manifest = {
            "backbone": describe_backbone(backbone),
            "task": {"kind": recipe.task.kind, "labels": []},
            "recipe": recipe.resolved(portable=True),
        }
        save_adapter(tmp_path / name, prefix, {}, manifest)
        return tmp_path / name

    return make


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path for distributions; what is imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
