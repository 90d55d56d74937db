"""ptkit plugin: files of prompts and responses, such as ADGEN, and a control for their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptkit import hookimpl

if TYPE_CHECKING:
    from ptkit import DatasetFormat, Metric


@hookimpl
def ptkit_register_dataset_formats() -> Sequence[type[DatasetFormat]]:
    from ptkit_adgen.format import AdgenFormat

    return [AdgenFormat]


@hookimpl
def ptkit_register_metrics() -> Sequence[type[Metric]]:
    from ptkit_adgen.attributes import AttributeShare

    return [AttributeShare]
