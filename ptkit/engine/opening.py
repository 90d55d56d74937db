"""The beginning of a run: what it runs on, and a folder that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptkit.batching import Order
from ptkit.engine.adapter import Adapter, describe_backbone
from ptkit.engine.checkpoint import CHECKPOINTS, newest_checkpoint, read_progress
from ptkit.engine.environment import describe
from ptkit.engine.files import clear_partials, write_json, write_text
from ptkit.engine.lengths import describe_lengths
from ptkit.engine.model import Model
from ptkit.engine.optimizing import make_optimizer
from ptkit.engine.processes import Processes
from ptkit.engine.resume import check_same_run
from ptkit.engine.train import Progress, Trainable, Training
from ptkit.errors import PtkitError
from ptkit.preparation import Prepared
from ptkit.reporter import Reporter


def describe_run(
    prepared: Prepared,
    device: str,
    dtype: str,
    trainable: int,
    processes: int,
    start: Adapter | None,
) -> dict[str, Any]:
    """What environment.json holds. ``trainable``: the number of parameters; ``start``: the adapter
    that is trained further."""
    backbone = prepared.backbone
    return {
        **describe(prepared.recipe.registry, device),
        **({"processes": processes} if processes > 1 else {}),
        "dtype": dtype,
        "trainable_parameters": trainable,
        "frozen_parameters": backbone.geometry.parameters,
        "backbone": describe_backbone(backbone),
        **({} if start is None else {"start": {"checksum": start.checksum}}),
        "data": {
            part.name: {
                "source": part.source.name,
                "sha256": part.sha256,
                "rows": part.count,
                "skipped": len(part.skipped),
            }
            for part in prepared.parts.values()
        },
    }


def make_training(
    prepared: Prepared, model: Model, trainable: Trainable, processes: Processes
) -> Training:
    """What the loop works on, with an optimiser that has done nothing yet."""
    store, settings = prepared.parts["train"].rows, prepared.recipe.train
    order = Order(store.records, settings.batch_size, seed=settings.seed, epochs=settings.epochs)
    total = settings.max_steps or order.steps
    assert total is not None
    optimizer = make_optimizer(trainable, settings)
    return Training(
        model, trainable, prepared.head, store, settings, order, total, optimizer, processes
    )


def open_folder(
    folder: Path,
    prepared: Prepared,
    environment: dict[str, Any],
    reporter: Reporter,
    *,
    resume: bool,
) -> tuple[Path | None, Progress]:
    """Write what the run is, or check that a resumed one is the same.

    Returns the checkpoint to go on from, if there is one, and where it stands.
    """
    checkpoint = None
    if resume:
        clear_partials(folder)
        for warning in check_same_run(folder, prepared.recipe, environment):
            reporter.warning(warning)
        checkpoint = newest_checkpoint(folder / CHECKPOINTS)
    progress = Progress() if checkpoint is None else read_progress(checkpoint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PtkitError(f"{folder}: can't be made: {error.strerror}") from error
    if not (folder / "environment.json").exists():
        write_text(folder / "recipe.toml", prepared.recipe.to_toml())
        skipped = [str(row) for part in prepared.parts.values() for row in part.skipped]
        if skipped:
            write_text(folder / "skipped.txt", "\n".join(skipped) + "\n")
        lengths = describe_lengths(prepared.head, prepared.parts.values())
        write_json(folder / "lengths.json", lengths)
        write_json(folder / "environment.json", environment)
    return checkpoint, progress
