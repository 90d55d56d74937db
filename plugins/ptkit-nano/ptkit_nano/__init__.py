"""A tiny pretrained model and rows to tune it on, as the sources ``nano`` and ``nano:…``."""

from __future__ import annotations

from pathlib import Path

import ptkit

_FOLDER = Path(__file__).parent
_DATA = _FOLDER / "data"
_ENDINGS = {"types": "jsonl", "entities": "jsonl", "answers": "json"}
_SOURCES = {
    "nano": _FOLDER / "model",
    "nano:train": _DATA / "train.json",
    "nano:validation": _DATA / "validation.json",
} | {
    f"nano:{task}-{part}": _DATA / f"{task}-{part}.{ending}"
    for task, ending in _ENDINGS.items()
    for part in ("train", "validation")
}


@ptkit.hookimpl
def ptkit_resolve_source(source: str) -> Path | None:
    """``nano`` is the model's folder, ``nano:train`` and ``nano:validation`` are ADGEN files.

    ``nano:types-…`` are labelled texts, ``nano:entities-…`` texts with the spans of entities,
    ``nano:answers-…`` documents as SQuAD 2.0 has them; each with ``train`` and ``validation``.
    Raises `ptkit.PtkitError` for another ``nano:…``.
    """
    if source != "nano" and not source.startswith("nano:"):
        return None
    path = _SOURCES.get(source)
    if path is None:
        raise ptkit.PtkitError(f"ptkit-nano has no {source!r}; it has {', '.join(_SOURCES)}")
    return path
