"""ptkit plugin: the customary scores of Chinese text, as published for ChatGLM2's P-Tuning v2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptkit import hookimpl

if TYPE_CHECKING:
    from ptkit import Metric


@hookimpl
def ptkit_register_metrics() -> Sequence[type[Metric]]:
    from ptkit_metrics_zh.bleu import BleuChar
    from ptkit_metrics_zh.rouge import RougeZh

    return [RougeZh, BleuChar]
