"""Answers to a file of rows: streamed, in order, a line a row, and gone on with after any stop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ptkit.components import DatasetFormat
from ptkit.data import encode_record, read_rows, sha256
from ptkit.engine.adapter import Adapter, load_adapter
from ptkit.engine.answers import AnswerFile
from ptkit.engine.assembly import assemble, recipe_tables
from ptkit.engine.evaluate import predict_rows
from ptkit.engine.generate import window
from ptkit.engine.model import BATCH_TOKENS, pick_device, pick_dtype
from ptkit.engine.stopping import Interrupted, StopSignals
from ptkit.engine.tuned import Tuned
from ptkit.errors import DataError, PtkitError
from ptkit.isolation import blamed
from ptkit.records import BadRow, EncodedRow, Origin, Record, Row
from ptkit.registry import Registry, load_plugins
from ptkit.reporter import Reporter
from ptkit.settings import SourcePath, dump

# input rows that are predicted, written and, after a stop, found again together; more on a GPU
WINDOW = 256


@dataclass(frozen=True)
class Answered:
    """What a job did: the rows of the input, and how many of them were bad."""

    rows: int
    bad: int

    def __str__(self) -> str:
        rows = f"{self.rows:,} row{'' if self.rows == 1 else 's'}"
        return f"{rows}: {self.rows - self.bad:,} answered, {self.bad:,} bad"


def predict_file(
    adapter: Adapter | str | Path,
    source: str | Path,
    output: str | Path,
    *,
    backbone: str | Path | None = None,
    device: str = "auto",
    enabled: bool = True,
    batch_tokens: int = BATCH_TOKENS,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    registry: Registry | None = None,
    reporter: Reporter | None = None,
) -> Answered:
    """Write the adapter's answer to every row of ``source`` to ``output``, a line of JSON each.

    A line has "origin", "prompt" and "prediction", or "origin" and "error" for a row that can't be
    read. The file is read as the adapter's recipe says, changed by ``overrides``; answers may be
    missing in it. ``enabled``: False leaves the adapter off. ``batch_tokens`` bounds rows x (tokens
    + new tokens) of a batch.

    Memory does not grow with the file. A job that was stopped, in any way, goes on when it is
    called again with the same arguments, and ends with the same bytes.

    Raises `PtkitError` for an output that exists, unless ``overwrite``, and for one of another job.
    """
    registry, reporter = registry or load_plugins(), reporter or Reporter()
    if not isinstance(adapter, Adapter):
        adapter = load_adapter(adapter)
    path = Path(output)
    chosen = None if backbone is None else str(backbone)
    parts = assemble(adapter, registry, backbone=chosen, data=str(source), overrides=overrides)
    assert parts.form is not None
    assert parts.head is not None
    settings = parts.form.settings
    if not settings.train.path.is_file():
        raise PtkitError(f"{source}: must be a plain file, because it is read more than once")
    for name in _unapplied(adapter, registry):
        reporter.warning(
            f"transform {name!r} of the recipe is not applied to rows that are predicted"
        )
    for text in parts.warnings:
        reporter.warning(text)
    place = pick_device(device)
    job = {
        "adapter": adapter.checksum,
        "adapter on": enabled,
        "base model": parts.backbone.fingerprint,
        "variant": dict(parts.backbone.variant),
        "quantization": parts.backbone.quantization,
        "input": settings.train.name,
        "input sha256": sha256(settings.train),
        "dataset": {"kind": parts.form.name, **_without_source(dump(settings))},
        "task": dump(parts.head.settings),
        "batch tokens": batch_tokens,
        "device": place,
        "dtype": pick_dtype(parts.backbone.settings.dtype, place),
    }
    answers = AnswerFile(path, job, overwrite=overwrite)
    answers.check()
    rows = sum(
        1 for _ in _read(parts.form, settings.train)
    )  # a broken file is found before hours pass
    with StopSignals():
        work = None
        try:
            tuned = Tuned.of(parts, adapter, place)
            tuned.enabled = enabled
            tuned.model.batch_tokens = batch_tokens
            work = _Job(tuned, parts.form, settings.train, answers, rows, reporter)
            return work.run()
        except Interrupted as stop:
            done = 0 if work is None else work.done
            raise Interrupted(
                stop.number,
                f"stopped with {done:,} of {rows:,} rows answered; go on with the same command",
            ) from None


def _without_source(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in ("train", "on_bad_row")}


def _unapplied(adapter: Adapter, registry: Registry) -> list[str]:
    """The recipe's transforms that changed its test rows."""
    known = registry.components["transforms"]
    kinds = [table.get("kind") for table in recipe_tables(adapter, "transforms")]
    return [
        kind
        for kind in kinds
        if kind in known and "test" in getattr(known[kind].component, "on", ())
    ]


def _read(form: DatasetFormat, source: SourcePath) -> Iterator[Record | BadRow]:
    return read_rows(form, source, answered=False)


class _Job:
    """One input file, window by window."""

    def __init__(
        self,
        tuned: Tuned,
        form: DatasetFormat,
        source: SourcePath,
        answers: AnswerFile,
        rows: int,
        reporter: Reporter,
    ) -> None:
        assert tuned.head is not None
        self.tuned, self.head = tuned, tuned.head
        self.items = _read(form, source)
        self.answers = answers
        self.rows = rows
        self.reporter = reporter
        self.done = 0
        self.bad = 0
        self.good = 0

    def run(self) -> Answered:
        backbone, model = self.tuned.backbone, self.tuned.model
        dtype = str(model.dtype).removeprefix("torch.")
        name = backbone.settings.source.name
        self.reporter.stage(f"backbone: {backbone.name} {name}, {dtype} on {model.device}")
        with self.answers:
            going_on = True
            at_once = window(WINDOW, model.device)
            while some := list(islice(self.items, at_once)):
                lines = self.answers.kept([str(item.origin) for item in some]) if going_on else None
                if lines is None:
                    if going_on and self.done:
                        self.reporter.stage(f"going on behind row {self.done:,}")
                    going_on = False
                    lines = self._answer(some)
                    self.answers.write(lines)
                self.done += len(some)
                self.bad += sum(1 for line in lines if "error" in line)
                self.good += sum(1 for item in some if not isinstance(item, BadRow))
                self.reporter.progress("answering", self.done, self.rows, {})
            self.answers.finish()
        return Answered(self.done, self.bad)

    def _answer(self, items: Sequence[Record | BadRow]) -> list[dict[str, Any]]:
        """A line a row. Draws depend on a row's number among the good ones, as in a run."""
        lines: list[dict[str, Any]] = [{} for _ in items]
        rows: list[EncodedRow] = []
        encoded: list[tuple[int, Record, Sequence[Row]]] = []
        number = self.good
        origins: dict[int, Origin] = {}
        for place, item in enumerate(items):
            if isinstance(item, BadRow):
                lines[place] = {"origin": str(item.origin), "error": item.message}
                continue
            try:
                limit = self.tuned.backbone.geometry.max_positions
                found = encode_record(item, self.head, self.tuned.backbone.tokenizer, limit)
            except DataError as error:
                message = str(error.lines[0]).removeprefix(f"{item.origin}: ")
                lines[place] = {"origin": str(item.origin), "error": message}
            else:
                rows += [EncodedRow(row, number, part) for part, row in enumerate(found)]
                encoded.append((place, item, found))
                origins[number] = item.origin
            number += 1
        before = self.done

        def show(done: int) -> None:
            share = done * len(items) // len(rows)
            if share < len(items):  # the whole window is reported once it is written
                self.reporter.progress("answering", before + share, self.rows, {})

        tuned = self.tuned
        outputs = iter(predict_rows(tuned.model, self.head, tuned.module, rows, show, origins))
        for place, record, its_rows in encoded:
            its_outputs = list(islice(outputs, len(its_rows)))
            with blamed(self.head, "decode()", record.origin):
                prediction = self.head.decode(
                    record, its_rows, its_outputs, self.tuned.backbone.tokenizer
                )
            lines[place] = {
                "origin": str(record.origin),
                "prompt": getattr(record, "prompt", None),
                "prediction": prediction,
            }
        return lines
