"""ptkit plugin: where the events of a run go besides its events.jsonl."""

from __future__ import annotations

import ptkit
from ptkit_trackers.boards import TensorBoard
from ptkit_trackers.services import MLflow, SwanLab, WandB


@ptkit.hookimpl
def ptkit_register_trackers() -> list[type[ptkit.Tracker]]:
    return [TensorBoard, WandB, MLflow, SwanLab]
