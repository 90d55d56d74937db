"""``config.json`` of a transformers model, read without transformers and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ptkit
from ptkit_transformers.families import (
    FAMILIES,
    REFUSED,
    UNKNOWN_DECODER,
    UNKNOWN_ENCODER,
    Family,
)

REQUIRED = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "vocab_size",
    "max_position_embeddings",
)
OPTIONAL = ("num_key_value_heads", "head_dim", "intermediate_size", "type_vocab_size")


@dataclass(frozen=True)
class ModelConfig:
    """A model folder's configuration: its family, and its numbers under their customary names.

    ``gguf``: the file that the model is, if it is one.
    """

    folder: Path
    model_type: str
    family: Family
    numbers: Mapping[str, int]
    raw: Mapping[str, Any]
    gguf: Path | None = None

    @property
    def known(self) -> bool:
        return self.model_type in FAMILIES

    @property
    def kv_groups(self) -> int:
        return self.numbers.get("num_key_value_heads", self.numbers["num_attention_heads"])

    @property
    def head_size(self) -> int:
        heads, width = self.numbers["num_attention_heads"], self.numbers["hidden_size"]
        return self.numbers.get("head_dim", width // heads)

    @property
    def first_position(self) -> int:
        """RoBERTa's tables of positions begin behind the id of padding."""
        if not self.family.after_padding:
            return 0
        padding = self.raw.get("pad_token_id")
        return (self.family.defaults["pad_token_id"] if padding is None else int(padding)) + 1

    @property
    def max_positions(self) -> int:
        return self.numbers["max_position_embeddings"] - self.first_position

    @property
    def segments(self) -> bool:
        """Whether tokens of a second text have a type of their own."""
        return self.family.segments and self.numbers.get("type_vocab_size", 0) > 1

    def geometry(self, parameters: int) -> ptkit.Geometry:
        return ptkit.Geometry(
            layers=self.numbers["num_hidden_layers"],
            heads=self.numbers["num_attention_heads"],
            kv_groups=self.kv_groups,
            head_size=self.head_size,
            hidden_size=self.numbers["hidden_size"],
            vocab_size=self.numbers["vocab_size"],
            max_positions=self.max_positions,
            parameters=parameters,
            causal=self.family.causal,
            ffn_size=self.numbers.get("intermediate_size"),
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ptkit.CheckpointError`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ptkit.CheckpointError(f"{path}: can't be read: {error}") from None
    if not isinstance(data, dict):
        raise ptkit.CheckpointError(f"{path}: must hold an object, got {type(data).__name__}")
    return data


def read_config(source: Path, *, causal: bool) -> ModelConfig:
    """The configuration of a model folder, or a GGUF file, for ``causal-lm`` or ``encoder``.

    Raises `ptkit.CheckpointError` for a model that can't be used, with the reason.
    """
    from ptkit_transformers.gguf import find_gguf, read_gguf_config

    gguf = find_gguf(source)
    if gguf is not None:
        path, folder, raw = gguf, gguf.parent, read_gguf_config(gguf)
    else:
        path, folder = source / "config.json", source
        if source.is_file():
            raise ptkit.CheckpointError(
                f"{source}: must be a model folder with config.json, tokenizer.json and weights, "
                "or a .gguf file"
            )
        if not path.is_file():
            raise ptkit.CheckpointError(
                f"{source}: no config.json; backbone.source must be the folder of a transformers "
                "model, or hub:owner/name"
            )
        raw = read_json(path)
    family = _family(path, raw, causal=causal)
    numbers = _numbers(path, raw, family)
    return ModelConfig(folder, str(raw["model_type"]), family, numbers, raw, gguf)


def _family(path: Path, raw: Mapping[str, Any], *, causal: bool) -> Family:
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise ptkit.CheckpointError(f"{path}: model_type must be a string, got {json.dumps(kind)}")
    if kind in REFUSED:
        raise ptkit.CheckpointError(
            f"{path}: model_type {kind!r} is not supported: {REFUSED[kind]}; supported: "
            f"{', '.join(n for n, f in FAMILIES.items() if f.causal == causal)}"
        )
    if raw.get("is_encoder_decoder") is True:
        raise ptkit.CheckpointError(
            f"{path}: model_type {kind!r} is an encoder-decoder; ptkit tunes encoders and decoders"
        )
    family = FAMILIES.get(kind)
    if family is None and raw.get("auto_map"):
        raise ptkit.CheckpointError(
            f"{path}: model_type {kind!r} comes with code of its own (auto_map), and ptkit runs no "
            "code of a model; if transformers itself has that type, remove auto_map"
        )
    if family is not None and family.causal != causal:
        other = "causal-lm" if family.causal else "encoder"
        raise ptkit.CheckpointError(f'{path}: model_type {kind!r} needs backbone.kind = "{other}"')
    problems = [
        f"{path}: {key} = {json.dumps(raw[key])} is not supported; {why}"
        for key, wanted, why in (
            ("position_embedding_type", "absolute", "positions must be absolute"),
            ("is_decoder", causal, "use a model of the other kind"),
            ("use_bidirectional_attention", False, "ptkit takes this family as a causal model"),
            ("inner_group_num", 1, "a group must have one layer"),
            ("quantization_config", None, "use the unquantised model"),
        )
        if raw.get(key) not in (None, False, wanted)
    ]
    if problems:
        raise ptkit.CheckpointError(*problems)
    return family or (UNKNOWN_DECODER if causal else UNKNOWN_ENCODER)


def _numbers(path: Path, raw: Mapping[str, Any], family: Family) -> dict[str, int]:
    numbers, problems = {}, []
    for key in (*REQUIRED, *OPTIONAL):
        name = family.names.get(key, key)
        value = raw.get(name)
        value = family.defaults.get(key) if value is None else value
        if value is None:
            if key in REQUIRED:
                problems.append(f"{path}: {name} is missing; is it the model's own config.json?")
        elif type(value) is not int or value < 0 or (value == 0 and key in REQUIRED):
            problems.append(
                f"{path}: {name} must be a positive whole number, got {json.dumps(value)}"
            )
        else:
            numbers[key] = value
    if problems:
        raise ptkit.CheckpointError(*problems)
    return numbers
