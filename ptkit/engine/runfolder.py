"""What a finished run left in its folder, read back for report, model card and comparison."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ptkit.engine.bootstrap import Bootstrap, Interval
from ptkit.errors import PtkitError

COLUMNS = ("before", "constant", "after")


@dataclass(frozen=True)
class FinishedRun:
    """The files of a run folder. ``scores`` and ``predictions`` are empty without data to score."""

    folder: Path
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    manifest: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Mapping[str, float]]
    predictions: Sequence[Mapping[str, Any]]
    lengths: Mapping[str, Any]
    scoring: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def scored_part(self) -> str | None:
        """The part of the data that the scores are of: test, else validation."""
        data = self.environment["data"]
        return next((part for part in ("test", "validation") if part in data), None)

    @property
    def columns(self) -> list[str]:
        return [name for name in COLUMNS if name in self.scores]

    @property
    def metrics(self) -> list[str]:
        return list(self.scores.get("after", ()))

    def losses(self, kind: str) -> list[tuple[int, float]]:
        """(step, loss) of the events "train", "validation" or "untuned"."""
        return [(e["step"], e["loss"]) for e in self.events if e["event"] == kind]

    @property
    def steps(self) -> int:
        return max((step for step, _ in self.losses("train")), default=0)

    @property
    def best_validation(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss, the first of equal ones."""
        return min(self.losses("validation"), key=lambda pair: pair[1], default=None)

    def row_scores(self, column: str) -> list[dict[str, float]]:
        """The scores of each row in "before", "constant" or "after", as far as they were kept."""
        return [row.get("scores", {}).get(column, {}) for row in self.predictions]

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap({name: self.row_scores(name) for name in self.columns})

    def interval(self, column: str, metric: str) -> Interval | None:
        return self.bootstrap.mean(column, metric)


def read_run(folder: Path) -> FinishedRun:
    """The run in a folder. Raises `PtkitError` unless it is there, whole and finished."""
    if not folder.is_dir():
        raise PtkitError(f"{folder}: no such run folder")
    if not (folder / "recipe.toml").is_file():
        hint = ""
        if (folder / "adapter.json").is_file():
            hint = f"; it is an adapter, did you mean {folder.parent}?"
        raise PtkitError(f"{folder}: is no run folder, it has no recipe.toml{hint}")
    recipe_text = _text(folder / "recipe.toml")
    try:
        recipe = tomllib.loads(recipe_text)
    except tomllib.TOMLDecodeError as error:
        raise _damaged(folder / "recipe.toml", error) from None
    missing = [
        name
        for name in ("environment.json", "events.jsonl", "adapter/adapter.json")
        if not (folder / name).is_file()
    ]
    environment = {} if "environment.json" in missing else _json(folder / "environment.json")
    if any(part in environment.get("data", ()) for part in ("validation", "test")):
        missing += [n for n in ("predictions.jsonl", "scores.json") if not (folder / n).is_file()]
    if missing:
        raise PtkitError(
            f"{folder}: the run is not finished, {', '.join(missing)} missing; go on with: "
            f"ptkit run {folder / 'recipe.toml'} --out {folder} --resume"
        )
    run = FinishedRun(
        folder,
        recipe,
        recipe_text,
        environment,
        manifest=_json(folder / "adapter" / "adapter.json"),
        events=list(_lines(folder / "events.jsonl")),
        scores=_json(folder / "scores.json", optional=True),
        predictions=list(_lines(folder / "predictions.jsonl", optional=True)),
        lengths=_json(folder / "lengths.json", optional=True),
        scoring=_json(folder / "scoring.json", optional=True),
    )
    _check(run)
    return run


def _check(run: FinishedRun) -> None:
    """Raise `PtkitError` where a file is JSON, but not what a run writes."""
    needed = {
        "environment.json": (run.environment, ("backbone", "data", "trainable_parameters")),
        "adapter/adapter.json": (run.manifest, ("backbone", "prefix", "task")),
        "recipe.toml": (run.recipe, ("backbone", "prefix", "train")),
    }
    for name, (found, keys) in needed.items():
        for key in keys:
            if key not in found:
                raise PtkitError(f"{run.folder / name}: is damaged: {key!r} is missing")
    for number, event in enumerate(run.events, start=1):
        if not {"event", "step"} <= event.keys():
            raise PtkitError(
                f"{run.folder / 'events.jsonl'}:{number}: is damaged: no event and step"
            )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PtkitError(f"{path}: can't be read: {error}") from None


def _json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise _damaged(path, error) from None
    if not isinstance(value, dict):
        raise _damaged(path, f"must hold an object, got {type(value).__name__}")
    return value


def _lines(path: Path, *, optional: bool = False) -> Iterator[dict[str, Any]]:
    if optional and not path.is_file():
        return
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line:
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise _damaged(path, error, number) from None
        if not isinstance(value, dict):
            raise _damaged(path, f"must hold objects, got {type(value).__name__}", number)
        yield value


def _damaged(path: Path, reason: object, line: int | None = None) -> PtkitError:
    where = path if line is None else f"{path}:{line}"
    return PtkitError(f"{where}: is damaged: {reason}")
