"""ptkit: a data file, a frozen pretrained model, one recipe; a small adapter with proof that it
works.

The names in ``__all__`` are the whole public door, together with `ptkit.testing`. They load lazily
(PEP 562), so that importing ptkit costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ptkit.components import (
        DatasetFormat,
        Loss,
        Metric,
        RowMetric,
        TaskHead,
        Tracker,
        Transform,
    )
    from ptkit.engine.adapter import Adapter, load_adapter
    from ptkit.engine.attention import merged_attention
    from ptkit.engine.frozen import (
        Float8Linear,
        Int4Group64Linear,
        Int4Group128Linear,
        Int4Linear,
        Int8Linear,
        QuantizedLinear,
        quantize_linears,
    )
    from ptkit.engine.frozen_codes import quantize_rows
    from ptkit.engine.frozen_embedding import HostEmbedding
    from ptkit.engine.gated_mlp import gated_mlp
    from ptkit.engine.loss import token_loss
    from ptkit.engine.model import Model
    from ptkit.engine.session import RunResult, run
    from ptkit.engine.states import States
    from ptkit.engine.swiglu import swiglu
    from ptkit.engine.transfer import to_device
    from ptkit.engine.tuned import Tuned, load
    from ptkit.errors import (
        CheckpointError,
        DataError,
        PluginError,
        PtkitError,
        RecipeError,
        suggestion,
    )
    from ptkit.hookspecs import hookimpl
    from ptkit.interchange import AdapterFormat
    from ptkit.jsonrows import (
        BadValueError,
        JsonRowsFormat,
        row_text,
        row_value,
        shown_keys,
        shown_value,
    )
    from ptkit.models import Backbone, LoadedBackbone, Quantization, Tokenizer
    from ptkit.reading import read_json_rows, read_lines, text_problem
    from ptkit.recipe import Recipe
    from ptkit.records import (
        IGNORE,
        Answer,
        BadRow,
        ChoiceRecord,
        EncodedRow,
        ExtractionRecord,
        GenerationRecord,
        Geometry,
        HeadInfo,
        HeadLimits,
        Joined,
        LabelledRecord,
        Origin,
        Pair,
        PromptParts,
        Record,
        Row,
        RunInfo,
        Sampling,
        TaggedRecord,
    )
    from ptkit.settings import Component, Encoding, Settings, Source, SourcePath
    from ptkit.tagging import Entity, Span, bio_tags, entities, entity_spans
    from ptkit.words import word_rows

_HOMES = {
    "ptkit.components": "DatasetFormat Loss Metric RowMetric TaskHead Tracker Transform",
    "ptkit.engine.adapter": "Adapter load_adapter",
    "ptkit.engine.attention": "merged_attention",
    "ptkit.engine.frozen": (
        "Float8Linear Int4Group64Linear Int4Group128Linear Int4Linear Int8Linear QuantizedLinear "
        "quantize_linears"
    ),
    "ptkit.engine.frozen_codes": "quantize_rows",
    "ptkit.engine.frozen_embedding": "HostEmbedding",
    "ptkit.engine.gated_mlp": "gated_mlp",
    "ptkit.engine.loss": "token_loss",
    "ptkit.engine.model": "Model",
    "ptkit.engine.session": "RunResult run",
    "ptkit.engine.states": "States",
    "ptkit.engine.swiglu": "swiglu",
    "ptkit.engine.transfer": "to_device",
    "ptkit.engine.tuned": "Tuned load",
    "ptkit.errors": "CheckpointError DataError PluginError PtkitError RecipeError suggestion",
    "ptkit.hookspecs": "hookimpl",
    "ptkit.interchange": "AdapterFormat",
    "ptkit.jsonrows": "BadValueError JsonRowsFormat row_text row_value shown_keys shown_value",
    "ptkit.models": "Backbone LoadedBackbone Quantization Tokenizer",
    "ptkit.reading": "read_json_rows read_lines text_problem",
    "ptkit.recipe": "Recipe",
    "ptkit.records": (
        "Answer BadRow ChoiceRecord EncodedRow ExtractionRecord GenerationRecord Geometry HeadInfo "
        "HeadLimits IGNORE Joined LabelledRecord Origin Pair PromptParts Record Row RunInfo "
        "Sampling TaggedRecord"
    ),
    "ptkit.settings": "Component Encoding Settings Source SourcePath",
    "ptkit.tagging": "Entity Span bio_tags entities entity_spans",
    "ptkit.words": "word_rows",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "IGNORE",
    "Adapter",
    "AdapterFormat",
    "Answer",
    "Backbone",
    "BadRow",
    "BadValueError",
    "CheckpointError",
    "ChoiceRecord",
    "Component",
    "DataError",
    "DatasetFormat",
    "EncodedRow",
    "Encoding",
    "Entity",
    "ExtractionRecord",
    "Float8Linear",
    "GenerationRecord",
    "Geometry",
    "HeadInfo",
    "HeadLimits",
    "HostEmbedding",
    "Int4Group64Linear",
    "Int4Group128Linear",
    "Int4Linear",
    "Int8Linear",
    "Joined",
    "JsonRowsFormat",
    "LabelledRecord",
    "LoadedBackbone",
    "Loss",
    "Metric",
    "Model",
    "Origin",
    "Pair",
    "PluginError",
    "PromptParts",
    "PtkitError",
    "Quantization",
    "QuantizedLinear",
    "Recipe",
    "RecipeError",
    "Record",
    "Row",
    "RowMetric",
    "RunInfo",
    "RunResult",
    "Sampling",
    "Settings",
    "Source",
    "SourcePath",
    "Span",
    "States",
    "TaggedRecord",
    "TaskHead",
    "Tokenizer",
    "Tracker",
    "Transform",
    "Tuned",
    "bio_tags",
    "entities",
    "entity_spans",
    "gated_mlp",
    "hookimpl",
    "load",
    "load_adapter",
    "merged_attention",
    "quantize_linears",
    "quantize_rows",
    "read_json_rows",
    "read_lines",
    "row_text",
    "row_value",
    "run",
    "shown_keys",
    "shown_value",
    "suggestion",
    "swiglu",
    "text_problem",
    "to_device",
    "token_loss",
    "word_rows",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
        globals()[name] = found  # formats and heads look names up for every row
        return found
    raise AttributeError(f"module 'ptkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
