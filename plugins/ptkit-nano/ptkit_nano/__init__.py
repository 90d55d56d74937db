"""A tiny pretrained model and rows to tune it on, as the sources ``nano`` and ``nano:…``."""

from __future__ import annotations

from pathlib import Path

import ptkit

_FOLDER = Path(__file__).parent
_SOURCES = {
    "nano": _FOLDER / "model",
    "nano:train": _FOLDER / "data" / "train.json",
    "nano:validation": _FOLDER / "data" / "validation.json",
}


@ptkit.hookimpl
def ptkit_resolve_source(source: str) -> Path | None:
    """``nano`` is the model's folder, ``nano:train`` and ``nano:validation`` are ADGEN files.

    Raises `ptkit.PtkitError` for another ``nano:…``.
    """
    if source != "nano" and not source.startswith("nano:"):
        return None
    path = _SOURCES.get(source)
    if path is None:
        raise ptkit.PtkitError(f"ptkit-nano has no {source!r}; it has {', '.join(_SOURCES)}")
    return path
