"""Task heads for ptkit: ``generation``."""

from __future__ import annotations

import ptkit


@ptkit.hookimpl
def ptkit_register_task_heads() -> list[type[ptkit.TaskHead]]:
    from ptkit_tasks.generation import Generation

    return [Generation]
