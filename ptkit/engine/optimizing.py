"""The optimiser, its learning rate, and what keeps it from steps that would spoil the weights."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ptkit.recipe import TrainSettings

if TYPE_CHECKING:
    from ptkit.engine.train import Trainable


def learning_rate(settings: TrainSettings, step: int, total: int) -> float:
    """The rate of optimiser step ``step`` (from 0): linear warm-up, then the schedule down to 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    done = (step - settings.warmup_steps) / max(1, total - settings.warmup_steps)
    factor = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
    }[settings.schedule]
    return settings.learning_rate * factor


def make_optimizer(trainable: Trainable, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019) over all that trains.

    A parameter group's ``share`` is its learning rate over that of the prefix.
    """
    head = [] if trainable.module is None else list(trainable.module.parameters())
    share = settings.head_learning_rate / settings.learning_rate
    groups = [{"params": list(trainable.prefix.parameters()), "share": 1.0}]
    if head:
        groups.append({"params": head, "share": share})
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )


class Clock:
    """Seconds since the last call, or since `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._last = time.perf_counter()

    def __call__(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


class Reading:
    """Numbers of the device that the host can read without waiting for what comes behind them."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._ready: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    def read(self) -> list[float]:
        if self._ready is not None:
            self._ready.synchronize()
        found: list[float] = self._values.tolist()
        return found


class Guard:
    """Optimiser steps that do nothing from the first loss or gradient on that is not finite,
    without the host having to look."""

    def __init__(self, optimizer: torch.optim.AdamW, device: torch.device) -> None:
        self._optimizer = optimizer
        self._bad = torch.zeros((), device=device)

    def step(self, loss: Tensor, norm: Tensor) -> Reading:
        """Do the optimiser's step; loss and gradient norm, to be read later."""
        found = torch.stack([loss, norm.to(loss)])
        self._bad = torch.maximum(self._bad, 1 - found.isfinite().all().float())
        optimizer: Any = self._optimizer
        optimizer.found_inf = self._bad  # what a gradient scaler sets, and the fused kernel heeds
        optimizer.step()
        return Reading(found)
