"""Model folders as they come from the hub, small and random, and backbones on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ptkit_transformers.backbone import CausalLM, Encoder, TransformersBackbone

import ptkit

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "hel", "##lo", "world", "sep"]
BERT = {
    "model_type": "bert",
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
LLAMA = {
    **BERT,
    "model_type": "llama",
    "num_key_value_heads": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
MakeFolder = Callable[..., Path]
MakeBackbone = Callable[..., TransformersBackbone]


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """A folder with config.json (changed by keyword arguments) and vocab.txt, without weights."""

    def make(base: dict[str, Any] = BERT, **changes: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        config = {k: v for k, v in {**base, **changes}.items() if v is not None}
        write(folder / "config.json", config)
        (folder / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def make_backbone(make_folder: MakeFolder) -> MakeBackbone:
    """The backbone on `make_folder`'s folder, or on another."""

    def make(
        folder: Path | None = None, *, kind: type[TransformersBackbone] = Encoder, **changes: Any
    ) -> TransformersBackbone:
        base = LLAMA if kind is CausalLM else BERT
        path = make_folder(base, **changes) if folder is None else folder
        source = ptkit.SourcePath(str(path), path)
        return kind(kind.Settings(source=source, dtype="float32"))

    return make


@pytest.fixture
def save_weights() -> Callable[..., Any]:
    return _save_weights


def _save_weights(folder: Path, auto: str = "AutoModelForMaskedLM") -> Any:
    """Random weights for the config.json of ``folder``, saved there; the model is returned."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config).eval()
    written = (folder / "config.json").read_bytes()
    model.save_pretrained(folder)
    (folder / "config.json").write_bytes(written)
    return model
