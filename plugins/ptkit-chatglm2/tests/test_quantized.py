"""Quantised checkpoints, and quantising while loading: the published int4 numbers on tiny weights.

``golden/base-int4`` is ``golden/base-safetensors`` as the published code quantises it; its golden
logits are the published model's on the dequantised weights in float32.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_chatglm2.weights import expected_shapes, is_linear
from ptkit_tasks.generation import Generation
from safetensors.torch import load_file, save_file
from torch import nn

import ptkit
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.train import Trainable, step_gradients
from ptkit.recipe import TrainSettings
from ptkit.records import EncodedRow, Row
from ptkit.rowstore import RowStore

GOLDEN = Path(__file__).parent / "golden"
BASE, INT4 = GOLDEN / "base-safetensors", GOLDEN / "base-int4"
QKV = "transformer.encoder.layers.0.self_attention.query_key_value.weight"


def backbone(folder: Path, **settings: Any) -> ChatGLM2:
    return ChatGLM2(ChatGLM2.Settings(source=str(folder), **settings))


def model_of(made: ChatGLM2, dtype: str = "float32") -> Model:
    return Model(made.load("cpu", dtype), made.geometry, pad_id=0, eos_id=2)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(INT4 / "pytorch_model.bin", weights_only=True)
    return weights


def linears(model: Model) -> dict[str, nn.Module]:
    kinds = (nn.Linear, ptkit.QuantizedLinear)
    return {n: m for n, m in model.body.layers.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_golden_logits(golden: dict[str, torch.Tensor], layout: str) -> None:
    model = model_of(backbone(INT4))
    model.layout = layout
    rows = [EncodedRow(Row(tuple(ids)), i) for i, ids in enumerate(golden["input_ids"].tolist())]
    with torch.no_grad():
        states = model.states(rows)
        got = torch.stack(model.lm_head(states.hidden).split(states.lengths))
    torch.testing.assert_close(got, golden["int4_logits"], atol=1e-4, rtol=0)


def dequantise(model: Model) -> None:
    """Put plain linears with the same weights in place of the quantised ones."""
    for name, layer in linears(model).items():
        assert isinstance(layer, ptkit.QuantizedLinear)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.requires_grad_(False).weight.copy_(layer.dequantized(torch.float32))
        if layer.bias is not None:
            plain.bias.copy_(layer.bias)
        owner, _, attribute = name.rpartition(".")
        setattr(model.body.layers.get_submodule(owner), attribute, plain)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_prefix_are_those_on_the_dequantised_base(
    golden: dict[str, torch.Tensor], layout: str, checkpointing: bool
) -> None:
    found = []
    for plain in (False, True):
        model = model_of(backbone(INT4))
        model.layout = layout
        if plain:
            dequantise(model)
        if checkpointing and not plain:
            model.enable_checkpointing()
        prefix = PrefixEncoder(model.geometry, 6)
        prefix.initialize(std=1.0, seed=3)
        store = RowStore()
        pairs = zip(golden["input_ids"].tolist(), golden["labels"].tolist(), strict=True)
        for length, (ids, labels) in zip((18, 11, 15), pairs, strict=True):
            store.append([Row(tuple(ids[:length]), tuple(labels[:length]))])
        settings = TrainSettings(max_steps=1)
        head = Generation(Generation.Settings())
        step_gradients(model, Trainable(prefix), head, store, [[0], [1], [2]], settings, step=0)
        assert all(p.grad is None for p in model.body.parameters())
        found.append([parameter.grad for parameter in prefix.parameters()])
    for quantised, dequantised in zip(*found, strict=True):
        assert quantised.abs().max() > 1e-3
        torch.testing.assert_close(quantised, dequantised, atol=1e-5, rtol=0)


def test_quantising_while_loading_gives_the_published_weights() -> None:
    """Equal whole numbers and scales, split into queries, keys and values alike."""
    loaded = model_of(backbone(BASE, quantization="int4"))
    for name, layer in linears(model_of(backbone(INT4))).items():
        own = linears(loaded)[name]
        assert isinstance(own, ptkit.Int4Linear)
        assert torch.equal(own.weight, layer.weight), name
        assert torch.equal(own.weight_scale, layer.weight_scale), name


def test_packed_rows_stay_as_published(published: dict[str, torch.Tensor]) -> None:
    linear = model_of(backbone(INT4)).body.layers[0].self_attn.qkv_proj
    assert linear.out_features == 64 + 32 + 32
    assert torch.equal(linear.weight, published[QKV])
    assert torch.equal(linear.weight_scale, published[f"{QKV}_scale"].float())


@pytest.mark.parametrize(
    ("quantization", "kind"),
    [
        ("fp8", "Float8Linear"),
        ("int8", "Int8Linear"),
        ("int4", "Int4Linear"),
        ("int4-g64", "Int4Group64Linear"),
        ("int4-g128", "Int4Group128Linear"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_only_the_linears_of_the_layers_are_quantised(
    quantization: str, kind: str, dtype: str
) -> None:
    model = model_of(backbone(BASE, quantization=quantization), dtype)
    found = linears(model)
    assert len(found) == 4 * 4  # one for queries, keys and values, output, both of the MLP
    assert {type(layer) for layer in found.values()} == {getattr(ptkit, kind)}
    inside = {parameter for layer in found.values() for parameter in layer.parameters()}
    others = [p for m in model.frozen_modules() for p in m.parameters() if p not in inside]
    biases = [layer.bias for layer in found.values() if layer.bias is not None]
    assert {p.dtype for p in (*others, *biases)} == {getattr(torch, dtype)}
    assert not any(p.requires_grad for m in model.frozen_modules() for p in m.parameters())
    assert model.dtype == getattr(torch, dtype)
    assert model.generate([[5, 6, 7]], ptkit.Sampling(max_new_tokens=3))[0]


def test_int8_is_close_to_the_base(golden: dict[str, torch.Tensor]) -> None:
    tokens = golden["input_ids"][0].tolist()
    exact, int8, int4 = (
        model_of(backbone(BASE, quantization=name)).logits(tokens)
        for name in ("none", "int8", "int4")
    )
    assert (int8 - exact).abs().mean() < (int4 - exact).abs().mean() / 8


@pytest.mark.parametrize("quantization", ["fp8", "int4-g64"])
def test_other_kinds_are_made_of_the_native_weights(quantization: str) -> None:
    """Of each linear's own, also where the file has queries, keys and values in one."""
    exact = linears(model_of(backbone(BASE)))
    for name, layer in linears(model_of(backbone(BASE, quantization=quantization))).items():
        assert isinstance(layer, ptkit.QuantizedLinear)
        expected = type(layer).from_weight(exact[name].weight)
        for own, tensor in expected.named_parameters():
            assert torch.equal(getattr(layer, own).float(), tensor.float()), (name, own)


def int8_checkpoint(folder: Path) -> Path:
    """The base quantised to int8 in the published layout."""
    folder.mkdir()
    config = json.loads((INT4 / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_bit": 8}))
    tensors: dict[str, torch.Tensor] = {}
    for shard in BASE.glob("*.safetensors"):
        for name, tensor in load_file(shard).items():
            tensors[name] = tensor
            if is_linear(name):
                tensors[name], tensors[f"{name}_scale"] = ptkit.quantize_rows(tensor, 8)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_an_int8_checkpoint(tmp_path: Path, golden: dict[str, torch.Tensor]) -> None:
    made = backbone(int8_checkpoint(tmp_path / "int8"))
    assert made.quantization == "int8"
    tokens = golden["input_ids"][0].tolist()
    expected = model_of(backbone(BASE, quantization="int8")).logits(tokens)
    assert torch.equal(model_of(made).logits(tokens), expected)


def test_geometry_stays_the_logical_count() -> None:
    assert backbone(INT4).geometry == backbone(BASE).geometry
    assert backbone(BASE, quantization="int8").geometry == backbone(BASE).geometry


def test_a_base_and_its_published_int4_version_have_one_fingerprint(tmp_path: Path) -> None:
    assert backbone(INT4).fingerprint == backbone(BASE).fingerprint
    assert backbone(BASE, quantization="int8").fingerprint == backbone(BASE).fingerprint
    assert backbone(int8_checkpoint(tmp_path / "int8")).fingerprint != backbone(BASE).fingerprint


@pytest.mark.parametrize("quantization", ["none", "int4"])
def test_a_quantised_checkpoint_takes_its_own_value(quantization: str) -> None:
    made = backbone(INT4, quantization=quantization)
    assert made.quantization == "int4"
    assert "the linears of every layer are int4, quantised as published" in made.notes


@pytest.mark.parametrize("other", ["int8", "int4-g64", "fp8"])
def test_a_quantised_checkpoint_refuses_another_value(other: str) -> None:
    with pytest.raises(ptkit.CheckpointError) as refused:
        _ = backbone(INT4, quantization=other).geometry
    assert refused.value.lines == (
        f"{INT4}: is quantised to int4 (quantization_bit in config.json), so "
        f'backbone.quantization can\'t be "{other}"; remove it',
    )


def test_quantising_while_loading_is_said() -> None:
    notes = backbone(BASE, quantization="int8").notes
    assert "the linears of every layer are int8, quantised while loading" in notes
    assert not any("quantised" in note for note in backbone(BASE).notes)


def test_a_scale_of_another_shape_and_a_weight_that_is_not_packed(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(INT4, tmp_path / "base", copy_function=shutil.copyfile))
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights[QKV] = weights[QKV].float()
    weights[f"{QKV}_scale"] = torch.ones(3)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ptkit.CheckpointError) as refused:
        backbone(folder).load("cpu", "float32")
    assert refused.value.lines == (
        f"{folder}: {QKV} must be an int8 tensor of [128, 32], got float32 [128, 32]",
        f"{folder}: {QKV}_scale must be a float tensor of [128], got float32 [3]",
    )


def test_the_published_int4_size() -> None:
    """3.92 GB, as the published files have."""
    from ptkit_chatglm2.config import ChatGLM2Config

    config = ChatGLM2Config(28, 4096, 32, 128, 2, 13696, 65024, 32768, 1e-5, 0, 2, 4)
    shapes = expected_shapes(config)
    size = sum(
        torch.Size(shape).numel() * (1 if is_linear(name) else 2) for name, shape in shapes.items()
    )
    assert size / 1e9 == pytest.approx(3.92, abs=0.01)
