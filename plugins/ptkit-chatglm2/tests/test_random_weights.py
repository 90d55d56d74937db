"""Models of random weights: sources without files, their tokenizer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ptkit_chatglm2
import pytest
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_chatglm2.characters import CharacterTokenizer
from ptkit_chatglm2.random_weights import BLOCK, random_tensors

import ptkit
from ptkit.testing import check_backbone

CONFIG = Path("config.json")


def made(source: str = "random:chatglm2-tiny", **settings: Any) -> ChatGLM2:
    folder = ptkit_chatglm2.ptkit_resolve_source(source)
    assert folder is not None
    return ChatGLM2(ChatGLM2.Settings(source=ptkit.SourcePath(source, folder), **settings))


def changed(tmp_path: Path, **changes: Any) -> ChatGLM2:
    """The tiny model's folder with another config.json."""
    folder = ptkit_chatglm2.ptkit_resolve_source("random:chatglm2-tiny")
    assert folder is not None
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    (tmp_path / CONFIG).write_text(json.dumps({**config, **changes}), "utf-8")
    return ChatGLM2(ChatGLM2.Settings(source=str(tmp_path)))


def weights(backbone: ChatGLM2, dtype: str = "float32") -> dict[str, torch.Tensor]:
    loaded = backbone.load("cpu", dtype)
    assert loaded.lm_head is not None
    return {**dict(loaded.body.named_parameters()), "lm_head": loaded.lm_head.weight}


def test_the_contract(tmp_path: Path) -> None:
    check_backbone(made(), other=changed(tmp_path, random_weights_seed=1), texts=["裙子，红色！"])


def test_the_shape_of_the_large_one_is_the_published_one() -> None:
    geometry = made("random:chatglm2-6b").geometry
    # a layer: 2 norms, (4096 + 2·256) rows with bias, output, 3 matrices of the MLP
    layer = 2 * 4096 + 4608 * 4097 + 4096 * 4096 + 3 * 13696 * 4096
    assert geometry.parameters == 28 * layer + 2 * 65024 * 4096 + 4096 == 6_243_584_000
    assert geometry.prefix_parameters(128) == 1_835_008
    assert made("random:chatglm2-6b").tokenizer.vocab_size <= 65024


def test_weights_are_normal_norms_one_and_biases_zero() -> None:
    found = weights(made())
    norms = [t for name, t in found.items() if "norm" in name]
    biases = [t for name, t in found.items() if name.endswith("bias")]
    assert len(norms) == 2 * 2 + 1
    assert all(bool((t == 1).all()) for t in norms)
    assert len(biases) == 2
    assert all(bool((t == 0).all()) for t in biases)
    others = [t for name, t in found.items() if t.dim() == 2]
    assert len(others) == 2 + 2 * 4
    for tensor in others:
        # the deviation of n numbers is within 5/√(2n) of the truth, their mean within 5/√n
        spread = tensor.numel() ** -0.5
        assert float(tensor.std()) == pytest.approx(0.02, rel=4 * spread)
        assert abs(float(tensor.mean())) < 0.02 * 5 * spread
    flat = torch.cat([tensor.flatten()[:64] for tensor in others])
    assert len(flat.unique()) > 0.99 * len(flat)  # no two tensors begin alike


def test_they_follow_from_the_seed_and_in_every_type(tmp_path: Path) -> None:
    first, again = weights(made()), weights(made())
    other = weights(changed(tmp_path, random_weights_seed=1))
    half = weights(made(), "bfloat16")
    name = "layers.1.mlp.down_proj.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert torch.equal(first[name].bfloat16(), half[name])
    fingerprints = {made().fingerprint, changed(tmp_path, random_weights_seed=1).fingerprint}
    assert fingerprints.isdisjoint({changed(tmp_path, num_layers=3).fingerprint})
    assert len(fingerprints) == 2


def test_a_tensor_longer_than_the_block_goes_on_at_its_beginning() -> None:
    shapes = {"long.weight": (5, 4_000_000), "part.weight": (1, 3)}
    found = random_tensors(shapes, 0, "cpu", torch.float32)
    flat = found["long.weight"]().flatten()
    assert len(flat) == 20_000_000 > BLOCK
    assert torch.equal(flat[: len(flat) - BLOCK], flat[BLOCK:])
    assert found["part.weight"]().shape == (1, 3)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_they_are_quantised_while_they_are_made(quantization: str) -> None:
    loaded = made(quantization=quantization).load("cpu", "float32")
    linear = loaded.body.layers[0].mlp.down_proj
    assert isinstance(linear, ptkit.QuantizedLinear)
    exact = weights(made())["layers.0.mlp.down_proj.weight"]
    step = exact.abs().amax(1, keepdim=True) / (2 ** (linear.bits - 1) - 1)
    assert bool(((linear.dequantized(torch.float32) - exact).abs() <= 0.51 * step).all())


def test_notes_say_that_the_weights_are_random() -> None:
    assert any(note.startswith("weights: random, from seed 0;") for note in made().notes)


def test_a_run_and_its_adapter(tmp_path: Path) -> None:
    rows = [{"content": f"类型#裙{i}", "summary": f"红色的裙{i}"} for i in range(4)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.json").write_text(lines, "utf-8")
    recipe = ptkit.Recipe.from_dict(
        {
            "ptkit": 1,
            "backbone": {"kind": "chatglm2", "source": "random:chatglm2-tiny"},
            "prefix": {"length": 2},
            "dataset": {"kind": "adgen", "train": "rows.json", "validation": "rows.json"},
            "task": {"kind": "generation", "max_target_tokens": 4},
            "metrics": [{"kind": "bleu-char"}],
            "train": {"max_steps": 2, "batch_size": 2},
        },
        folder=tmp_path,
        name="random",
    )
    result = ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    manifest = json.loads((result.adapter / "adapter.json").read_text("utf-8"))
    assert manifest["backbone"]["fingerprint"] == made().fingerprint
    tuned = ptkit.load("random:chatglm2-tiny", result.adapter, device="cpu")
    assert len(tuned.generate(["类型#裙1"])) == 1


# ------------------------------------------------------------------------------------ tokenizer


def test_a_character_is_an_id_and_the_rest_bytes() -> None:
    tokenizer = CharacterTokenizer(65024, CONFIG)
    first = 3 + 256  # behind the specials in front and the bytes
    ideographs = first + 64 + 240  # punctuation and full-width forms come before them
    assert tokenizer.encode("。") == [first + 2]  # U+3002
    assert tokenizer.encode("一丁") == [ideographs, ideographs + 1]  # U+4E00, U+4E01
    assert tokenizer.encode("\nA") == [13, 3 + 65]
    assert tokenizer.encode("é") == [3 + 0xC3, 3 + 0xA9]
    assert tokenizer.offsets("é一") == ([198, 172, ideographs], [(0, 1), (0, 1), (1, 2)])
    # [MASK] [gMASK] [sMASK] sop eop stand behind the characters, 0xA000 − 0x4E00 of them ideographs
    behind = ideographs + 20992
    assert tokenizer.start_ids == (behind + 1, behind + 3)
    assert tokenizer.vocab_size == behind + 5
    text = "类型#裙，naïve 😀\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([0, 1, 2, *tokenizer.start_ids, 65023, 3 + 0xC3]) == "\ufffd"


def test_a_small_vocabulary_has_fewer_characters() -> None:
    tokenizer = CharacterTokenizer(264 + 1, CONFIG)
    assert tokenizer.vocab_size == 265
    assert tokenizer.encode("\u3000") == [259]
    assert tokenizer.encode("、") == [3 + byte for byte in "、".encode()]
    assert tokenizer.decode(tokenizer.encode("、\u3000")) == "、\u3000"


def test_the_prompt_is_chatglm2s() -> None:
    prompt = made().tokenizer.prompt("好", [("一", "二")])
    assert prompt.text == "[Round 1]\n\n问：一\n\n答：二\n\n[Round 2]\n\n问：好\n\n答："


def test_a_tokenizer_of_the_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ptkit.CheckpointError, match=r"tokenizer\.model: is not a sentencepiece"):
        _ = changed(tmp_path).tokenizer


# ------------------------------------------------------------------------------------ refused


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ptkit.PtkitError) as error:
        ptkit_chatglm2.ptkit_resolve_source("random:chatglm2-6B")
    assert error.value.lines == (
        "ptkit-chatglm2 has no 'random:chatglm2-6B' (did you mean 'random:chatglm2-6b'?); it has "
        "random:chatglm2-6b, random:chatglm2-tiny",
    )
    assert ptkit_chatglm2.ptkit_resolve_source("random:llama") is None
    assert ptkit_chatglm2.ptkit_resolve_source("chatglm2-6b") is None


@pytest.mark.parametrize("seed", [-1, 0.5, True, "0"])
def test_a_seed_that_is_none_is_refused(tmp_path: Path, seed: object) -> None:
    with pytest.raises(ptkit.CheckpointError) as error:
        _ = changed(tmp_path, random_weights_seed=seed).config
    assert (
        f"{tmp_path / CONFIG}: random_weights_seed must be a whole number from 0 on, "
        f"got {json.dumps(seed)}" in error.value.lines
    )


def test_published_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ptkit.CheckpointError) as error:
        _ = changed(tmp_path, quantization_bit=4).config
    assert error.value.lines == (
        f"{tmp_path / CONFIG}: quantization_bit = 4 is of published weights, but "
        "random_weights_seed says that there are none; set backbone.quantization instead",
    )


def test_a_vocabulary_without_room_for_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ptkit.CheckpointError) as error:
        _ = changed(tmp_path, padded_vocab_size=263).tokenizer
    assert error.value.lines == (
        f"{tmp_path / CONFIG}: padded_vocab_size must be 264 or more for a model without "
        "tokenizer.model, got 263",
    )
