"""Model families: prefix gradients against transformers' own padded model with a prefix given in
another way; and the probe, which keeps out what a prefix does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ptkit_transformers.backbone import CausalLM, Encoder
from ptkit_transformers.families import FAMILIES
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel, DynamicCache
from transformers.masking_utils import eager_mask

from ptkit.engine.attention import IMPLEMENTATION, KeyValue, PackedRows, prefix_attention
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.probe import probe
from ptkit.engine.session import load_model, run
from ptkit.errors import CheckpointError
from ptkit.models import Backbone, LoadedBackbone
from ptkit.recipe import Recipe
from ptkit.records import EncodedRow, Geometry, Row, Sampling
from ptkit.settings import SourcePath
from ptkit.testing import TinyBackbone, tiny_model

VOCABULARY, LAYERS, PREFIX = 40, 2, 3
ROWS = ((5, 6, 7, 8, 9, 10, 11, 12, 13), (9, 8, 7), (20, 21, 22, 23, 24, 25))
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "initializer_range": 0.1,
    "pad_token_id": 1,
}
_DECODER = {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 2}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}
EXTRA: dict[str, dict[str, Any]] = {
    "albert": {"num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2},
    "gemma2": {
        "sliding_window": 3,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 8,
        **_WINDOWS,
    },
    "gemma3_text": {"sliding_window": 3, "query_pre_attn_scalar": 8, **_WINDOWS},
    "mistral": {"sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 3, **_WINDOWS},
}


def tokenizer_json() -> dict[str, Any]:
    """Words w0, w1, … in a template with marks, as the smallest tokenizer.json."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCABULARY))]
    marks = {mark: {"id": mark, "ids": [words.index(mark)], "tokens": [mark]} for mark in words[:3]}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    first, last = ({"SpecialToken": {"id": mark, "type_id": 0}} for mark in ("<s>", "</s>"))
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text, last],
            "pair": [first, text, last, second],
            "special_tokens": marks,
        },
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(words)},
            "unk_token": "<unk>",
        },
    }


def tiny_config(family: str) -> Any:
    shape = _DECODER if FAMILIES[family].causal else _SHAPE
    cls = transformers.CONFIG_MAPPING[family]
    return cls(**{**shape, **EXTRA.get(family, {})})


def save_tiny(folder: Path, family: str) -> Any:
    """A random model of a family, saved with a tokenizer in ``folder``."""
    torch.manual_seed(0)
    config = tiny_config(family)
    auto = transformers.AutoModelForCausalLM if FAMILIES[family].causal else AutoModel
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases start as 1 and 0, and would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.1)
            if "position" in name:  # the table's row of padding is zero, and the others look alike
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()), "utf-8")
    return model


def backbone_of(folder: Path, family: str) -> Backbone:
    made = CausalLM if FAMILIES[family].causal else Encoder
    return made(made.Settings(source=SourcePath(str(folder), folder), dtype="float32"))


def random_prefix(shape: Geometry) -> list[KeyValue]:
    draw = torch.Generator().manual_seed(3)
    size = (1, shape.kv_groups, PREFIX, shape.head_size)
    return [
        (torch.randn(size, generator=draw), torch.randn(size, generator=draw))
        for _ in range(shape.layers)
    ]


def leaves(prefix: Sequence[KeyValue]) -> list[KeyValue]:
    return [(k.clone().requires_grad_(), v.clone().requires_grad_()) for k, v in prefix]


def weighted(states: Tensor) -> Tensor:
    """A loss that gives every number of every state another weight."""
    draw = torch.Generator().manual_seed(7)
    return (states * torch.randn(states.shape, generator=draw)).sum() / states.numel() ** 0.5


def gradients(prefix: Sequence[KeyValue]) -> Tensor:
    """[2l, n]: those of every key and value tensor, each of which must have one."""
    found = [tensor.grad for pair in prefix for tensor in pair]
    assert all(gradient is not None and gradient.any() for gradient in found)
    return torch.stack([gradient.flatten() for gradient in found if gradient is not None])


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# ------------------------------------------------------------------------------------------ twins


class Twin:
    """Attention written out, on transformers' own masks; the prefix is the columns before them."""

    def __init__(self, prefix: Sequence[KeyValue]) -> None:
        self.prefix = list(prefix)
        self.calls = 0

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        scaling: float,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        before = self.prefix[self.calls]
        self.calls += 1
        rows, repeats = query.shape[0], query.shape[1] // key.shape[1]
        key = torch.cat((before[0].expand(rows, -1, -1, -1), key), 2).repeat_interleave(repeats, 1)
        value = torch.cat((before[1].expand(rows, -1, -1, -1), value), 2)
        value = value.repeat_interleave(repeats, 1)
        scores = query @ key.transpose(2, 3) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores + nn.functional.pad(attention_mask, (PREFIX, 0))
        return (scores.softmax(-1) @ value).transpose(1, 2), None


AttentionMaskInterface.register("twin", eager_mask)


def padded_rows() -> tuple[dict[str, Tensor], Tensor]:
    longest = max(map(len, ROWS))
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ROWS])
    ids = torch.tensor([[*row, *[1] * (longest - len(row))] for row in ROWS])
    return {"input_ids": ids, "attention_mask": real}, real.bool()


def by_twin(model: Any, prefix: Sequence[KeyValue]) -> Tensor:
    """The states of the real tokens by `Twin`, at the positions that the model itself counts."""
    inputs, real = padded_rows()
    twin = Twin(prefix)
    AttentionInterface.register("twin", twin)
    model.set_attn_implementation("twin")
    states: Tensor = model(**inputs, use_cache=False).last_hidden_state[real]
    assert twin.calls == len(prefix)
    return states


def by_cache(model: Any, prefix: Sequence[KeyValue]) -> Tensor:
    """The states of the real tokens by transformers alone, the prefix in its cache."""
    inputs, real = padded_rows()
    cache = DynamicCache()
    for layer, (key, value) in enumerate(prefix):
        cache.update(key.expand(len(ROWS), -1, -1, -1), value.expand(len(ROWS), -1, -1, -1), layer)
    seen = nn.functional.pad(inputs["attention_mask"], (PREFIX, 0), value=1)
    model.set_attn_implementation("eager")
    positions = torch.arange(real.shape[1]).expand(len(ROWS), -1)  # not behind the cache
    inputs = {**inputs, "attention_mask": seen, "position_ids": positions}
    states: Tensor = model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[real]
    return states


# A window would shut a prefix in the cache out; encoders take no cache.
WITHOUT_WINDOW = [n for n, f in FAMILIES.items() if f.causal and n not in EXTRA]
CASES = [*((n, by_twin) for n in FAMILIES), *((n, by_cache) for n in WITHOUT_WINDOW)]


@pytest.mark.parametrize(("family", "twin"), CASES, ids=[f"{n}-{way.__name__}" for n, way in CASES])
def test_prefix_gradients_equal_the_plain_models(
    tmp_path: Path, family: str, twin: Callable[..., Tensor]
) -> None:
    plain = save_tiny(tmp_path, family).base_model.requires_grad_(False)
    backbone = backbone_of(tmp_path, family)
    model = load_model(backbone, "cpu")
    frozen = {id(p): p for module in model.frozen_modules() for p in module.parameters()}
    assert sum(p.numel() for p in frozen.values()) == backbone.geometry.parameters
    prefix = random_prefix(backbone.geometry)
    wanted = leaves(prefix)
    loss = weighted(twin(plain, wanted))
    loss.backward()

    rows = [EncodedRow(Row(tokens), index) for index, tokens in enumerate(ROWS)]
    for checkpointed in (False, True):
        for model.layout in ("packed", "padded"):
            got = leaves(prefix)
            with model.using(got):
                found = weighted(model.states(rows).hidden)
                found.backward()
            torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-6)
            assert relative_error(gradients(got), gradients(wanted)) < 1e-6
        if not checkpointed:
            model.enable_checkpointing()
            assert len(model._repeated) == model.geometry.layers
    probe(model)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "glm", "smollm3"])
def test_greedy_answers_equal_transformers_with_the_prefix_as_its_cache(
    tmp_path: Path, family: str
) -> None:
    """A prefix that stands for tokens: transformers has them at 0, 1, 2, ptkit at −3, −2, −1."""
    plain = save_tiny(tmp_path, family)
    before, new = (7, 30, 12), 6
    model = load_model(backbone_of(tmp_path, family), "cpu")
    with model.using(model.keys_and_values(before)):
        answers = model.generate(ROWS, Sampling(max_new_tokens=new))
    for row, answer in zip(ROWS, answers, strict=True):
        cache = plain(torch.tensor([before]), use_cache=True).past_key_values
        ids = torch.tensor([[*before, *row]])
        whole = plain.generate(
            ids, past_key_values=cache, max_new_tokens=new, do_sample=False, eos_token_id=2
        )[0, ids.shape[1] :].tolist()
        assert answer == (whole[: whole.index(2)] if 2 in whole else whole)


def test_softcapped_logits_are_those_of_the_whole_model(tmp_path: Path) -> None:
    plain = save_tiny(tmp_path, "gemma2")
    assert plain.config.final_logit_softcapping == 30.0
    model = load_model(backbone_of(tmp_path, "gemma2"), "cpu")
    wanted = plain(torch.tensor([ROWS[0]])).logits[0]
    torch.testing.assert_close(model.logits(ROWS[0]), wanted, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------ probe


@pytest.fixture
def probed() -> Model:
    return tiny_model(TinyBackbone(TinyBackbone.Settings(causal=False)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_probe_leaves_a_good_model_as_it_was(causal: bool, layout: Any) -> None:
    settings = TinyBackbone.Settings(causal=causal)
    model = tiny_model(TinyBackbone(settings), layout=layout)
    state = torch.random.get_rng_state()
    rows = [EncodedRow(Row((3, 4, 5)), 0)]
    before = model.states(rows).hidden
    probe(model)
    assert torch.equal(model.states(rows).hidden, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.prefix is None
    assert all(p.grad is None for p in model.body.parameters())


def refusal(model: Model) -> str:
    with pytest.raises(CheckpointError) as refused:
        probe(model)
    (line,) = refused.value.lines
    return line


def test_a_layer_past_the_interface_is_refused(probed: Model) -> None:
    bert: Any = probed.body
    probed.attentions[1] = nn.Linear(1, 1)  # the real module never sees a prefix
    assert refusal(probed) == (
        "BertModel: the prefix of layers 1 gets no gradient: attention bypasses it; this model is "
        "not supported"
    )
    assert len(bert.encoder.layer) == 2


def test_a_model_that_counts_positions_by_itself_is_refused(
    probed: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = probed.body.forward
    monkeypatch.setattr(probed.body, "forward", lambda position_ids, **kwargs: whole(**kwargs))
    assert refusal(probed) == (
        "BertModel: a row's states depend on the rows beside it: tokens are mixed outside "
        "attention, or positions are not taken from position_ids; this model is not supported"
    )


def test_a_prefix_that_stays_behind_is_refused(
    probed: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a model that keeps keys of an earlier pass."""
    whole, seen = probed.body.forward, []

    def forward(**kwargs: Any) -> Any:
        found = whole(**kwargs)
        if seen:
            found.last_hidden_state = found.last_hidden_state + 1
        if probed.prefix is not None:
            seen.append(probed.prefix)
        return found

    monkeypatch.setattr(probed.body, "forward", forward)
    assert "the states without a prefix are others after one was used" in refusal(probed)


def test_a_prefix_of_another_shape_is_refused(probed: Model) -> None:
    probed.geometry = Geometry(2, 4, 4, 5, 32, 64, 512, 1, causal=False)
    assert refusal(probed).startswith(
        "BertModel: a forward pass with a prefix failed (Sizes of tensors must match"
    )


def test_a_prefix_without_effect_is_refused(probed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, but the states as they were: what a dropped attention output looks like."""
    monkeypatch.setattr(torch, "equal", lambda first, second: True)
    assert refusal(probed) == "BertModel: a prefix changes nothing; this model is not supported"


def test_states_that_are_not_finite_are_refused(probed: Model) -> None:
    with torch.no_grad():
        next(probed.body.parameters()).fill_(torch.inf)
    assert refusal(probed) == (
        'BertModel: its states are not finite in float32; use backbone.dtype = "float32" or '
        '"bfloat16"'
    )


def test_a_run_ends_at_the_probe(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = TinyBackbone.load

    def without_a_layer(self: TinyBackbone, *args: Any) -> LoadedBackbone:
        loaded = load(self, *args)
        loaded.attentions[0] = nn.Linear(1, 1)
        return loaded

    monkeypatch.setattr(TinyBackbone, "load", without_a_layer)
    with pytest.raises(CheckpointError, match="GlmModel: the prefix of layers 0 gets no gradient"):
        run(make_recipe(), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------ what attention is given


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"s_aux": torch.zeros(4)}, "its attention takes s_aux"),
        ({"position_bias": torch.zeros(1), "head_mask": torch.ones(1)}, "position_bias, head_mask"),
        ({"dropout": 0.1}, "its attention takes dropout 0.1"),
        ({"attention_mask": torch.zeros(1)}, "its attention takes a mask of its own"),
    ],
)
def test_arguments_that_would_change_the_result_are_refused(
    given: dict[str, Any], told: str
) -> None:
    query = torch.zeros(1, 4, 2, 8)
    layout = PackedRows([2], [-1], causal=True)
    arguments = {"attention_mask": None, **given}
    with pytest.raises(CheckpointError) as refused:
        prefix_attention(nn.Identity(), query, query, query, ptkit_layout=layout, **arguments)
    assert told in refused.value.lines[0]
    assert refused.value.lines[0].startswith("Identity: its attention takes ")
    assert refused.value.lines[0].endswith(
        ", which ptkit does not compute; use a model of another family"
    )


@pytest.mark.parametrize(
    ("causal", "told"),
    [
        (True, "Identity: is not causal, but its backbone says that it is causal; use another "),
        (False, "Identity: is causal, but its backbone says that it is not causal; use another "),
    ],
)
def test_a_causal_module_and_another_layout_are_refused(causal: bool, told: str) -> None:
    module, query = nn.Identity(), torch.zeros(1, 4, 2, 8)
    module.is_causal = not causal  # type: ignore[assignment]
    layout = PackedRows([2], [-1], causal=causal)
    with pytest.raises(CheckpointError) as refused:
        prefix_attention(module, query, query, query, None, ptkit_layout=layout)
    assert refused.value.lines == (f"{told}backbone.kind",)


@pytest.fixture(autouse=True)
def _implementation_stays() -> Iterator[None]:
    yield
    assert AttentionInterface()[IMPLEMENTATION] is prefix_attention


def test_every_layer_of_an_adapter_trains_on_albert(tmp_path: Path) -> None:
    """One layer's weights, four prefixes: their gradients differ."""
    save_tiny(tmp_path, "albert")
    backbone = backbone_of(tmp_path, "albert")
    model = load_model(backbone, "cpu")
    prefix = PrefixEncoder(backbone.geometry, PREFIX)
    prefix.initialize(std=0.5, seed=0)
    with model.using(prefix()):
        weighted(model.states([EncodedRow(Row(ROWS[0]), 0)]).hidden).backward()
    assert prefix.embedding.weight.grad is not None
    by_layer = prefix.embedding.weight.grad.view(PREFIX, 4, -1).norm(dim=(0, 2))
    assert len({round(float(norm), 6) for norm in by_layer}) == 4
    assert float(by_layer.min()) > 0
