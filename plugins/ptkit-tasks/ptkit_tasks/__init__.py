"""Tasks for ptkit: heads for texts, and the transforms of control runs."""

from __future__ import annotations

import ptkit


@ptkit.hookimpl
def ptkit_register_task_heads() -> list[type[ptkit.TaskHead]]:
    from ptkit_tasks.choices import MultipleChoice
    from ptkit_tasks.classification import MultiLabelClassification, SequenceClassification
    from ptkit_tasks.extraction import SpanExtraction
    from ptkit_tasks.generation import Generation
    from ptkit_tasks.regression import SequenceRegression
    from ptkit_tasks.token_classification import Tagging, TokenClassification

    return [
        Generation,
        MultiLabelClassification,
        MultipleChoice,
        SequenceClassification,
        SequenceRegression,
        SpanExtraction,
        Tagging,
        TokenClassification,
    ]


@ptkit.hookimpl
def ptkit_register_transforms() -> list[type[ptkit.Transform]]:
    from ptkit_tasks.controls import ShuffleLabels, ShuffleResponses

    return [ShuffleLabels, ShuffleResponses]
