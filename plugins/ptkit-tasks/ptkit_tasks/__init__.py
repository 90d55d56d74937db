"""Tasks for ptkit: the head ``generation`` and the transform ``shuffle-responses``."""

from __future__ import annotations

import ptkit


@ptkit.hookimpl
def ptkit_register_task_heads() -> list[type[ptkit.TaskHead]]:
    from ptkit_tasks.generation import Generation

    return [Generation]


@ptkit.hookimpl
def ptkit_register_transforms() -> list[type[ptkit.Transform]]:
    from ptkit_tasks.controls import ShuffleResponses

    return [ShuffleResponses]
