"""Events and recipes as the flat tables that trackers take; what must be installed for one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import ptkit


def numbers(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event by path, ``step`` left out; all else is passed over.

    >>> numbers("train", {"step": 3, "loss": 2.5, "note": "first"})
    {'train/loss': 2.5}
    >>> numbers("scores", {"step": 3, "before": {"bleu-4": 1.0}, "after": {"bleu-4": 80.0}})
    {'scores/before/bleu-4': 1.0, 'scores/after/bleu-4': 80.0}
    """
    return {
        path: float(value)
        for path, value in flat(kind, values, "/")
        if path != f"{kind}/step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def settings(recipe: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The values of a recipe by path; lists of tables are numbered, other lists are text.

    >>> settings({"ptkit": 1, "train": {"betas": [0.9, 0.999]}, "metrics": [{"kind": "rouge-zh"}]})
    {'ptkit': 1, 'train.betas': '[0.9, 0.999]', 'metrics.0.kind': 'rouge-zh'}
    """
    return {
        path.removeprefix("."): value if isinstance(value, str | int | float) else str(value)
        for path, value in flat("", recipe, ".")
    }


def flat(path: str, value: Any, separator: str) -> Iterator[tuple[str, Any]]:
    """Every value inside ``value`` with its path."""
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping) for inner in value):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        yield path, value
        return
    for key, inner in items:
        yield from flat(f"{path}{separator}{key}", inner, separator)


def require(kind: str, *modules: str) -> None:
    """Raise `PluginError` if a module that the tracker ``kind`` needs isn't installed.

    Nothing is imported: the packages are slow to import, and this is asked before a run.
    """
    missing = [name for name in modules if name not in sys.modules and find_spec(name) is None]
    if missing:
        them = " and ".join(missing)
        verb = "is" if len(missing) == 1 else "are"
        raise ptkit.PluginError(
            f"tracker {kind!r} needs {them}, which {verb} not installed; "
            f'pip install "ptkit-trackers[{kind}]"'
        )
