"""Contract checks for plugins, and a tiny model to run them on.

Public, like `ptkit` itself: the checks that ptkit's own plugins pass are the ones that others get.
The names load lazily (PEP 562): only `tiny_model`, `check_task_head` and `check_backbone` import
torch. Fixtures for pytest are in `ptkit.testing.fixtures`, which a plugin's ``conftest.py`` names::

    pytest_plugins = ["ptkit.testing.fixtures"]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptkit.testing.backbones import check_backbone
    from ptkit.testing.formats import check_dataset_format
    from ptkit.testing.heads import check_task_head
    from ptkit.testing.metrics import check_metric
    from ptkit.testing.tiny import TinyBackbone, WordTokenizer, tiny_model
    from ptkit.testing.trackers import check_tracker

_HOMES = {
    "ptkit.testing.backbones": "check_backbone",
    "ptkit.testing.formats": "check_dataset_format",
    "ptkit.testing.heads": "check_task_head",
    "ptkit.testing.metrics": "check_metric",
    "ptkit.testing.tiny": "TinyBackbone WordTokenizer tiny_model",
    "ptkit.testing.trackers": "check_tracker",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "TinyBackbone",
    "WordTokenizer",
    "check_backbone",
    "check_dataset_format",
    "check_metric",
    "check_task_head",
    "check_tracker",
    "tiny_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'ptkit.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
