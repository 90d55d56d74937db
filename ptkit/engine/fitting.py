"""What a run makes of ``train.memory`` and ``train.compile``: how many layers are computed again in
the backward pass, and whether layers are compiled."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ptkit.batching import micro_batches
from ptkit.engine.attention import has_kernels
from ptkit.engine.model import pick_device
from ptkit.engine.train import Training
from ptkit.memory import Fit, MicroBatch, by_layers, largest, memory_of_machine
from ptkit.models import Backbone
from ptkit.recipe import TrainSettings
from ptkit.records import IGNORE

STEPS_LOOKED_AT = 500  # for the largest micro-batch
STEPS_WORTH_COMPILING = 200  # which takes about as long as they save, on an H100


def free_memory(*, required: bool = False) -> tuple[str, int] | None:
    """The name of the GPU, and the bytes that this process has of it or could take; None without
    one.

    ``required``: raise `PtkitError` instead of returning None.
    """
    if required:
        pick_device("cuda")
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return torch.cuda.get_device_name(), free + torch.cuda.memory_reserved()


def set_up(training: Training, backbone: Backbone, tokens: int) -> Fit:
    """Let the model compute as many layers again as train.memory says, and compile the rest of its
    work if that is worth it."""
    found, model = fit(training, backbone, tokens), training.model
    model.recompute_layers(found.memory.recomputed)
    chosen = compiles(training.settings, training.total, model.device)
    if chosen and training.processes.lock_step is None:
        model.compile_layers()
        model.use_graphs()
    return found


def compiles(settings: TrainSettings, steps: int | None, device: torch.device) -> bool:
    """Whether a run of so many steps (None: without end) compiles, as train.compile says."""
    worth_it = steps is None or steps >= STEPS_WORTH_COMPILING
    chosen = worth_it if settings.compile is None else settings.compile
    return chosen and has_kernels(device)


def fit(training: Training, backbone: Backbone, tokens: int) -> Fit:
    """How training fits into the memory that is there, by the micro-batches of its first 500 steps
    with up to ``tokens`` tokens."""
    model, geometry = training.model, training.model.geometry
    device, prefix = model.device.type, training.trainable.prefix.length
    batch = largest(_micro_batches(training, tokens), geometry, prefix, device)
    estimates = by_layers(
        geometry,
        batch,
        prefix=prefix,
        trainable=training.trainable.count(),
        device=device,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=backbone.quantization,
        on_host=backbone.parameters_on_host if device == "cuda" else 0,
    )
    gpu = free_memory() if device == "cuda" else None
    name, available = gpu or ("CPU of this computer", memory_of_machine())
    return Fit.of(name, training.settings.memory, available, estimates, len(batch.lengths))


def _micro_batches(training: Training, tokens: int) -> Iterator[MicroBatch]:
    store, through_lm_head = training.store, training.trainable.module is None
    for step in range(min(training.total, STEPS_LOOKED_AT)):
        groups = training.groups(step) or training.all_groups(step)  # one of many has no share
        totals = [sum(store.length(row) for row in group) for group in groups]
        for batch in micro_batches(groups, totals, tokens):
            rows = [row for group in batch for row in groups[group]]
            labels = [store.labels(row) for row in rows] if through_lm_head else []
            targets = sum(len(each) - each.count(IGNORE) for each in labels)
            lengths = tuple(store.length(row) for row in rows)
            yield MicroBatch(lengths, targets, training.settings.backbone_dropout > 0)
