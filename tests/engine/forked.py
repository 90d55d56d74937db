"""Processes that share a run, forked from one that has torch loaded already: two in a second."""

from __future__ import annotations

import multiprocessing
import runpy
import socket
import time
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("forked_worker.py")
PRELOADED = ["ptkit.engine.session", "ptkit_tasks", "transformers.models.glm.modeling_glm"]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), and what it wrote to stderr."""

    code: int
    errors: str


def share(
    script: Path, argument: str | Path, count: int, folder: Path, *, seconds: float = 120
) -> list[Ended]:
    """Run ``script`` in ``count`` processes with the variables that torchrun sets; by rank.

    ``seconds``: how long it may take in all.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    several = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    several |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(count):
        given = {
            "environment": {**several, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            "script": str(script),
            "argument": str(argument),
            "errors": str(folder / f"errors-{rank}.txt"),
        }
        arguments = (str(WORKER), {"GIVEN": given}, "forked")
        processes.append(context.Process(target=runpy.run_path, args=arguments))
        processes[-1].start()
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, f"still running after {seconds} s"
    finally:
        for process in processes:
            process.kill()
    codes = [process.exitcode for process in processes]
    texts = [(folder / f"errors-{rank}.txt").read_text("utf-8") for rank in range(count)]
    return [Ended(code or 0, text) for code, text in zip(codes, texts, strict=True)]
