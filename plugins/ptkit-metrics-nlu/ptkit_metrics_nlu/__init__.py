"""ptkit plugin: scores of labels, numbers, tags, entities and answers, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptkit import hookimpl

if TYPE_CHECKING:
    from ptkit import Metric


@hookimpl
def ptkit_register_metrics() -> Sequence[type[Metric]]:
    from ptkit_metrics_nlu.accuracy import Accuracy, ChoiceAccuracy, TagAccuracy
    from ptkit_metrics_nlu.answers import Cmrc, Squad
    from ptkit_metrics_nlu.entities import EntityF1
    from ptkit_metrics_nlu.labels import F1, Matthews, MultiLabelF1
    from ptkit_metrics_nlu.regression import MeanError, PearsonSpearman

    return [
        Accuracy,
        F1,
        Matthews,
        MultiLabelF1,
        PearsonSpearman,
        MeanError,
        ChoiceAccuracy,
        EntityF1,
        TagAccuracy,
        Squad,
        Cmrc,
    ]
