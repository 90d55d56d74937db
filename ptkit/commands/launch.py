"""Several processes of one run on this machine, as ``ptkit run --processes`` starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from ptkit.engine.processes import ENDED_BY_OTHERS, LAUNCHED, resume_command
from ptkit.errors import PtkitError

GRACE = 10.0  # seconds for the others to end by themselves once a process has failed
KILL_AFTER = 5.0  # seconds for those that were asked to
_POLL = 0.05  # seconds
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    errors: IO[bytes] | None
    """What it writes to stderr; None: rank 0's goes to the terminal."""
    stopped: bool = False
    """Whether it was ended from here."""


@dataclass
class _Outcome:
    """How the processes ended: ``codes`` by rank, in the order of their ends."""

    codes: dict[int, int] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)

    def culprits(self) -> list[int]:
        """The ranks that failed by themselves, those that a signal killed first."""
        own = {
            rank: code
            for rank, code in self.codes.items()
            if code not in (0, ENDED_BY_OTHERS) and rank not in self.stopped
        }
        return sorted(own, key=lambda rank: own[rank] >= 0)


def launch(command: Sequence[str], count: int, folder: Path) -> int:
    """Run ``command`` in ``count`` processes, and return the exit code of the first.

    ``folder``: that of the run, for what is said when it fails. Each process gets torchrun's
    environment variables. The first writes to the terminal; what another one writes to stderr is
    shown if it fails. When one fails, the others are ended within 15 s. Ctrl-C and SIGTERM are
    handed on to all. Raises `PtkitError` for a process that failed without the first one's saying
    why.
    """
    given = _variables(count)
    workers: list[_Worker] = []
    with tempfile.TemporaryDirectory() as scratch, _forwarding(workers):
        for rank in range(count):
            errors = None if rank == 0 else (Path(scratch) / str(rank)).open("w+b")
            process = subprocess.Popen(
                command,
                env={**os.environ, **given, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=errors,
                # Ctrl-C in a terminal goes to a group at once; it is to reach each process once
                process_group=0 if os.name == "posix" else None,
            )
            workers.append(_Worker(rank, process, errors))
        try:
            outcome = _watch(workers)
            return _judge(outcome, workers, folder)
        finally:
            for worker in workers:
                worker.process.kill()
                if worker.errors is not None:
                    worker.errors.close()


def _variables(count: int) -> Mapping[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHED: "1",
    }


@contextmanager
def _forwarding(workers: Sequence[_Worker]) -> Iterator[None]:
    """Hands signals on to the workers that run, each once a signal."""

    def forward(number: int, frame: FrameType | None) -> None:
        meant = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(meant)

    numbers = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(workers: Sequence[_Worker]) -> _Outcome:
    """Wait for all; once one has failed, end those that don't end by themselves."""
    outcome = _Outcome()
    deadline: float | None = None
    while len(outcome.codes) < len(workers):
        for worker in workers:
            code = worker.process.poll()
            if code is not None and worker.rank not in outcome.codes:
                outcome.codes[worker.rank] = code
                if code != 0 and deadline is None:
                    deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() >= deadline:
            deadline = time.monotonic() + KILL_AFTER
            for worker in workers:
                if worker.rank not in outcome.codes:
                    end = worker.process.kill if worker.stopped else worker.process.terminate
                    worker.stopped = True
                    outcome.stopped.add(worker.rank)
                    end()
        time.sleep(_POLL)
    return outcome


def _judge(outcome: _Outcome, workers: Sequence[_Worker], folder: Path) -> int:
    count = len(workers)
    if not any(outcome.codes.values()):
        return 0
    culprits = outcome.culprits()
    killed = bool(culprits) and outcome.codes[culprits[0]] < 0
    if 0 in culprits and not killed:
        return outcome.codes[0]  # which has said why
    begun = (folder / "recipe.toml").exists()
    again = f"go on with: {resume_command(folder, count)}" if begun else "nothing was written"
    if not culprits:
        raise PtkitError(f"the {count} processes of the run lost each other; {again}")
    rank = culprits[0]
    code = outcome.codes[rank]
    if code < 0:
        name = signal.Signals(-code).name
        raise PtkitError(f"rank {rank} of {count} was killed by {name}; {again}")
    lines = _text(workers[rank]).splitlines()
    if code == PtkitError.exit_code and lines:
        raise PtkitError(*(f"rank {rank}: {line}" for line in lines))
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    raise PtkitError(f"rank {rank} of {count} failed with exit code {code}; {again}")


def _text(worker: _Worker) -> str:
    if worker.errors is None:
        return ""
    worker.errors.seek(0)
    return worker.errors.read().decode("utf-8", "replace")
