"""One process of a run on the tiny backbone, as a launcher starts it.

    shared_run.py JOB.json

JOB.json holds "recipe", its "folder", "out", "device", "resume", and, to let a process fail, a
"fault": its "rank" (without one: all), its "step" (from 0), and "what" happens in it; see
`Failing`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ptkit_adgen
import ptkit_metrics_zh
import ptkit_tasks
import torch
from ptkit_tasks.generation import Generation

import ptkit
from ptkit.engine.session import run
from ptkit.recipe import Recipe
from ptkit.registry import Owner, empty_registry
from ptkit.testing import TinyBackbone

FAULT: dict[str, Any] = {}


class Failing(Generation):
    """Generation that does in its loss what the job says.

    kill, stop: sends the process SIGKILL or SIGTERM. error, refusal: raises a bug's error, or that
    of bad input. memory: runs out of it, the first time. nan: a loss that is not a number, for the
    record "record". memory-in-pass, memory-behind-pass: runs out of it once while it answers, in a
    layer or in the LM head.
    """

    name = "failing-generation"
    failed = False

    def loss(self, module: Any, states: ptkit.States, rows: Any) -> ptkit.Loss:
        loss = super().loss(module, states, rows)
        rank = int(os.environ.get("RANK", "0"))
        training = torch.is_grad_enabled()
        if FAULT.get("what") == "nan":
            wrong = torch.tensor([row.record == FAULT["record"] for row in rows])
            return ptkit.Loss(loss.sums.masked_fill(wrong, float("nan")), loss.weights)
        here = FAULT.get("rank", rank) == rank and torch.initial_seed() == FAULT.get("step")
        if training and here and not self.failed:
            self.failed = True
            self._fail(FAULT["what"])
        return loss

    def predict(self, model: Any, module: Any, rows: Any) -> Any:
        rank, what = int(os.environ.get("RANK", "0")), FAULT.get("what", "")
        if what.startswith("memory-") and FAULT["rank"] == rank and not self.failed:
            self.failed = True
            where = model.lm_head if what == "memory-behind-pass" else model.attentions[1]

            def fail(*_: Any) -> None:
                hook.remove()
                self._fail("memory")

            hook = where.register_forward_pre_hook(fail)
        return super().predict(model, module, rows)

    def _fail(self, what: str) -> None:
        if what in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)
        elif what == "memory":
            raise torch.OutOfMemoryError("none left")
        elif what == "refusal":
            raise ptkit.DataError("train.json:7: can't be used")
        else:
            raise AssertionError("not meant to happen")


class Plugin:
    @ptkit.hookimpl
    def ptkit_register_backbones(self) -> list[type[ptkit.Backbone]]:
        return [TinyBackbone]

    @ptkit.hookimpl
    def ptkit_register_task_heads(self) -> list[type[ptkit.TaskHead]]:
        return [Failing]


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    FAULT.update(job.get("fault", {}))
    registry = empty_registry()
    for number, plugin in enumerate((Plugin(), ptkit_adgen, ptkit_metrics_zh, ptkit_tasks)):
        registry.register(plugin, Owner(f"plugin-{number}", f"plugin-{number}", "1.0"))
    recipe = Recipe.from_dict(
        job["recipe"], folder=Path(job["folder"]), name="tiny", registry=registry
    )
    try:
        run(recipe, out=job["out"], device=job["device"], resume=job["resume"])
    except ptkit.PtkitError as error:
        for line in error.lines:
            print(line, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
