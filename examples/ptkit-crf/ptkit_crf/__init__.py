"""The plugin ``crf`` for ptkit: entities by a conditional random field of BIO tags."""

from __future__ import annotations

import ptkit


@ptkit.hookimpl
def ptkit_register_task_heads() -> list[type[ptkit.TaskHead]]:
    from ptkit_crf.head import CrfEntities

    return [CrfEntities]
