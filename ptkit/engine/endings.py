"""What a run says that ends before its time: why, and how to go on."""

from __future__ import annotations

from pathlib import Path

from ptkit.engine.checkpoint import CHECKPOINTS, newest_checkpoint
from ptkit.engine.processes import resume_command
from ptkit.engine.train import NotFinite, Training
from ptkit.rowstore import Origins


def how_to_resume(folder: Path, processes: int) -> str:
    """``folder``: that of a run that has begun, in so many processes."""
    newest = newest_checkpoint(folder / CHECKPOINTS)
    saved = "before the first step" if newest is None else f"with {newest.name} saved"
    return f"stopped {saved}; go on with: {resume_command(folder, processes)}"


def explain_not_finite(
    error: NotFinite, training: Training, origins: Origins, folder: Path
) -> list[str]:
    """Lines for the user: which rows, and what to try."""
    store = training.store
    rows = error.rows or [row for group in training.all_groups(error.step - 1) for row in group]
    found = sorted({store[row].record for row in rows})
    shown = ", ".join(str(origins[index]) for index in found[:20])
    more = f" and {len(found) - 20} more" if len(found) > 20 else ""
    kind = (
        "rows with such a loss" if error.rows else "no row alone has such a loss; the step's rows"
    )
    newest = newest_checkpoint(folder / CHECKPOINTS)
    last = "no checkpoint was written" if newest is None else f"the last good one is {newest}"
    return [
        f"{error}; {kind}: {shown}{more}",
        f'lower train.learning_rate, or use backbone.dtype = "float32" or "bfloat16"; {last}',
    ]
