"""The model families that are known: where their layers are, how they count positions, and which
can't be tuned by a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """What transformers' classes of a model type have in common.

    ``prefix``: what weight names begin with in files of models with a head. ``attentions``: the
    path of a layer's attention module, ``{}`` for the layer. ``position_table``: whether positions
    are looked up. ``after_padding``: whether they begin behind that of padding. ``segments``:
    whether tokens can have a type. ``names``: keys of config.json that go by another name.
    ``defaults``: values that a config.json may leave out.
    """

    prefix: str
    attentions: tuple[str, ...]
    causal: bool = False
    position_table: bool = True
    after_padding: bool = False
    segments: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, int] = field(default_factory=dict)


_BERT_LAYERS = ("encoder.layer.{}.attention.self",)
_DISTILBERT_NAMES = {
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
}


def _bert(prefix: str) -> Family:
    return Family(prefix, _BERT_LAYERS, defaults={"pad_token_id": 0, "type_vocab_size": 2})


def _roberta() -> Family:
    return Family("roberta", _BERT_LAYERS, after_padding=True, defaults={"pad_token_id": 1})


def _decoder(**defaults: int) -> Family:
    return Family(
        "model",
        ("layers.{}.self_attn",),
        causal=True,
        position_table=False,
        segments=False,
        defaults=defaults,
    )


FAMILIES: Mapping[str, Family] = {
    "albert": Family("albert", (), defaults={"pad_token_id": 0, "type_vocab_size": 2}),
    "bert": _bert("bert"),
    "camembert": _roberta(),
    "distilbert": Family(
        "distilbert", ("transformer.layer.{}.attention",), segments=False, names=_DISTILBERT_NAMES
    ),
    "electra": _bert("electra"),
    "ernie": _bert("ernie"),
    "modernbert": Family("model", ("layers.{}.attn",), position_table=False, segments=False),
    "roberta": _roberta(),
    "xlm-roberta": _roberta(),
    "gemma": _decoder(num_key_value_heads=16, head_dim=256),
    "gemma2": _decoder(num_key_value_heads=4, head_dim=256),
    "gemma3_text": _decoder(num_key_value_heads=4, head_dim=256),
    "glm": _decoder(num_key_value_heads=2, head_dim=128),
    "glm4": _decoder(num_key_value_heads=2, head_dim=128),
    "llama": _decoder(),
    "mistral": _decoder(num_key_value_heads=8),
    "qwen2": _decoder(num_key_value_heads=32),
    "qwen3": _decoder(num_key_value_heads=32, head_dim=128),
    "smollm3": _decoder(num_key_value_heads=4),
}
"""Model types whose gradients are compared with plain transformers in the tests."""

UNKNOWN_ENCODER = Family(
    "", (*_BERT_LAYERS, "layers.{}.attn", "layers.{}.self_attn"), position_table=False
)
UNKNOWN_DECODER = _decoder()

_DISENTANGLED = "its attention adds scores of relative positions, for which a prefix has none"
_OWN = "its attention is computed in the model itself, past transformers' attention interface"
_RELATIVE = "its attention adds a learned bias of relative positions, for which a prefix has none"
_ALIBI = "its attention adds a bias of distances (ALiBi) through a mask of its own"
_TWO_HALVES = "it is an encoder-decoder; ptkit tunes encoders and decoders"
_STATE_SPACE = "its layers keep a state instead of keys and values, so that no prefix fits them"
_MIXTURE = "it is a model of text and images; use its text model alone"

REFUSED: Mapping[str, str] = {
    "bart": _TWO_HALVES,
    "bloom": _ALIBI,
    "convbert": f"{_OWN}, and mixes neighbouring tokens by convolutions",
    "deberta": _DISENTANGLED,
    "deberta-v2": _DISENTANGLED,
    "falcon": f"{_OWN}, some sizes with a bias of distances (ALiBi)",
    "falcon_h1": _STATE_SPACE,
    "falcon_mamba": _STATE_SPACE,
    "fnet": "it has no attention",
    "funnel": f"{_OWN}, and pools its sequence on the way",
    "gemma3": _MIXTURE,
    "gpt2": "its layers are laid out in another way, which is not supported",
    "gpt_oss": "its attention has sink scores, which ptkit does not compute",
    "jamba": _STATE_SPACE,
    "longformer": f"{_OWN}, in blocks",
    "mamba": _STATE_SPACE,
    "mamba2": _STATE_SPACE,
    "marian": _TWO_HALVES,
    "mbart": _TWO_HALVES,
    "mpnet": f"{_OWN}, with a learned bias of relative positions",
    "mpt": _ALIBI,
    "mt5": _TWO_HALVES,
    "pegasus": _TWO_HALVES,
    "rembert": _OWN,
    "rwkv": _STATE_SPACE,
    "t5": _TWO_HALVES,
    "umt5": _TWO_HALVES,
    "xlm": _OWN,
    "xlnet": _RELATIVE,
}
