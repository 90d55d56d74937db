"""The sections of a recipe that no plugin gives: ``[prefix]`` and ``[train]``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ptkit.problems import ONE_OF_MISSING
from ptkit.settings import Settings, Source

PUBLISHED_PREFIX_LENGTH = 128
_SET_BY_START = (
    "length",
    "init",
    "init_std",
    "init_text",
    "projection",
    "projection_hidden_size",
)
"""Keys of ``[prefix]`` that have no say where the prefix of an adapter is trained further."""


class PrefixSettings(Settings):
    """The trainable prefix, P-Tuning v2: keys and values in front of every layer's own."""

    start: Source | None = None
    """An adapter to train further; length and projection are its own."""
    length: int | None = Field(None, ge=1, le=2**16)
    """Virtual tokens a layer, P; 128 as published, or the length of the text for init = "text"."""
    init: Literal["normal", "zero", "text"] = "normal"
    """What the prefix starts from: random numbers, zeros, or the keys and values of a prompt."""
    init_std: float = Field(1.0, gt=0)
    """Standard deviation of the random numbers."""
    init_text: str | None = Field(None, min_length=1)
    """The prompt for init = "text"; the frozen model computes its keys and values."""
    projection: bool = False
    """Whether a two-layer MLP makes the keys and values from an embedding, as in prefix tuning."""
    projection_hidden_size: int | None = Field(None, ge=1, le=2**20)
    """Width of that MLP; the backbone's hidden size if not given."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the prefix that is dropped in training."""

    @model_validator(mode="before")
    @classmethod
    def _fill_length(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "start" in data:
            line = "is given together with start, which is an adapter that has its own; remove it"
            wrong = PydanticCustomError("given_with_start", line)
            lines = [
                InitErrorDetails(type=wrong, loc=(key,), input=data[key])
                for key in _SET_BY_START
                if key in data
            ]
            if lines:
                raise ValidationError.from_exception_data(cls.__name__, lines)
        elif "length" not in data and data.get("init") != "text":
            return {**data, "length": PUBLISHED_PREFIX_LENGTH}
        return data

    @model_serializer(mode="wrap")
    def _without_what_start_sets(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.start is None:
            return values
        return {key: value for key, value in values.items() if key not in _SET_BY_START}

    @field_validator("init_text")
    @classmethod
    def _check_text(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "init" in info.data and (info.data["init"] == "text") != (value is not None):
            if value is None:
                raise PydanticCustomError(
                    ONE_OF_MISSING,
                    'is missing; init = "text" takes the keys and values of this prompt',
                    {"keys": ["init_text"]},
                )
            raise ValueError('is given, but init is not "text"; set init = "text" or remove it')
        return value

    @field_validator("projection")
    @classmethod
    def _check_projection(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001
        if value and info.data.get("init") == "text":
            raise ValueError(
                'can\'t be used with init = "text", which sets the values themselves; choose one'
            )
        return value


MEMORY_USES = ("auto", "speed", "small")
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([MG])(i?)B")


def bytes_of(size: str) -> int | None:
    """A size such as "6.5GB" (10⁹) or "6 GiB" (2³⁰) in bytes; None if it is none, or nothing.

    >>> bytes_of("6.5GB"), bytes_of("512MiB"), bytes_of("much")
    (6500000000, 536870912, None)
    """
    found = _SIZE.fullmatch(size)
    if found is None:
        return None
    number, letter, binary = found.groups()
    power = {"M": 2, "G": 3}[letter]
    return int(float(number) * (1024 if binary else 1000) ** power) or None


class TrainSettings(Settings):
    """Training: how long, how fast, and how often something is measured and saved."""

    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps; give this or epochs."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training records; give this or max_steps."""
    batch_size: int = Field(16, ge=1, le=2**20)
    """Records an optimiser step; memory use is set by tokens_per_micro_batch."""
    learning_rate: float = Field(2e-2, gt=0)
    """The highest learning rate of the schedule."""
    head_learning_rate: float = Field(1e-3, gt=0)
    """That of the head's own weights, where it has any."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Optimiser steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.999,
    )
    """AdamW's averages of gradients and of their squares."""
    clip_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0: never."""
    backbone_dropout: float = Field(0.0, ge=0, lt=1)
    """Share that the frozen model's own dropout layers drop in training, in place of the share in
    its configuration; attention weights are never dropped."""
    loss_average: Literal["token", "row"] = "token"
    """What counts the same in a step: every token, or every row as in the published code."""
    shard_base: bool = False
    """Whether several processes keep a share of the frozen weights each, not all of them."""
    tokens_per_micro_batch: int = Field(4096, ge=1)
    """Tokens that go through the model at once; changes memory and speed, not the result."""
    gradient_checkpointing: bool | None = None
    """Older form of memory: true is "small", false is "speed"."""
    memory: str = "auto"
    """How many layers' activations are computed again instead of kept, which is slower: none for
    "speed", all for "small", what it takes to fit into a size such as "6.5GB", or, for "auto", into
    the memory that is there."""
    compile: bool | None = None
    """On a GPU, whether to compile the model's layers and to replay steps as CUDA graphs, which is
    faster after half a minute or more; not given: in runs of 200 steps or more."""
    eval_every: int | None = Field(None, ge=1)
    """Optimiser steps between validation losses; a tenth of the run if not given."""
    patience: int | None = Field(None, ge=1)
    """Validation losses in a row without a new best after which training ends; not given: never."""
    save_every: int | None = Field(None, ge=1)
    """Optimiser steps between checkpoints; eval_every if not given."""
    keep: int = Field(2, ge=1)
    """Checkpoints that are kept besides the best one."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Everything random in a run follows from it."""

    @field_validator("epochs")
    @classmethod
    def _check_duration(cls, value: float | None, info: ValidationInfo) -> float | None:
        if "max_steps" not in info.data:
            return value
        if value is None and info.data["max_steps"] is None:
            raise PydanticCustomError(
                ONE_OF_MISSING,
                "max_steps or epochs is missing; give one",
                {"keys": ["max_steps", "epochs"]},
            )
        if value is not None and info.data["max_steps"] is not None:
            raise ValueError("is given together with max_steps; remove one of them")
        return value

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, value: str, info: ValidationInfo) -> str:
        if value not in MEMORY_USES and bytes_of(value) is None:
            raise ValueError(
                'must be "auto", "speed", "small" or a size such as "6.5GB" or "6GiB", '
                f"got {value!r}"
            )
        older = info.data.get("gradient_checkpointing")
        if older is None:
            return value
        meant = "small" if older else "speed"
        if value not in ("auto", meant):
            raise ValueError("is given together with gradient_checkpointing; remove the latter")
        return meant

    @field_validator("warmup_steps")
    @classmethod
    def _check_warmup(cls, value: int, info: ValidationInfo) -> int:
        max_steps = info.data.get("max_steps")
        if max_steps is not None and value >= max_steps:
            raise ValueError(f"must be less than max_steps ({max_steps}), got {value}")
        return value
