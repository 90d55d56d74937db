"""Checkpoints of a run: safetensors and JSON only, each folder whole or absent."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ptkit.engine.files import PARTIAL, remove_folder, save_tensors, whole_folder, write_json
from ptkit.engine.processes import ALONE, Processes
from ptkit.engine.train import Progress, Trainable
from ptkit.errors import CheckpointError

CHECKPOINTS = "checkpoints"
"""Where they are in the folder of a run."""
TRAINABLE = "trainable.safetensors"
OPTIMIZER = "optimizer.safetensors"
PROGRESS = "progress.json"


def _checkpoints(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step-*") if path.suffix != PARTIAL)


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:06d}"


def save_checkpoint(
    root: Path,
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    keep: int,
) -> Path:
    """Write ``root/step-000500`` and prune to the ``keep`` newest and the best."""
    folder = folder_of(root, progress.step)
    if not folder.exists():
        with whole_folder(folder) as partial:
            save_tensors(partial / TRAINABLE, trainable.named_parameters())
            save_tensors(partial / OPTIMIZER, _optimizer_tensors(trainable, optimizer))
            write_json(partial / PROGRESS, progress.as_dict())
    kept = {folder_of(root, progress.best_step)} if progress.best_step is not None else set()
    steps = _checkpoints(root)
    kept.update(steps[-keep:])
    for path in steps:
        if path not in kept:
            remove_folder(path)
    return folder


def _optimizer_tensors(
    trainable: Trainable, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in trainable.named_parameters().items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_trainable(folder: Path, trainable: Trainable, processes: Processes = ALONE) -> None:
    """Put a checkpoint's weights into ``trainable``; the leading process reads them for all."""
    tensors = processes.first(lambda: _read(folder / TRAINABLE))
    with torch.no_grad():
        for name, parameter in trainable.named_parameters().items():
            parameter.copy_(tensors[name])


def load_optimizer(
    folder: Path,
    trainable: Trainable,
    optimizer: torch.optim.Optimizer,
    processes: Processes = ALONE,
) -> None:
    """Put a checkpoint's optimiser state, every tensor of it, into ``optimizer``."""
    tensors = processes.first(lambda: _read(folder / OPTIMIZER))
    for name, parameter in trainable.named_parameters().items():
        state = {
            key.removeprefix(f"{name}."): value
            for key, value in tensors.items()
            if key.startswith(f"{name}.") and "." not in key.removeprefix(f"{name}.")
        }
        optimizer.state[parameter] = {
            key: value if key == "step" else value.to(parameter.device)
            for key, value in state.items()
        }


def newest_checkpoint(root: Path) -> Path | None:
    """The last whole checkpoint of a run, or None."""
    found = _checkpoints(root)
    return found[-1] if found else None


def read_progress(folder: Path) -> Progress:
    path = folder / PROGRESS
    try:
        return Progress.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path}: can't be read ({error}); remove the folder to resume before it"
        ) from None


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: can't be read ({error}); remove the folder to resume before it"
        ) from None
