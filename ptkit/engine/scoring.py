"""What an adapter is worth on other data: the scores of its recipe, with it and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptkit.components import TaskHead
from ptkit.data import Part, encode_part, keep, open_part
from ptkit.engine.adapter import Adapter, load_adapter
from ptkit.engine.assembly import assemble
from ptkit.engine.evaluate import (
    Failures,
    Scores,
    metric_warnings,
    pairs_of,
    predict,
    score_rows,
)
from ptkit.engine.files import write_json
from ptkit.engine.page import counted
from ptkit.engine.tuned import Tuned
from ptkit.errors import DataError, PtkitError
from ptkit.isolation import blamed
from ptkit.registry import Registry, load_plugins
from ptkit.reporter import Reporter


@dataclass(frozen=True)
class Evaluation:
    """``scores``: "before" (without the adapter) and "after", score by name; ``units``: by name."""

    source: str
    sha256: str
    rows: int
    skipped: int
    scores: dict[str, dict[str, float]]
    units: dict[str, str]
    warnings: list[str]

    def write(self, path: Path, adapter: Adapter) -> None:
        data = {
            "source": self.source,
            "sha256": self.sha256,
            "rows": self.rows,
            "skipped": self.skipped,
        }
        described = {
            "adapter": {"name": adapter.folder.resolve().name, "checksum": adapter.checksum},
            "data": data,
            "scores": self.scores,
            "units": self.units,
            "warnings": self.warnings,
        }
        write_json(path, described)


def evaluate_file(
    adapter: Adapter | str | Path,
    source: str | Path,
    *,
    backbone: str | Path | None = None,
    device: str = "auto",
    enabled: bool = True,
    limit: int | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Answer ``source`` without the adapter and with it, and score both with the recipe's metrics.

    ``enabled``: False leaves the second out. ``limit``: only so many rows, from the start of the
    file. ``out``: also write the result there, as JSON. Answers are greedy or drawn as the recipe
    says.

    Raises `DataError` for bad rows, unless the recipe (or ``dataset.on_bad_row="skip"`` in
    ``overrides``) skips them, and for rows that have no answer to compare with.
    """
    registry, reporter = registry or load_plugins(), reporter or Reporter()
    if not isinstance(adapter, Adapter):
        adapter = load_adapter(adapter)
    if out is not None and not out.parent.is_dir():
        raise PtkitError(f"{out}: there is no folder {out.parent}")
    chosen = None if backbone is None else str(backbone)
    parts = assemble(
        adapter, registry, backbone=chosen, data=str(source), scored=True, overrides=overrides
    )
    form, head = parts.form, parts.head
    assert form is not None
    assert head is not None
    for text in parts.warnings:
        reporter.warning(text)
    if not parts.metrics:
        raise PtkitError(
            "the recipe names no metric and the dataset format has none; "
            "add one, such as --set 'metrics.0.kind=\"accuracy\"'"
        )
    part = open_part(form, "data", form.settings.train, limit, "--data")
    records = list(part.stream())
    for transform in parts.transforms:
        with blamed(transform, "apply()"):
            records = list(transform.apply(records, seed=parts.seed))
    keep(part, records)
    _check_answered(part, head)
    tokenizer = parts.backbone.tokenizer
    encode_part(part, head, tokenizer, parts.backbone.geometry.max_positions)
    if part.skipped:
        reporter.warning(f"{len(part.skipped):,} bad rows of {part.source.name} were skipped")
    tuned = Tuned.of(parts, adapter, device)
    found: dict[str, Scores] = {}
    warnings: list[str] = []
    failures = Failures()
    for column in ("before", "after") if enabled else ("before",):
        tuned.enabled = column == "after"
        what = "answering, with the adapter" if tuned.enabled else "answering, without the adapter"

        def show(done: int, total: int, what: str = what) -> None:
            reporter.progress(what, done, total, {})

        predictions = predict(tuned.model, head, tuned.module, part, tokenizer, show)
        pairs = pairs_of(head, part, predictions)
        found[column] = score_rows(parts.metrics, pairs, failures)
        warnings = metric_warnings(parts.metrics, pairs, failures)
    found = failures.scores(found)
    scores = {column: scored.total for column, scored in found.items()}
    units = next(reversed(found.values())).units
    result = Evaluation(
        part.source.name, part.sha256, part.count, len(part.skipped), scores, units, warnings
    )
    for text in warnings:
        (reporter.failure if text in failures.texts else reporter.warning)(text)
    reporter.scores(scores, None, part.source.path.name, part.count)
    if out is not None:
        result.write(out, adapter)
    return result


def _check_answered(part: Part, head: TaskHead) -> None:
    unanswered = [r.origin for r in part.records or [] if head.reference(r) is None]
    if unanswered:
        shown = unanswered[: DataError.SHOWN_AT_ONCE]
        raise DataError(
            *(f"{origin}: has no answer to compare with" for origin in shown),
            f"{counted(len(unanswered), 'row')} "
            f"{'has' if len(unanswered) == 1 else 'have'} no answer; "
            "`ptkit predict` gives such rows one",
        )
