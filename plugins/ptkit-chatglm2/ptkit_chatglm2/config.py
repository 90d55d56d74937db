"""A published ``config.json``, checked: what the model is, and what the native implementation can't
express."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ptkit

REQUIRED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "kv_channels",
    "ffn_hidden_size",
    "padded_vocab_size",
    "seq_length",
    "layernorm_epsilon",
)
OPTIONAL = {"multi_query_group_num": 2, "rope_ratio": 1}
# Flags of the published code, and of what was made from it, with the one value that transformers'
# GLM computes.
SUPPORTED = {
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "interleaved_qkv": False,
    "multi_query_attention": True,
    "original_rope": True,
    "post_layer_norm": True,
    "quantization_embeddings": False,
    "rmsnorm": True,
    "rope_scaling": None,
    "rope_theta": 10000,
    "rotary_percent": 0.5,
    "tie_word_embeddings": False,
}
# Switches that change nothing in what is computed, up to rounding. Others that are on are refused.
NEUTRAL = frozenset(
    {
        "apply_query_key_layer_scaling",
        "attention_softmax_in_fp32",
        "bf16",
        "bias_dropout_fusion",
        "cache_quantization",
        "do_sample",
        "fp16",
        "fp32_residual_connection",
        "prefix_projection",
        "return_dict",
        "use_cache",
        "use_flash_attn",
    }
)
QUANTIZATIONS = {0: "none", 4: "int4", 8: "int8"}


@dataclass(frozen=True)
class ChatGLM2Config:
    """The numbers of a ChatGLM2 model, under their published names."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    kv_channels: int
    multi_query_group_num: int
    ffn_hidden_size: int
    padded_vocab_size: int
    seq_length: int
    layernorm_epsilon: float
    pad_token_id: int
    eos_token_id: int
    quantization_bit: int = 0
    rope_ratio: float = 1
    name: str = ""  # _name_or_path
    seed: int | None = None  # random_weights_seed: there are no weights, they are drawn from it

    @property
    def quantization(self) -> str:
        """How the checkpoint itself is quantised: "none", "int8", "int4"."""
        return QUANTIZATIONS[self.quantization_bit]

    @property
    def query_size(self) -> int:
        return self.num_attention_heads * self.kv_channels

    @property
    def key_value_size(self) -> int:
        return self.multi_query_group_num * self.kv_channels

    def geometry(self) -> ptkit.Geometry:
        h, f, v = self.hidden_size, self.ffn_hidden_size, self.padded_vocab_size
        qkv = self.query_size + 2 * self.key_value_size
        layer = 2 * h + qkv * (h + 1) + self.query_size * h + 3 * f * h
        return ptkit.Geometry(
            layers=self.num_layers,
            heads=self.num_attention_heads,
            kv_groups=self.multi_query_group_num,
            head_size=self.kv_channels,
            hidden_size=h,
            vocab_size=v,
            max_positions=self.seq_length,
            parameters=self.num_layers * layer + 2 * v * h + h,
            ffn_size=f,
        )

    def transformers(self) -> Any:
        """The same model as transformers' GlmConfig."""
        from transformers import GlmConfig

        return GlmConfig(
            vocab_size=self.padded_vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.ffn_hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.multi_query_group_num,
            head_dim=self.kv_channels,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
            attention_bias=True,
            rms_norm_eps=self.layernorm_epsilon,
            max_position_embeddings=self.seq_length,
            hidden_act="silu",
            tie_word_embeddings=False,
            pad_token_id=self.pad_token_id,
            eos_token_id=self.eos_token_id,
            bos_token_id=1,
        )


def read_config(folder: Path) -> ChatGLM2Config:
    """The configuration of a model folder. Raises `ptkit.CheckpointError`, a line a problem."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise ptkit.CheckpointError(
            f"{folder}: must be a model folder with config.json, tokenizer.model and weights, "
            "got a file"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ptkit.CheckpointError(
            f"{folder}: no config.json; backbone.source must be the folder of a ChatGLM2 model"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ptkit.CheckpointError(f"{path}: can't be read: {error}") from None
    if not isinstance(data, dict):
        raise ptkit.CheckpointError(f"{path}: must hold an object, got {type(data).__name__}")
    if data.get("model_type") != "chatglm":
        raise ptkit.CheckpointError(
            f"{path}: model_type must be 'chatglm', got {data.get('model_type')!r}; "
            "use the backbone that is made for it"
        )
    problems = [f"{path}: {key} is missing" for key in REQUIRED if data.get(key) is None]
    for key, supported in SUPPORTED.items():
        if data.get(key, supported) not in (supported, None):
            problems.append(f"{path}: {key} = {json.dumps(data[key])} is not supported")
    problems += [
        f"{path}: {key} = true is not known here, and may change what the model computes; "
        "remove it if it doesn't"
        for key, value in data.items()
        if value is True and not key.startswith("_") and key not in NEUTRAL | SUPPORTED.keys()
    ]
    bits = data.get("quantization_bit") or 0
    if isinstance(bits, bool) or bits not in QUANTIZATIONS:
        problems.append(f"{path}: quantization_bit must be 0, 4 or 8, got {json.dumps(bits)}")
    seed = data.get("random_weights_seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        problems.append(
            f"{path}: random_weights_seed must be a whole number from 0 on, got {json.dumps(seed)}"
        )
    if seed is not None and bits:
        problems.append(
            f"{path}: quantization_bit = {json.dumps(bits)} is of published weights, but "
            "random_weights_seed says that there are none; set backbone.quantization instead"
        )
    numbers = OPTIONAL | {key: value for key, value in data.items() if value is not None}
    for key in (*REQUIRED, *OPTIONAL):
        value = numbers.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            problems.append(f"{path}: {key} must be a positive number, got {json.dumps(value)}")
    if problems:
        raise ptkit.CheckpointError(*problems)
    eos, pad = data.get("eos_token_id"), data.get("pad_token_id")
    return ChatGLM2Config(
        **{key: numbers[key] for key in (*REQUIRED, *OPTIONAL)},
        pad_token_id=pad if isinstance(pad, int) else 0,
        eos_token_id=eos if isinstance(eos, int) else 2,
        quantization_bit=bits,
        name=str(data.get("_name_or_path") or ""),
        seed=seed,
    )
