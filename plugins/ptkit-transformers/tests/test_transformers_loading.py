"""Loading: every tensor accounted for, the states transformers computes, fingerprints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_transformers.backbone import CausalLM, Encoder, TransformersBackbone
from safetensors.torch import load_file, save_file

import ptkit
from ptkit.testing import tiny_model

MakeFolder = Callable[..., Path]
MakeBackbone = Callable[..., TransformersBackbone]
SaveWeights = Callable[..., Any]
WEIGHTS = "model.safetensors"


def refusal(make: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(ptkit.CheckpointError) as refused:
        make()
    return refused.value.lines


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.fixture
def bert(make_folder: MakeFolder, save_weights: SaveWeights) -> Path:
    folder = make_folder()
    save_weights(folder)
    return folder


def test_states_are_transformers(bert: Path, make_backbone: MakeBackbone) -> None:
    """The head for masked words that the file has too is left out."""
    from transformers import BertModel

    backbone = make_backbone(bert)
    assert any(name.startswith("cls.") for name in load_file(bert / WEIGHTS))
    model = tiny_model(backbone)
    plain = BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    tokens, types = (2, 7, 3, 8, 3), (0, 0, 0, 1, 1)
    states = model.states([ptkit.EncodedRow(ptkit.Row(tokens, (), types), 0)]).hidden
    wanted = plain(torch.tensor([tokens]), token_type_ids=torch.tensor([types]))
    torch.testing.assert_close(states, wanted.last_hidden_state[0])
    assert backbone.geometry.parameters == sum(p.numel() for p in plain.parameters())
    assert model.lm_head is None


def test_all_positions_are_usable(make_folder: MakeFolder, save_weights: SaveWeights) -> None:
    """20 places of a RoBERTa table carry 18 tokens, and the prefix takes none of them."""
    folder = make_folder(model_type="roberta", pad_token_id=1, type_vocab_size=1)
    save_weights(folder)
    source = ptkit.SourcePath(str(folder), folder)
    backbone = Encoder(Encoder.Settings(source=source))
    model, longest = tiny_model(backbone), backbone.geometry.max_positions
    assert longest == 18
    prefix = [(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8))] * 2
    with model.using(prefix):
        states = model.states([ptkit.EncodedRow(ptkit.Row((5,) * longest), 0)]).hidden
    assert states.shape == (18, 16)
    assert bool(states.isfinite().all())


def test_progress_and_dtype(bert: Path, make_backbone: MakeBackbone) -> None:
    told: list[tuple[int, int]] = []
    loaded = make_backbone(bert).load("cpu", "bfloat16", lambda *step: told.append(step))
    assert {p.dtype for p in loaded.body.parameters()} == {torch.bfloat16}
    assert told
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("kind", [Encoder, CausalLM])
def test_the_outline_has_the_modules(
    make_backbone: MakeBackbone, kind: type[TransformersBackbone]
) -> None:
    loaded = make_backbone(kind=kind).outline()
    assert len(loaded.attentions) == 2
    assert (loaded.lm_head is None) == (kind is Encoder)
    assert next(loaded.body.parameters()).is_meta
    if kind is CausalLM:
        rotary: Any = loaded.body.rotary_emb
        assert not rotary.inv_freq.is_meta


# ------------------------------------------------------------------------------------ names


def test_missing_and_unexpected_tensors(bert: Path, make_backbone: MakeBackbone) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["bert.encoder.layer.1.attention.self.other.weight"] = torch.ones(2)
        del tensors["bert.embeddings.LayerNorm.bias"]
        tensors["bert.embeddings.position_ids"] = torch.arange(20)

    change(bert, edit)
    assert refusal(lambda: make_backbone(bert).load("cpu", "float32")) == (
        f"{bert}: missing tensors: embeddings.LayerNorm.bias",
        f"{bert}: unexpected tensors: bert.encoder.layer.1.attention.self.other.weight",
    )


def test_long_lists_of_tensors_are_cut(bert: Path, make_backbone: MakeBackbone) -> None:
    change(bert, lambda t: [t.pop(name) for name in list(t) if ".layer.0." in name])
    (line,) = refusal(lambda: make_backbone(bert).load("cpu", "float32"))
    assert line.endswith(" and 11 more")


def test_tensors_of_another_shape(bert: Path, make_backbone: MakeBackbone) -> None:
    change(bert, lambda t: t.update({"bert.embeddings.LayerNorm.bias": torch.ones(3)}))
    (line,) = refusal(lambda: make_backbone(bert).load("cpu", "float32"))
    assert line.startswith(f"{bert}: can't be loaded by transformers (")


def test_an_unknown_model_type(bert: Path, make_folder: MakeFolder) -> None:
    make_folder(model_type="new")
    source = ptkit.SourcePath(str(bert), bert)
    backbone = Encoder(Encoder.Settings(source=source))
    assert refusal(lambda: backbone.load("cpu", "float32")) == (
        f"{bert / 'config.json'}: this version of transformers has no model_type 'new'; update "
        "transformers, or use another model",
    )


def test_a_type_without_such_a_model(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(kind=CausalLM, model_type="nomic_bert")
    assert refusal(lambda: backbone.load("cpu", "float32")) == (
        f"{backbone.settings.source.path}: transformers has no such model for model_type "
        "'nomic_bert'",
    )


def test_a_configuration_that_transformers_takes_otherwise(make_backbone: MakeBackbone) -> None:
    """Starcoder 2 has two key/value heads where its configuration gives no number."""
    shape = {"num_attention_heads": 4, "num_key_value_heads": None}
    backbone = make_backbone(kind=CausalLM, model_type="starcoder2", **shape)
    assert refusal(lambda: backbone.load("cpu", "float32")) == (
        f"{backbone.settings.source.path / 'config.json'}: transformers takes it as kv_groups = "
        "2; write these values into it under the names that the family has for them",
    )


# ------------------------------------------------------------------------- unknown families


def test_an_unknown_family_that_passes(
    make_folder: MakeFolder, make_backbone: MakeBackbone, save_weights: SaveWeights
) -> None:
    folder = make_folder(model_type="olmo", eos_token_id=3, num_key_value_heads=2)
    plain = save_weights(folder, "AutoModelForCausalLM")
    model = tiny_model(make_backbone(folder, kind=CausalLM))
    wanted = plain(torch.tensor([[5, 6, 7]])).logits[0]
    torch.testing.assert_close(model.logits([5, 6, 7]), wanted)


def test_logits_that_are_more_than_the_heads(
    make_folder: MakeFolder, make_backbone: MakeBackbone, save_weights: SaveWeights
) -> None:
    """Granite divides its logits."""
    folder = make_folder(
        model_type="granite", eos_token_id=3, num_key_value_heads=2, logits_scaling=8.0
    )
    save_weights(folder, "AutoModelForCausalLM")
    assert refusal(lambda: make_backbone(folder, kind=CausalLM).load("cpu", "float32")) == (
        "GraniteForCausalLM: its logits are not those of its LM head alone; this model is not "
        "supported",
    )


def test_layers_somewhere_else(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    """GPT-NeoX calls it "attention"."""
    folder = make_folder(model_type="gpt_neox", eos_token_id=3)
    assert refusal(lambda: make_backbone(folder, kind=CausalLM).outline()) == (
        "GPTNeoXModel: its attention modules are not where ptkit looks for them "
        "(layers.{}.self_attn); this model is not supported",
    )


def test_a_model_without_an_lm_head(
    make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda self: None)
    assert refusal(lambda: make_backbone(kind=CausalLM).outline()) == (
        "LlamaForCausalLM: has no LM head; this model is not supported",
    )


# ------------------------------------------------------------------------------------ files


def test_fingerprints(bert: Path, make_backbone: MakeBackbone) -> None:
    """Equal for any split, a float type that holds the values, and with or without heads."""
    first = make_backbone(bert).fingerprint
    tensors = {name: t.bfloat16().float() for name, t in load_file(bert / WEIGHTS).items()}
    save_file(tensors, bert / WEIGHTS, metadata={"format": "pt"})
    rounded = make_backbone(bert).fingerprint
    assert rounded != first
    save_file({n: t.bfloat16() for n, t in tensors.items()}, bert / WEIGHTS)
    assert make_backbone(bert).fingerprint == rounded
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, bert / file)
    index = {"weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (bert / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert make_backbone(bert).fingerprint == rounded
    (bert / f"{WEIGHTS}.index.json").unlink()
    body = {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
    save_file(body, bert / WEIGHTS)
    assert make_backbone(bert).fingerprint == rounded
    (bert / WEIGHTS).unlink()
    torch.save(tensors, bert / "pytorch_model.bin")
    assert make_backbone(bert).fingerprint == rounded
    body["encoder.layer.1.output.dense.bias"][0] += 1
    save_file(body, bert / WEIGHTS)
    assert make_backbone(bert).fingerprint != rounded


def test_pickled_weights_load(bert: Path, make_backbone: MakeBackbone) -> None:
    before = tiny_model(make_backbone(bert)).states([ptkit.EncodedRow(ptkit.Row((5, 6)), 0)])
    torch.save(load_file(bert / WEIGHTS), bert / "pytorch_model.bin")
    (bert / WEIGHTS).unlink()
    after = tiny_model(make_backbone(bert)).states([ptkit.EncodedRow(ptkit.Row((5, 6)), 0)])
    assert torch.equal(before.hidden, after.hidden)


def test_weights_that_cant_be_read(bert: Path, make_backbone: MakeBackbone) -> None:
    def look() -> object:
        return make_backbone(bert).geometry

    content = (bert / WEIGHTS).read_bytes()
    for damaged in (b"", content[:50], b"\xff" * 100):
        (bert / WEIGHTS).write_bytes(damaged)
        (line,) = refusal(look)
        assert line.startswith(f"{bert / WEIGHTS}: can't be read as weights (")
        assert line.endswith("); is it a whole download?")
    (bert / WEIGHTS).unlink()
    (bert / "pytorch_model.bin").write_bytes(b"no pickle")
    (line,) = refusal(look)
    assert line.startswith(f"{bert / 'pytorch_model.bin'}: can't be read as weights (")


def test_weights_that_are_not_there(bert: Path, make_backbone: MakeBackbone) -> None:
    def look() -> object:
        return make_backbone(bert).geometry

    (bert / WEIGHTS).unlink()
    assert refusal(look) == (
        f"{bert}: holds no weights; looked for model.safetensors, model.safetensors.index.json, "
        "pytorch_model.bin, pytorch_model.bin.index.json",
    )
    index = bert / f"{WEIGHTS}.index.json"
    index.write_text('{"weight_map": {"a": "x.safetensors"}}', encoding="utf-8")
    assert refusal(look) == (
        f"{bert}: 1 of 1 weight files are missing: x.safetensors; is it a whole download?",
    )
    index.write_text("{}", encoding="utf-8")
    assert refusal(look) == (
        f"{index}: is not an index: it needs an object 'weight_map' of tensor to file",
    )
