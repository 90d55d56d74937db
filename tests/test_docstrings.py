"""Docstrings of the public door: every name has one, and the examples in them run."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import ptkit
import ptkit.testing
from ptkit.registry import COLLECTED

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.toml"
SMALL = (
    "dataset.limit={ train = 20, validation = 3 }",
    "task.max_target_tokens=8",
    "train.batch_size=1",
)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ptkit_nano")
    recipe = ptkit.Recipe.load(RECIPE, overrides=SMALL)
    monkeypatch.chdir(tmp_path)
    Path("quickstart.toml").write_text(recipe.to_toml(), encoding="utf-8")
    for documented in (ptkit.Recipe.load, ptkit.run, ptkit.load, ptkit.Tuned):
        finder = doctest.DocTestFinder(recurse=False)
        found = [test for test in finder.find(documented, globs={}) if test.examples]
        assert len(found) == 1
        assert doctest.DocTestRunner().run(found[0]).failed == 0, found[0].name


PUBLIC = [(module, name) for module in (ptkit, ptkit.testing) for name in module.__all__]


def constant_docs(module: Any) -> dict[str, str]:
    """The strings behind assignments of a module, by the name that is assigned."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for assigned, behind in pairwise(body):
        if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
            targets = getattr(assigned, "targets", [getattr(assigned, "target", None)])
            found |= {t.id: str(behind.value.value) for t in targets if isinstance(t, ast.Name)}
    return found


def documentation(module: Any, name: str) -> str:
    """The docstring of a public name itself: none is inherited or made by `dataclasses`."""
    found = getattr(module, name)
    if not inspect.isclass(found) and not inspect.isfunction(found) and name != "hookimpl":
        return constant_docs(import_module(module._HOME[name])).get(name, "")
    text = inspect.cleandoc(vars(found).get("__doc__") or "") if inspect.isclass(found) else ""
    text = text or (inspect.getdoc(found) or "" if not inspect.isclass(found) else "")
    return "" if text.startswith(f"{name}(") else text


@pytest.mark.parametrize(
    ("module", "name"), PUBLIC, ids=lambda part: getattr(part, "__name__", part)
)
def test_every_public_name_has_a_docstring(module: Any, name: str) -> None:
    words = re.findall(r"\w+", documentation(module, name))
    assert len(words) >= 4, f"{module.__name__}.{name} has no docstring that says something"


EXTENDED = [
    found
    for found in map(ptkit.__getattr__, ptkit.__all__)
    if inspect.isabstract(found) and issubclass(found, ptkit.Component | ptkit.Tokenizer)
]


@pytest.mark.parametrize("base", EXTENDED, ids=lambda base: base.__name__)
def test_what_a_plugin_can_implement_has_docstrings(base: type[Any]) -> None:
    for name, value in vars(base).items():
        if not name.startswith("_") and callable(getattr(value, "__get__", None)):
            words = re.findall(r"\w+", inspect.getdoc(getattr(base, name)) or "")
            assert inspect.isclass(value) or len(words) >= 4, f"{base.__name__}.{name}"


def test_the_bases_of_all_components_are_among_them() -> None:
    bases = {section.base for section in COLLECTED}
    assert bases | {ptkit.Tokenizer, ptkit.RowMetric, ptkit.JsonRowsFormat} <= set(EXTENDED)


def test_no_name_is_exported_without_being_listed() -> None:
    for module in (ptkit, ptkit.testing):
        assert set(module._HOME) == set(module.__all__)
        assert sorted(module.__all__) == sorted(set(module.__all__))
        for name in module.__all__:
            assert hasattr(module, name)
