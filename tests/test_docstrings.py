"""The examples in the docstrings of ptkit's front door, run one behind the other."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import ptkit

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
