"""Checkpoints of a run: safetensors and JSON only, each folder whole or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from ptkit.engine.files import save_tensors, whole_folder, write_json
from ptkit.engine.train import Progress, Trainable


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
            save_tensors(partial / "trainable.safetensors", trainable.named_parameters())
            save_tensors(partial / "optimizer.safetensors", _optimizer_tensors(trainable, optimizer))
            write_json(partial / "progress.json", progress.as_dict())
    kept = {folder_of(root, progress.best_step)} if progress.best_step is not None else set()
    steps = sorted(path for path in root.glob("step-*") if path.is_dir() and path.suffix == "")
    kept.update(steps[-keep:])
    for path in steps:
        if path not in kept:
            shutil.rmtree(path)
    return folder


def _optimizer_tensors(
    trainable: Trainable, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in trainable.named_parameters().items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_trainable(folder: Path, trainable: Trainable) -> None:
    """Put a checkpoint's weights into ``trainable``."""
    tensors = load_file(folder / "trainable.safetensors")
    with torch.no_grad():
        for name, parameter in trainable.named_parameters().items():
            parameter.copy_(tensors[name])


def read_progress(folder: Path) -> Progress:
    data = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    best = data["best_loss"]
    return Progress(data["step"], data["best_step"], float("inf") if best is None else best)
