"""Adapters of other programs: the abstract class behind every format of ``ptkit convert``."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ptkit.components import Section
from ptkit.models import Backbone
from ptkit.settings import Component

if TYPE_CHECKING:
    from torch import Tensor

    from ptkit.engine.adapter import Adapter


class AdapterFormat(Component):
    """Another program's layout of a prefix on disk. Its ``name`` is what ``--to`` takes; it has no
    settings.

    What crosses are the tensors of ptkit's own prefix encoder: ``embedding.weight`` of
    [p, 2·l·g·d], read as [p, 2l, g, d] with the key of layer i at 2i and its value at 2i+1, and for
    a projection ``trans.0`` and ``trans.2`` with weight and bias. Keys are not rotated, and real
    tokens are at positions 0, 1, 2…; a format that places them elsewhere rotates the keys.
    """

    looks_for: ClassVar[str]
    """What a folder of this format holds, for messages: ``adapter_config.json``."""
    backbone_kind: ClassVar[str | None] = None
    """The one kind of backbone whose prefixes it holds; None: any."""
    needs_backbone: ClassVar[bool] = True
    """Whether `write` can't do without the backbone; `read` always gets one."""

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether ``folder`` is of this format, from its files' names and small files only."""

    @abstractmethod
    def read(self, folder: Path, backbone: Backbone) -> dict[str, Tensor]:
        """The prefix in ``folder``; ptkit checks names and shapes against the backbone's geometry.

        Raises `CheckpointError` for files that are damaged or hold something else. Pickles are read
        with ``weights_only=True``.
        """

    @abstractmethod
    def write(self, folder: Path, adapter: Adapter, backbone: Backbone | None) -> list[str]:
        """Fill the empty ``folder``; ``backbone`` is the adapter's. A line for all that was lost.

        ``adapter.prefix.state_dict()`` has the tensors, ``adapter.prefix()`` the keys and values.
        """


ADAPTER_FORMATS = Section(
    "adapters",
    "ptkit_register_adapter_formats",
    AdapterFormat,
    required=False,
    title="adapter formats",
)
"""Collected as the sections of a recipe are, though no recipe names one."""
