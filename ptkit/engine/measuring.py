"""Seconds and memory of work on a device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path

import torch

AT_LEAST = 0.3  # seconds of measuring
MOST_PASSES = 50
_STATUS = Path("/proc/self/status")


def seconds_of(work: Callable[[int], None], device: str) -> float:
    """Seconds that ``work`` takes, on average, after a warm-up; it gets the number of the pass."""
    for index in range(2):
        work(index)
    synchronize(device)
    started, passes = time.perf_counter(), 0
    while passes < 2 or (passes < MOST_PASSES and time.perf_counter() - started < AT_LEAST):
        for _ in range(5):  # a GPU is waited for only now and then
            work(passes)
            passes += 1
        synchronize(device)
    return (time.perf_counter() - started) / passes


def synchronize(device: str) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def release_memory() -> None:
    """Let go of what nothing refers to any more, so that others find the memory free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory that a with block takes, in ``bytes``: see `ptkit.engine.figures.Steps`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> PeakMemory:
        release_memory()
        self.restart()
        return self

    def restart(self) -> None:
        """Forget the peak so far."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:  # Linux: the peak of this process becomes what it has now
            Path("/proc/self/clear_refs").write_text("5")
            self._before = _resident("VmRSS:")
        except OSError:
            self._before = None

    def __exit__(self, *_: object) -> None:
        if self.device.startswith("cuda"):
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._before is not None:
            peak = _resident("VmHWM:")
            self.bytes = None if peak is None else max(0, peak - self._before)


def _resident(key: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return None
