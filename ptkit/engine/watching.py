"""The hooks of plugins that only watch a run: one that raises is told, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from ptkit.engine.stopping import Interrupted
from ptkit.errors import REPORT, show_traceback
from ptkit.isolation import one_line
from ptkit.registry import Registry


def tell(registry: Registry, hook: str, failure: Callable[[str], None], **values: Any) -> None:
    """Call ``hook`` of every plugin that has it, each alone.

    Each gets its own copy of ``values``, errors apart. What a plugin raises is a line for
    ``failure``; only Ctrl-C and SIGTERM pass through.
    """
    for owner, call in registry.one_by_one(hook):
        try:
            call(
                **{
                    name: value if isinstance(value, BaseException) else deepcopy(value)
                    for name, value in values.items()
                }
            )
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            show_traceback(error)
            raised = f"plugin {owner.plugin!r} ({owner}): {hook}() raised {one_line(error)}"
            failure(f"{raised}; the run is not affected; {REPORT}")
