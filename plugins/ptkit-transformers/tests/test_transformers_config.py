"""config.json: geometry without torch, and what is refused, a line with the reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ptkit_transformers.backbone import CausalLM, Encoder, TransformersBackbone
from ptkit_transformers.config import read_config
from ptkit_transformers.families import FAMILIES, REFUSED
from safetensors.numpy import save_file

import ptkit

MakeFolder = Callable[..., Path]
MakeBackbone = Callable[..., TransformersBackbone]


def refusal(folder: Path, *, causal: bool = False) -> str:
    with pytest.raises(ptkit.CheckpointError) as refused:
        read_config(folder, causal=causal)
    (line,) = refused.value.lines
    return line


def test_bert_numbers(make_folder: MakeFolder) -> None:
    config = read_config(make_folder(), causal=False)
    assert config.segments
    assert config.geometry(7) == ptkit.Geometry(
        layers=2,
        heads=2,
        kv_groups=2,
        head_size=8,
        hidden_size=16,
        vocab_size=16,
        max_positions=20,
        parameters=7,
        causal=False,
        ffn_size=24,
    )


@pytest.mark.parametrize(("padding", "first"), [(1, 2), (0, 1), (None, 2)])
def test_robertas_positions_begin_behind_padding(
    make_folder: MakeFolder, padding: int | None, first: int
) -> None:
    """Its published table has 514 places for 512 tokens, with padding at 1."""
    folder = make_folder(model_type="roberta", pad_token_id=padding, type_vocab_size=1)
    config = read_config(folder, causal=False)
    assert (config.first_position, config.max_positions) == (first, 20 - first)
    assert not config.segments


def test_distilberts_names(make_folder: MakeFolder) -> None:
    other = {"num_hidden_layers": None, "num_attention_heads": None, "hidden_size": None}
    folder = make_folder(model_type="distilbert", n_layers=3, n_heads=2, dim=10, **other)
    shape = read_config(folder, causal=False).geometry(0)
    assert (shape.layers, shape.heads, shape.head_size, shape.hidden_size) == (3, 2, 5, 10)
    assert not read_config(folder, causal=False).segments


def test_grouped_heads_of_another_size(make_folder: MakeFolder) -> None:
    folder = make_folder(model_type="qwen3", num_key_value_heads=1, head_dim=32)
    shape = read_config(folder, causal=True).geometry(0)
    assert (shape.kv_groups, shape.head_size, shape.causal) == (1, 32, True)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_refused_families(make_folder: MakeFolder, family: str) -> None:
    folder = make_folder(model_type=family)
    line = refusal(folder)
    assert line.startswith(
        f"{folder / 'config.json'}: model_type {family!r} is not supported: {REFUSED[family]}; "
    )
    assert line.endswith("supported: " + ", ".join(n for n, f in FAMILIES.items() if not f.causal))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": 3}, "model_type must be a string, got 3"),
        (
            {"model_type": "new", "is_encoder_decoder": True},
            "model_type 'new' is an encoder-decoder; ptkit tunes encoders and decoders",
        ),
        (
            {"model_type": "new", "auto_map": {"AutoModel": "code.New"}},
            "model_type 'new' comes with code of its own (auto_map), and ptkit runs no code of a "
            "model; if transformers itself has that type, remove auto_map",
        ),
        ({"model_type": "llama"}, "model_type 'llama' needs backbone.kind = \"causal-lm\""),
        (
            {"position_embedding_type": "relative_key"},
            'position_embedding_type = "relative_key" is not supported; positions must be absolute',
        ),
        ({"is_decoder": True}, "is_decoder = true is not supported; use a model of the other kind"),
        (
            {"model_type": "albert", "inner_group_num": 2},
            "inner_group_num = 2 is not supported; a group must have one layer",
        ),
        (
            {"quantization_config": {"bits": 4}},
            'quantization_config = {"bits": 4} is not supported; use the unquantised model',
        ),
        (
            {"num_hidden_layers": None},
            "num_hidden_layers is missing; is it the model's own config.json?",
        ),
        ({"vocab_size": 0}, "vocab_size must be a positive whole number, got 0"),
        ({"hidden_size": "16"}, 'hidden_size must be a positive whole number, got "16"'),
    ],
)
def test_refused_values(make_folder: MakeFolder, changes: dict[str, Any], told: str) -> None:
    folder = make_folder(**changes)
    assert refusal(folder) == f"{folder / 'config.json'}: {told}"


def test_an_encoder_as_causal_lm_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder()
    assert refusal(folder, causal=True) == (
        f"{folder / 'config.json'}: model_type 'bert' needs backbone.kind = \"encoder\""
    )


def test_bidirectional_gemma_is_refused(make_folder: MakeFolder) -> None:
    folder = make_folder(model_type="gemma3_text", use_bidirectional_attention=True)
    assert refusal(folder, causal=True) == (
        f"{folder / 'config.json'}: use_bidirectional_attention = true is not supported; ptkit "
        "takes this family as a causal model"
    )


def test_folders_that_are_none(make_backbone: MakeBackbone, tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path}: no config.json; backbone.source must be the folder of a transformers model, "
        "or hub:owner/name"
    )
    path = tmp_path / "config.json"
    path.write_text("[1]", encoding="utf-8")
    assert refusal(tmp_path) == f"{path}: must hold an object, got list"
    path.write_text("{", encoding="utf-8")
    assert refusal(tmp_path).startswith(f"{path}: can't be read: Expecting property name")
    with pytest.raises(ptkit.CheckpointError, match=r"config.json: must be a model folder with"):
        _ = make_backbone(path).config


def test_an_unknown_type_is_left_to_the_probe(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(model_type="nomic_bert")
    assert backbone.notes == [
        "model_type 'nomic_bert' is not among the tested families; a probe decides whether a "
        "prefix reaches its layers"
    ]
    assert make_backbone().notes == []


def test_the_light_half_imports_neither_torch_nor_transformers(make_folder: MakeFolder) -> None:
    folder = make_folder()
    save_file({"embeddings.x": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
    code = (
        "import sys, ptkit, pathlib; from ptkit_transformers.backbone import Encoder; "
        f"path = pathlib.Path({str(folder)!r}); "
        "b = Encoder(Encoder.Settings(source=ptkit.SourcePath('m', path))); "
        "b.geometry, b.fingerprint, b.tokenizer.encode('hello'); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_kinds() -> None:
    assert (Encoder.name, CausalLM.name) == ("encoder", "causal-lm")
