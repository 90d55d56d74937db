"""Quantised layers of transformers' models: which linears, and what they compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_transformers.backbone import CausalLM, Encoder, TransformersBackbone
from torch import nn

import ptkit
from ptkit.testing import check_backbone, tiny_model

MakeFolder = Callable[..., Path]
SaveWeights = Callable[..., Any]
KINDS = ("fp8", "int8", "int4", "int4-g64", "int4-g128")


def backbone(cls: type[TransformersBackbone], folder: Path, kind: str) -> TransformersBackbone:
    source = ptkit.SourcePath(str(folder), folder)
    return cls(cls.Settings(source=source, dtype="float32", quantization=kind))


@pytest.fixture
def llama(make_folder: MakeFolder, save_weights: SaveWeights) -> Path:
    folder = make_folder(
        model_type="llama", num_key_value_heads=1, bos_token_id=2, eos_token_id=3, vocab_size=16
    )
    save_weights(folder, "AutoModelForCausalLM")
    return folder


def linears(loaded: ptkit.LoadedBackbone) -> dict[str, nn.Module]:
    kinds = (nn.Linear, ptkit.QuantizedLinear)
    return {name: m for name, m in loaded.body.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_linears_of_the_layers_and_no_others(llama: Path, kind: str) -> None:
    plain = linears(backbone(CausalLM, llama, "none").load("cpu", "float32"))
    loaded = backbone(CausalLM, llama, kind).load("cpu", "float32")
    assert type(loaded.lm_head) is nn.Linear
    found = linears(loaded)
    assert len(found) == len(plain) == 2 * 7
    for name, layer in found.items():
        assert isinstance(layer, ptkit.QuantizedLinear)
        assert layer.kind == kind
        expected = type(layer).from_weight(plain[name].weight.detach())
        assert torch.equal(layer.weight.float(), expected.weight.float()), name
    assert {p.dtype for p in loaded.body.embed_tokens.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["fp8", "int4"])
def test_the_contract_of_a_backbone(llama: Path, kind: str) -> None:
    check_backbone(backbone(CausalLM, llama, kind), texts=["hello world"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_type": "albert", "embedding_size": 8, "num_hidden_groups": 1},
        {"model_type": "electra", "embedding_size": 8},
    ],
    ids=lambda changes: changes.get("model_type", "bert"),
)
def test_encoders(
    make_folder: MakeFolder, save_weights: SaveWeights, changes: dict[str, Any]
) -> None:
    """What lies before the layers stays as it is; ALBERT's one layer is rounded once."""
    folder = make_folder(**changes)
    save_weights(folder)
    row = ptkit.EncodedRow(ptkit.Row((2, 7, 8, 3)), 0)
    states = {}
    for kind in ("none", "int8"):
        model = tiny_model(backbone(Encoder, folder, kind))
        states[kind] = model.states([row]).hidden.flatten()
        left = {n for n, m in model.body.named_modules() if isinstance(m, nn.Linear)}
        inside = {name for name in left if "layer" in name}
        assert bool(inside) == (kind == "none")
        assert len(left - inside) == (1 if "embedding_size" in changes else 0)
    close = torch.cosine_similarity(states["none"], states["int8"], dim=0)
    assert close > 0.999
    assert not torch.equal(states["none"], states["int8"])


def test_it_is_said(llama: Path) -> None:
    made = backbone(CausalLM, llama, "int4-g64")
    assert made.quantization == "int4-g64"
    assert "the linears of every layer are int4-g64" in made.notes
    assert not any("linears" in note for note in backbone(CausalLM, llama, "none").notes)


def test_an_odd_width_is_refused(make_folder: MakeFolder, save_weights: SaveWeights) -> None:
    folder = make_folder(intermediate_size=5)
    save_weights(folder)
    with pytest.raises(ptkit.CheckpointError) as refused:
        backbone(Encoder, folder, "int4").load("cpu", "float32")
    assert refused.value.lines == (
        f"{folder}: the linear 0.output.dense has 5 columns, and backbone.quantization = "
        '"int4" packs two a byte; use "int8" or "fp8"',
    )
