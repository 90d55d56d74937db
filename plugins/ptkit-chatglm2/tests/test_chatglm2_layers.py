"""The modules that take the place of transformers' own: they are used, and compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_chatglm2.config import read_config
from ptkit_chatglm2.layers import MLP, use_fused
from transformers import GlmForCausalLM

import ptkit

RANDOM = Path(__file__).parents[1] / "ptkit_chatglm2" / "random" / "chatglm2-tiny"


def tiny(**settings: Any) -> ChatGLM2:
    source = ptkit.SourcePath("random:chatglm2-tiny", RANDOM)
    return ChatGLM2(ChatGLM2.Settings(source=source, **settings))


def test_mlps_compute_the_same_from_weights_of_the_same_names() -> None:
    model = GlmForCausalLM(read_config(RANDOM).transformers()).eval()
    x = torch.randn(2, 5, model.config.hidden_size)
    before = [layer.mlp for layer in model.model.layers]
    use_fused(model)
    for layer, plain in zip(model.model.layers, before, strict=True):
        assert isinstance(layer.mlp, MLP)
        assert list(layer.mlp.state_dict()) == list(plain.state_dict())
        assert torch.equal(layer.mlp(x), plain(x))


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_a_loaded_model_has_them(quantization: ptkit.Quantization) -> None:
    for layer in tiny(quantization=quantization).load("cpu", "float32").body.layers:
        assert isinstance(layer.mlp, MLP)
        assert not layer.mlp.training
        quantized = isinstance(layer.mlp.gate_up_proj, ptkit.QuantizedLinear)
        assert quantized == (quantization == "int4")


def test_an_outline_stays_transformers_own() -> None:
    for layer in tiny().outline().body.layers:
        assert type(layer.mlp).__module__.startswith("transformers.")
