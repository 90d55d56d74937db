"""A tiny GGUF file, made here, as transformers reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ptkit_transformers.backbone import CausalLM, TransformersBackbone
from ptkit_transformers.gguf import find_gguf

import ptkit
from ptkit.testing import tiny_model

gguf = pytest.importorskip("gguf")
MakeBackbone = Callable[..., TransformersBackbone]

HIDDEN, HEADS, GROUPS, FFN, LAYERS = 16, 2, 1, 24, 2
WORDS = ["<s>", "</s>", "r", "e", "d", "Ġ", "re", "red", "Ġred"]
MERGES = ["r e", "re d", "Ġ red"]
NORMAL, CONTROL = 1, 3  # token types of the format


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "tiny.gguf")


def written(path: Path, chat_template: str | None = None) -> Path:
    """A Llama with a GPT-2 tokenizer."""
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(32)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(WORDS)
    writer.add_token_types([CONTROL, CONTROL, *[NORMAL] * (len(WORDS) - 2)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    shapes = {"token_embd": (len(WORDS), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        inner = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (HIDDEN // HEADS * GROUPS, HIDDEN),
            "attn_v": (HIDDEN // HEADS * GROUPS, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FFN, HIDDEN),
            "ffn_up": (FFN, HIDDEN),
            "ffn_down": (HIDDEN, FFN),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in inner.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_a_backbone(file: Path, make_backbone: MakeBackbone) -> None:
    from transformers import AutoModelForCausalLM

    backbone = make_backbone(file, kind=CausalLM)
    layer = 2 * HIDDEN + 2 * HIDDEN**2 + 2 * HIDDEN * 8 + 3 * HIDDEN * FFN
    assert backbone.geometry == ptkit.Geometry(
        layers=LAYERS,
        heads=HEADS,
        kv_groups=GROUPS,
        head_size=HIDDEN // HEADS,
        hidden_size=HIDDEN,
        vocab_size=len(WORDS),
        max_positions=32,
        parameters=LAYERS * layer + len(WORDS) * HIDDEN + HIDDEN,
        ffn_size=FFN,
    )
    assert backbone.notes == [
        "the weights of the GGUF file are dequantised while loading",
        "prompt: plain text; the model has no chat template",
    ]
    plain = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    model = tiny_model(backbone)
    wanted = plain(torch.tensor([[7, 8, 2]])).logits[0]
    torch.testing.assert_close(model.logits([7, 8, 2]), wanted)
    frozen = {id(p): p.numel() for m in model.frozen_modules() for p in m.parameters()}
    assert sum(frozen.values()) == backbone.geometry.parameters


def test_its_chat_template(tmp_path: Path, make_backbone: MakeBackbone) -> None:
    """Ids of `WORDS`: <s> 0, </s> 1, red 7, "Ġred" 8."""
    template = "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %} red"
    file = written(tmp_path / "chat.gguf", template)
    backbone = make_backbone(file, kind=CausalLM)
    assert backbone.notes[-1] == "prompt: the model's chat template (chat.gguf)"
    tokenizer = backbone.tokenizer
    assert tokenizer.encode_prompts([tokenizer.prompt("red red")]) == [[0, 7, 8, 1, 8]]


def test_its_tokenizer(file: Path, make_backbone: MakeBackbone) -> None:
    tokenizer = make_backbone(file, kind=CausalLM).tokenizer
    assert tokenizer.encode("red red") == [7, 8]
    assert tokenizer.offsets("red red") == ([7, 8], [(0, 3), (4, 7)])
    assert tokenizer.decode([7, 8, 1]) == "red red"
    assert tokenizer.eos_id == 1
    assert not {0, 1} & set(tokenizer.encode("</s>red<s>"))


def test_fingerprints_tell_files_apart(file: Path, make_backbone: MakeBackbone) -> None:
    first = make_backbone(file, kind=CausalLM).fingerprint
    assert make_backbone(file.parent, kind=CausalLM).fingerprint == first
    content = bytearray(file.read_bytes())
    content[-FFN * HIDDEN * 4] ^= 255  # the first byte of the last tensor
    file.write_bytes(content)
    assert make_backbone(file, kind=CausalLM).fingerprint != first


def test_several_files_are_refused(file: Path) -> None:
    (file.parent / "b.gguf").write_bytes(b"")
    with pytest.raises(ptkit.CheckpointError) as refused:
        find_gguf(file.parent)
    assert refused.value.lines == (
        f"{file.parent}: holds several GGUF files (b.gguf, tiny.gguf); name one of them",
    )


def test_damaged_files_are_refused(
    file: Path, make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerFast

    def broken(*args: object, **kwargs: object) -> None:
        raise ValueError("no such tokenizer")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "from_pretrained", broken)
        with pytest.raises(ptkit.CheckpointError) as refused:
            _ = make_backbone(file, kind=CausalLM).tokenizer
    assert refused.value.lines == (
        f"{file}: its tokenizer can't be read by transformers (no such tokenizer)",
    )
    file.write_bytes(b"GGUF")
    with pytest.raises(ptkit.CheckpointError, match="can't be read as a model by transformers"):
        _ = make_backbone(file, kind=CausalLM).geometry


def test_without_the_package(
    file: Path, make_backbone: MakeBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptkit_transformers.gguf.find_spec", lambda name: None)
    with pytest.raises(ptkit.CheckpointError) as refused:
        _ = make_backbone(file, kind=CausalLM).geometry
    assert refused.value.lines == (
        f"{file}: GGUF files need the package gguf; pip install 'ptkit-transformers[gguf]'",
    )
