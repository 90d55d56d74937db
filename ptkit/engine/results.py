"""What a run is worth: its adapter, its predictions and its scores, written to its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ptkit
from ptkit.data import Part
from ptkit.engine.adapter import save_adapter
from ptkit.engine.evaluate import (
    Failures,
    Scores,
    best_constant,
    metric_warnings,
    pairs_of,
    score_rows,
)
from ptkit.engine.files import whole_file, write_json
from ptkit.engine.train import Trainable
from ptkit.errors import PluginError, show_traceback
from ptkit.preparation import Prepared
from ptkit.reporter import Reporter

Columns = dict[str, dict[str, float]]


class Results:
    """Writes what a run leaves when its training is over."""

    def __init__(self, prepared: Prepared, folder: Path, reporter: Reporter) -> None:
        self.prepared = prepared
        self.folder = folder
        self.reporter = reporter
        self.failed: list[str] = []  # what went wrong outside of metrics, and ended nothing

    def save_adapter(self, trainable: Trainable, environment: Mapping[str, Any]) -> None:
        """``environment``: as in environment.json."""
        head, module = self.prepared.head, trainable.module
        manifest = {
            "ptkit": ptkit.__version__,
            "backbone": environment["backbone"],
            "task": {"kind": head.name, "labels": list(head.labels)},
            "recipe": self.prepared.recipe.resolved(portable=True),
            "versions": {**environment["packages"], **environment["plugins"]},
        }
        tensors = {} if module is None else dict(module.state_dict())
        save_adapter(self.folder / "adapter", trainable.prefix, tensors, manifest)

    def score(self, before: Sequence[Any], after: Sequence[Any]) -> Columns:
        """Score the predictions without and with the prefix; write predictions.jsonl and
        scores.json."""
        part, head, metrics = self.prepared.scored, self.prepared.head, self.prepared.metrics
        assert part is not None
        failures = Failures()
        constant = self._constant(part, failures)
        pairs = pairs_of(head, part, after)
        found = {"before": score_rows(metrics, pairs_of(head, part, before), failures)}
        if constant is not None:
            found["constant"] = constant[1]
        found["after"] = score_rows(metrics, pairs, failures)
        found = failures.scores(found)
        self._write_predictions(part, before, after, found)
        answer = None if constant is None else str(constant[0])
        warnings = [*self.failed, *metric_warnings(metrics, pairs, failures)]
        scoring = {"constant": answer, "units": found["after"].units, "warnings": warnings}
        write_json(self.folder / "scoring.json", scoring)
        scores = {name: scored.total for name, scored in found.items()}
        write_json(self.folder / "scores.json", scores)
        for text in warnings:
            failed = text in failures.texts or text in self.failed
            show = self.reporter.failure if failed else self.reporter.warning
            show(text)
        self.reporter.scores(scores, answer, part.name, part.count)
        return scores

    def _constant(self, part: Part, failures: Failures) -> tuple[Any, Scores] | None:
        """The best constant answer; a head that can't name any costs that column alone."""
        head, train = self.prepared.head, self.prepared.parts["train"]
        seed = self.prepared.recipe.train.seed
        try:
            return best_constant(
                head, self.prepared.metrics, train.sample, part, seed=seed, failures=failures
            )
        except PluginError as error:
            show_traceback(error)
            self.failed += [f"{line}; there are no scores of a constant" for line in error.lines]
            return None

    def _write_predictions(
        self, part: Part, before: Sequence[Any], after: Sequence[Any], scores: Mapping[str, Scores]
    ) -> None:
        path = self.folder / "predictions.jsonl"
        rows = zip(part.records or [], before, after, strict=True)
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            for index, (record, untuned, tuned) in enumerate(rows):
                line = {
                    "origin": str(record.origin),
                    "prompt": getattr(record, "prompt", None),
                    "reference": self.prepared.head.reference(record),
                    "before": untuned,
                    "after": tuned,
                    "scores": {name: found.rows[index] for name, found in scores.items()},
                }
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
