"""Whether a folder is free for a run, and whether a resumed run is the one that was started in
it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ptkit.errors import PtkitError
from ptkit.recipe import Recipe

MUST_MATCH = ("backbone", "start", "data", "device", "dtype")
NAMES = (
    "backbone.name",
    "source",
)  # what things are called may change; fingerprints and hashes may not
# results may differ in the last bits
MAY_DIFFER = ("processes", "threads", "packages", "plugins", "ptkit")


def free_folder(name: str, out: str | Path | None, *, resume: bool) -> Path:
    """Where a run is to be written: ``out``, or a new folder for the recipe of this name.

    Raises `PtkitError` for a folder that is in use, or, to resume, holds no run.
    """
    if resume and out is None:
        raise PtkitError("--resume needs --out with the folder of the run to go on with")
    folder = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}" if out is None else Path(out)
    check_unused(folder, resume=resume)
    return folder


def check_unused(folder: Path, *, resume: bool) -> None:
    """Raise `PtkitError` unless ``folder`` is free, or, to resume, holds a run."""
    if not resume:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise PtkitError(
                f"{folder}: exists and is not empty; choose another folder with --out, "
                "or go on with the run in it with --resume"
            )
        return
    if not folder.is_dir():
        raise PtkitError(f"{folder}: no such run folder, so there is nothing to resume")
    strange = not (folder / "recipe.toml").exists() and any(
        not path.name.endswith(".partial") for path in folder.iterdir()
    )
    if strange:
        raise PtkitError(f"{folder}: is no run folder, it has no recipe.toml")


def check_same_run(folder: Path, recipe: Recipe, environment: Mapping[str, Any]) -> list[str]:
    """Raise `PtkitError`, a line a difference, unless recipe, data and base are those of the run.

    Returns warnings about what may change the last bits of the result. A folder whose run was
    stopped before it was described has nothing to differ from.
    """
    try:
        then = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        recipe_then = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise PtkitError(
            f"{folder}: its recipe.toml or environment.json is damaged: {error}"
        ) from None
    recipe_now = tomllib.loads(recipe.to_toml())
    problems = [
        f"{folder}: was started with {key} = {_shown(old)}, now it is {_shown(new)}"
        for key, old, new in _differences(recipe_then, recipe_now)
        if not (_is_path(old) and _is_path(new))
    ]
    then, now = ({"processes": 1, **described} for described in (then, environment))
    now = json.loads(json.dumps(now))
    for key in MUST_MATCH:
        problems += [
            f"{folder}: was started with {name} {_shown(old)}, now it is {_shown(new)}"
            for name, old, new in _differences({key: then.get(key)}, {key: now.get(key)})
            if not name.endswith(NAMES)
        ]
    if problems:
        raise PtkitError(*problems, "start a new run in another folder, or undo the change")
    return [
        f"{name} was {_shown(old)}, now it is {_shown(new)}: the result may differ in the last bits"
        for key in MAY_DIFFER
        for name, old, new in _differences({key: then.get(key)}, {key: now.get(key)})
    ]


def _differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            inner = f"{where}.{key}" if where else str(key)
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield where, old, new


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_absolute()


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
