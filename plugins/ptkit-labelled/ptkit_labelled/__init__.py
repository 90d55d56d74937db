"""ptkit plugin: the dataset formats ``labelled-text`` and ``choices-jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptkit import hookimpl

if TYPE_CHECKING:
    from ptkit import DatasetFormat


@hookimpl
def ptkit_register_dataset_formats() -> Sequence[type[DatasetFormat]]:
    from ptkit_labelled.choices import ChoicesFormat
    from ptkit_labelled.text import LabelledTextFormat

    return [LabelledTextFormat, ChoicesFormat]
