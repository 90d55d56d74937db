"""ptkit plugin: the dataset format ``dialogue-csv`` and the metric ``distinct``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptkit import hookimpl

if TYPE_CHECKING:
    from ptkit import DatasetFormat, Metric


@hookimpl
def ptkit_register_dataset_formats() -> Sequence[type[DatasetFormat]]:
    from ptkit_dialogues.format import DialogueCsv

    return [DialogueCsv]


@hookimpl
def ptkit_register_metrics() -> Sequence[type[Metric]]:
    from ptkit_dialogues.distinct import Distinct

    return [Distinct]
