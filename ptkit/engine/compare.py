"""Finished runs side by side: what they were, what they scored, and where their recipes differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptkit.engine.bootstrap import Bootstrap, Interval
from ptkit.engine.runfolder import FinishedRun, read_run
from ptkit.errors import PtkitError


@dataclass(frozen=True)
class Difference:
    """A key of the recipe that differs: its value in each run as JSON, "–" where it isn't given."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs in the order given, the others compared with the first.

    ``names``: what tells them apart. ``gains``: of each run the bootstrap of its rows ("this")
    beside the first's ("first"), if the rows are the same.
    """

    runs: Sequence[FinishedRun]
    names: Sequence[str]
    gains: Sequence[Bootstrap | None]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(metric for run in self.runs for metric in run.metrics))

    def gain(self, place: int, metric: str) -> Interval | None:
        """A run's score after training less the first's, paired by rows; None if it can't be."""
        bootstrap = self.gains[place]
        return None if bootstrap is None else bootstrap.difference("this", "first", metric)

    @property
    def differences(self) -> list[Difference]:
        """The keys of the recipes that don't have the same value everywhere."""
        flat = [_flat(run.recipe) for run in self.runs]
        keys = dict.fromkeys(key for recipe in flat for key in recipe)
        rows = [Difference(key, tuple(r.get(key, "–") for r in flat)) for key in keys]
        return [row for row in rows if len(set(row.values)) > 1]

    @property
    def warnings(self) -> list[str]:
        """Why numbers of these runs can't be compared, a line a reason."""
        first, found = self.runs[0], []
        for name, run, gain in zip(self.names[1:], self.runs[1:], self.gains[1:], strict=True):
            pair = f"{self.names[0]} and {name}"
            if _scored(first) != _scored(run):
                found.append(
                    f"{pair} were scored on different data ({_where(first)}; {_where(run)}): "
                    "their scores can't be compared"
                )
            elif first.metrics and run.metrics and gain is None:
                found.append(
                    f"{pair} were scored on different rows of the same file "
                    f"({len(first.predictions):,}; {len(run.predictions):,}): "
                    "their scores can't be compared"
                )
            reasons = _loss_differs(first, run)
            if reasons:
                found.append(
                    f"{pair} differ in {' and '.join(reasons)}: their losses can't be compared"
                )
        return found


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read the runs. Raises `PtkitError` for one that isn't finished or is named twice."""
    places = [folder.resolve() for folder in folders]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise PtkitError(f"{folders[index]}: is named twice; compare it with another run")
    problems: list[str] = []
    runs: list[FinishedRun] = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except PtkitError as error:
            problems += error.lines
    if problems:
        raise PtkitError(*problems)
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return Comparison(runs, names, [_paired(runs[0], run) for run in runs])


def _paired(first: FinishedRun, run: FinishedRun) -> Bootstrap | None:
    if run is first or not run.predictions or _rows(first) != _rows(run):
        return None
    return Bootstrap({"first": first.row_scores("after"), "this": run.row_scores("after")})


def _rows(run: FinishedRun) -> list[tuple[Any, Any]]:
    return [(row.get("prompt"), row.get("reference")) for row in run.predictions]


def _data(run: FinishedRun, part: str | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.environment["data"].get(part, {})
    return found


def _scored(run: FinishedRun) -> Any:
    return _data(run, run.scored_part).get("sha256")


def _where(run: FinishedRun) -> str:
    data = _data(run, run.scored_part)
    if not data:
        return "none"
    return f"{Path(str(data.get('source'))).name}, sha256 {str(data.get('sha256'))[:8]}…"


def _loss_differs(first: FinishedRun, run: FinishedRun) -> list[str]:
    """In what validation losses of two runs differ besides the model, if both have some."""
    if first.best_validation is None or run.best_validation is None:
        return []

    def average(one: FinishedRun) -> Any:
        return one.recipe["train"].get("loss_average")

    def validation(one: FinishedRun) -> tuple[Any, Any]:
        data = _data(one, "validation")
        return data.get("sha256"), data.get("rows")

    checks = {
        "validation data": validation(first) == validation(run),
        "tokenizer": first.manifest["backbone"].get("tokenizer")
        == run.manifest["backbone"].get("tokenizer"),
        "train.loss_average": average(first) == average(run),
    }
    return [what for what, same in checks.items() if not same]


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Dotted key to JSON; lists are whole values."""
    found: dict[str, str] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            found |= _flat(entry, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = json.dumps(entry, ensure_ascii=False)
    return found


# ------------------------------------------------------------------------------------------ tables

RUN_COLUMNS = ("run", "backbone", "P", "init", "steps", "trained", "best validation loss")


def run_row(comparison: Comparison, place: int) -> tuple[str, ...]:
    """What a run was, for `RUN_COLUMNS`."""
    run = comparison.runs[place]
    best = run.best_validation
    backbone, prefix = run.environment["backbone"], run.recipe["prefix"]
    return (
        comparison.names[place],
        f"{backbone['kind']} {backbone['name']}",
        str(run.manifest["prefix"]["length"]),
        str(prefix.get("init", "from an adapter" if "start" in prefix else "–")),
        f"{run.steps:,}",
        f"{run.environment['trainable_parameters']:,}",
        "–" if best is None else f"{best[1]:.4f} at step {best[0]:,}",
    )
