"""The shipped model, tokenizer and rows are what the README says, and the grammar made the rows."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import ptkit_nano
import pytest
import sentencepiece

import ptkit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ptkit_nano"
MODEL = PACKAGE / "model"
README = (ROOT / "README.md").read_text(encoding="utf-8")

sys.path.insert(0, str(ROOT / "scripts"))

import grammar  # noqa: E402
import lexicon  # noqa: E402


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    """What model.safetensors says about its tensors: 8 bytes of length, then JSON."""
    with (MODEL / "model.safetensors").open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        tensors: dict[str, Any] = json.loads(stream.read(size))
    tensors.pop("__metadata__", None)
    return tensors


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    return settings


@pytest.fixture(scope="module")
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(MODEL / "tokenizer.model"))


def rows(split: str) -> list[dict[str, str]]:
    text = (PACKAGE / "data" / f"{split}.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def pairs(row: dict[str, str]) -> list[grammar.Pair]:
    """``类型#裙*颜色#红色`` as pairs."""
    parts = [part.split("#") for part in row["content"].split("*")]
    return [(key, value) for key, value in parts]


def meetings(row_pairs: list[grammar.Pair]) -> set[frozenset[grammar.Pair]]:
    """Every two attributes that meet in a row."""
    return {frozenset(two) for two in itertools.combinations(row_pairs, 2)}


# --- the plugin ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("nano", MODEL),
        ("nano:train", PACKAGE / "data" / "train.json"),
        ("nano:validation", PACKAGE / "data" / "validation.json"),
        ("nano:types-train", PACKAGE / "data" / "types-train.jsonl"),
        ("nano:entities-validation", PACKAGE / "data" / "entities-validation.jsonl"),
        ("nano:answers-train", PACKAGE / "data" / "answers-train.json"),
    ],
)
def test_sources(source: str, path: Path) -> None:
    found = ptkit_nano.ptkit_resolve_source(source)
    assert found is not None
    assert found.exists()
    assert found.samefile(path)


@pytest.mark.parametrize("source", ["train.json", "./nano", "nanotube", "random:nano", ""])
def test_other_sources_are_not_its_own(source: str) -> None:
    assert ptkit_nano.ptkit_resolve_source(source) is None


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(ptkit.PtkitError) as error:
        ptkit_nano.ptkit_resolve_source("nano:test")
    assert error.value.lines == (
        "ptkit-nano has no 'nano:test'; it has nano, nano:train, nano:validation, "
        "nano:types-train, nano:types-validation, nano:entities-train, nano:entities-validation, "
        "nano:answers-train, nano:answers-validation",
    )


def test_importing_it_is_light() -> None:
    code = "import sys, ptkit_nano; print({'torch', 'transformers', 'pydantic'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_package_is_small() -> None:
    size = sum(path.stat().st_size for path in PACKAGE.rglob("*") if "__pycache__" not in str(path))
    assert size < 16_000_000


# --- the model ----------------------------------------------------------------------------------


def test_parameters_and_their_published_names(
    header: dict[str, Any], config: dict[str, Any]
) -> None:
    h, f, v = (config[key] for key in ("hidden_size", "ffn_hidden_size", "padded_vocab_size"))
    groups = config["multi_query_group_num"] * config["kv_channels"]
    query = config["num_attention_heads"] * config["kv_channels"]
    expected = {
        "transformer.embedding.word_embeddings.weight": [v, h],
        "transformer.encoder.final_layernorm.weight": [h],
        "transformer.output_layer.weight": [v, h],
    }
    for layer in range(config["num_layers"]):
        name = f"transformer.encoder.layers.{layer}."
        expected |= {
            f"{name}input_layernorm.weight": [h],
            f"{name}self_attention.query_key_value.weight": [query + 2 * groups, h],
            f"{name}self_attention.query_key_value.bias": [query + 2 * groups],
            f"{name}self_attention.dense.weight": [h, query],
            f"{name}post_attention_layernorm.weight": [h],
            f"{name}mlp.dense_h_to_4h.weight": [2 * f, h],
            f"{name}mlp.dense_4h_to_h.weight": [h, f],
        }
    assert {name: tensor["shape"] for name, tensor in header.items()} == expected
    assert {tensor["dtype"] for tensor in header.values()} == {"F16"}
    count = sum(math.prod(tensor["shape"]) for tensor in header.values())
    assert count == 6_347_008
    assert f"{count:,}" in README


def test_config_is_chatglm2s(config: dict[str, Any]) -> None:
    assert config["model_type"] == "chatglm"
    assert config["original_rope"]
    assert config["rmsnorm"]
    assert config["post_layer_norm"]
    assert config["add_qkv_bias"]
    assert config["multi_query_attention"]
    assert not config["add_bias_linear"]
    assert not config["tie_word_embeddings"]
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, 0)
    assert config["padded_vocab_size"] % 64 == 0


def test_readme_names_these_weights() -> None:
    digest = hashlib.sha256((MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert digest in README


# --- the tokenizer ------------------------------------------------------------------------------


def test_ids_are_laid_out_as_chatglm2s(
    tokenizer: sentencepiece.SentencePieceProcessor, config: dict[str, Any]
) -> None:
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, 1, 2)
    assert tokenizer.pad_id() == -1
    assert tokenizer.id_to_piece(list(range(3, 259))) == [f"<0x{i:02X}>" for i in range(256)]
    assert tokenizer.encode("\n")[-1] == 13
    assert tokenizer.vocab_size() == 4000
    assert tokenizer.vocab_size() + 5 <= config["padded_vocab_size"]


@pytest.mark.parametrize("text", ["你好", "  two  spaces ", "a\tb\n\n", "Ａ１ ﬁ", "龘🙂"])
def test_text_comes_back_as_it_was(
    tokenizer: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_prompt_pieces(tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    pieces = tokenizer.encode("[Round 1]\n\n问：你好\n\n答：", out_type=str)
    line = ["<0x0A>", "<0x0A>"]
    assert pieces == [
        "▁[",
        "Round",
        "▁",
        "1",
        "]",
        *line,
        "问",
        "：",
        "你",
        "好",
        *line,
        "答",
        "：",
    ]


# --- the rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "count"), [("train", 2000), ("validation", 200)])
def test_rows_are_adgens_and_say_their_values(split: str, count: int) -> None:
    lines = rows(split)
    assert len(lines) == count
    for row in lines:
        assert set(row) == {"content", "summary"}
        assert row["content"].startswith("类型#")
        assert all(value in row["summary"] for _, value in pairs(row)[1:])
    assert len({frozenset(pairs(row)) for row in lines}) == count


@pytest.mark.parametrize(("split", "count"), [("train", 2000), ("validation", 200)])
def test_the_grammar_makes_the_rows_again(split: str, count: int) -> None:
    assert grammar.house_rows(split, count) == rows(split)  # type: ignore[arg-type]


def test_rows_are_not_escaped() -> None:
    assert "\\u" not in (PACKAGE / "data" / "train.json").read_text(encoding="utf-8")


def test_every_row_holds_a_meeting_that_was_kept_from_the_others() -> None:
    rng = Random("test")
    items = [grammar.random_item(rng, "pretraining", fewest=2, most=6) for _ in range(5000)]
    pretrained = set().union(*(meetings(list(item.all_pairs)) for item in items))
    trained = set().union(*(meetings(pairs(row)) for row in rows("train")))
    for row in rows("train"):
        assert grammar.split_of(pairs(row)) == "train"
        assert meetings(pairs(row)) - pretrained
    for row in rows("validation"):
        assert grammar.split_of(pairs(row)) == "validation"
        assert meetings(pairs(row)) - pretrained - trained


def test_house_openings_and_closings_are_new() -> None:
    for opening, closing in lexicon.HOUSE.values():
        assert opening not in lexicon.OPENINGS
        assert closing not in lexicon.CLOSINGS


def test_every_head_names_its_value() -> None:
    heads = [head for phrases in lexicon.PHRASES.values() for head in phrases.heads]
    assert all(head.count("{v}") == 1 for head in heads)
    assert {attribute.group for attribute in lexicon.ATTRIBUTES.values()} == set(lexicon.PHRASES)
    assert not any(
        re.search("[#*]", value)
        for attribute in lexicon.ATTRIBUTES.values()
        for value in attribute.values
    )
