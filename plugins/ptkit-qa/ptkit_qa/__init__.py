"""ptkit plugin: the dataset formats ``messages``, ``instruction`` and ``squad``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptkit import hookimpl

if TYPE_CHECKING:
    from ptkit import DatasetFormat


@hookimpl
def ptkit_register_dataset_formats() -> Sequence[type[DatasetFormat]]:
    from ptkit_qa.instruction import InstructionFormat
    from ptkit_qa.messages import MessagesFormat
    from ptkit_qa.squad import SquadFormat

    return [MessagesFormat, InstructionFormat, SquadFormat]
