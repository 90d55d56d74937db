"""What a run makes of ``train.memory`` and ``train.compile``: how many layers are computed again in
the backward pass, and whether layers are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ptkit.batching import micro_batches
from ptkit.engine.blocks import has_kernels
from ptkit.engine.model import pick_device
from ptkit.engine.outofmemory import causes
from ptkit.engine.train import Training
from ptkit.errors import PtkitError
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
    """Let the model compute as many layers again as train.memory says, and what all rows begin with
    once for all of them, and compile its work if that is worth it."""
    found, model = fit(training, backbone, tokens), training.model
    model.stem = training.stem
    model.recompute_layers(found.memory.recomputed)
    if _compiled(training):
        model.compile_layers()
        model.use_graphs()
    return found


def compiles(settings: TrainSettings, steps: int | None, device: torch.device) -> bool:
    """Whether a run of so many steps (None: without end) compiles, as train.compile says."""
    worth_it = steps is None or steps >= STEPS_WORTH_COMPILING
    chosen = worth_it if settings.compile is None else settings.compile
    return chosen and has_kernels(device)


def _compiled(training: Training) -> bool:
    """Whether `set_up` compiles. A hook that brings processes together can't be."""
    chosen = compiles(training.settings, training.total, training.model.device)
    return chosen and training.processes.lock_step is None


@contextmanager
def told_if_not_compiled(training: Training) -> Iterator[None]:
    """Turn a failure of what `set_up` had compiled, or of capturing a CUDA graph of it, into a line
    that says how to do without.

    Memory that ran out meanwhile has been told by then (`outofmemory.told_as`), a head's fault too
    (`isolation.blamed`). Whatever else is raised passes through, such as what a kernel of ours
    raises inside a compiled layer: that fails without a compiler as well.
    """
    try:
        yield
    except PtkitError:
        raise
    except Exception as error:
        if not _compiled(training):
            raise
        reason: BaseException = error
        if _is_of_compiler(error):
            what = "torch.compile"
        elif any(isinstance(e, RuntimeError) and "captur" in str(e) for e in causes(error)):
            # what ends the capture fails too, and hides the reason
            what, reason = "capturing a CUDA graph of a step", error.__context__ or error
        else:
            raise
        while isinstance(inner := getattr(reason, "inner_exception", None), Exception):
            reason = inner
        first = next((line.strip() for line in str(reason).splitlines() if line.strip()), "")
        text = f"{type(reason).__name__}: {first}".removesuffix(": ")
        raise PtkitError(f"{what} failed ({text}); set train.compile = false") from error


def _is_of_compiler(error: Exception) -> bool:
    """Whether torch.compile raised it, or, below the last of our functions, what it runs: compilers
    of kernels and of C++ code start as late as with a kernel's first call."""
    from torch._dynamo.exc import TorchDynamoException

    if isinstance(error, TorchDynamoException):
        return True
    if isinstance(error, torch.AcceleratorError):  # of a device, maybe long after its cause
        return False
    frame, below = error.__traceback__, False
    while frame is not None:
        module = str(frame.tb_frame.f_globals.get("__name__"))
        if module.startswith("ptkit"):
            below = False
        elif module.startswith("torch._inductor"):
            below = True
        frame = frame.tb_next
    return below


def fit(training: Training, backbone: Backbone, tokens: int) -> Fit:
    """How training fits into the memory that is there, by the micro-batches of its first 500 steps
    with up to ``tokens`` tokens; of the base, what this process has of it counts."""
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
        processes=1 if training.processes.lock_step is None else training.processes.size,
    )
    gpu = free_memory() if device == "cuda" else None
    name, available = gpu or ("CPU of this computer", memory_of_machine())
    return Fit.of(name, training.settings.memory, available, estimates, len(batch.lengths))


def _micro_batches(training: Training, tokens: int) -> Iterator[MicroBatch]:
    store, through_lm_head = training.store, training.trainable.module is None
    stem, dropout = len(training.stem), training.settings.backbone_dropout > 0
    for step in range(min(training.total, STEPS_LOOKED_AT)):
        groups = training.groups(step) or training.all_groups(step)  # one of many has no share
        totals = [sum(store.length(row) for row in group) for group in groups]
        for batch in micro_batches(groups, totals, tokens):
            rows = [row for group in batch for row in groups[group]]
            labels = [store.labels(row) for row in rows] if through_lm_head else []
            targets = sum(len(each) - each.count(IGNORE) for each in labels)
            lengths = tuple(store.length(row) for row in rows)
            yield MicroBatch(lengths, targets, dropout, stem)
