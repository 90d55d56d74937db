"""ptkit plugin: the dataset formats ``conll``, ``tagged-jsonl`` and ``span-jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptkit import hookimpl

if TYPE_CHECKING:
    from ptkit import DatasetFormat


@hookimpl
def ptkit_register_dataset_formats() -> Sequence[type[DatasetFormat]]:
    from ptkit_seqlabel.conll import ConllFormat
    from ptkit_seqlabel.spans import SpanJsonFormat
    from ptkit_seqlabel.tagged import TaggedJsonFormat

    return [ConllFormat, TaggedJsonFormat, SpanJsonFormat]
