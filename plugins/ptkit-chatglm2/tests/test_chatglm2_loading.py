"""Model folders that don't fit: each fault is one line that says what and where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ptkit_chatglm2
import pytest
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_chatglm2.weights import Target, expected_shapes, load_native, native_name
from safetensors.torch import load_file, save_file
from transformers import GlmForCausalLM

import ptkit

GOLDEN = Path(__file__).parent / "golden" / "base-safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "base"))


def backbone(folder: Path) -> ChatGLM2:
    return ChatGLM2(ChatGLM2.Settings(source=str(folder)))


def load(folder: Path) -> ptkit.LoadedBackbone:
    return backbone(folder).load("cpu", "float32")


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


NORM = "transformer.encoder.layers.0.input_layernorm.weight"
QKV = "transformer.encoder.layers.0.self_attention.query_key_value.weight"


def change_shard(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of the shard that holds ``name``."""
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)


def refused(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ptkit.CheckpointError) as error:
        load(folder)
    return error.value.lines


def test_the_plugin_registers_the_backbone() -> None:
    assert ptkit_chatglm2.ptkit_register_backbones() == [ChatGLM2]


def test_geometry_counts_every_parameter() -> None:
    made = backbone(GOLDEN)
    loaded = made.load("cpu", "float32")
    counted = sum(p.numel() for m in (loaded.body, loaded.lm_head) for p in m.parameters())
    assert made.geometry.parameters == counted


def test_published_geometry() -> None:
    published = {
        "num_layers": 28,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "multi_query_group_num": 2,
        "ffn_hidden_size": 13696,
        "padded_vocab_size": 65024,
        "seq_length": 32768,
        "layernorm_epsilon": 1e-5,
    }
    from ptkit_chatglm2.config import ChatGLM2Config

    config = ChatGLM2Config(**published, pad_token_id=0, eos_token_id=2)  # type: ignore[arg-type]
    assert config.geometry().parameters == 6_243_584_000
    assert config.geometry().prefix_parameters(128) == 1_835_008
    shapes = expected_shapes(config)
    assert len(shapes) == 200 - 1  # the published files also hold the rotary table
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 6_243_584_000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_float_type(dtype: str) -> None:
    loaded = backbone(GOLDEN).load("cpu", dtype)
    types = {p.dtype for p in loaded.body.parameters()}
    assert types == {getattr(torch, dtype)}
    assert loaded.body.rotary_emb.inv_freq.dtype == torch.float32
    assert not any(p.requires_grad for p in loaded.body.parameters())


def test_queries_keys_and_values_stay_one_linear() -> None:
    name = "transformer.encoder.layers.1.self_attention.query_key_value.bias"
    assert native_name(name) == "model.layers.1.self_attn.qkv_proj.bias"
    attention = backbone(GOLDEN).load("cpu", "float32").attentions[1]
    assert (attention.heads, attention.groups) == (4, 2)
    assert attention.qkv_proj.out_features == 64 + 32 + 32


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_other_programs_may_call_the_model_too(implementation: str) -> None:
    """Logits and cached keys are those of transformers' own attention with the same weights."""
    made = backbone(GOLDEN)
    own = load_native(GOLDEN, made.config, Target("cpu", torch.float32))
    own.set_attn_implementation(implementation)
    plain = GlmForCausalLM(made.config.transformers()).eval()
    weights = {}
    for name, tensor in own.state_dict().items():
        if ".qkv_proj." not in name:
            weights[name] = tensor
            continue
        for part, rows in zip("qkv", tensor.split([64, 32, 32]), strict=True):
            weights[name.replace("qkv_proj", f"{part}_proj")] = rows
    plain.load_state_dict(weights)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        wanted = plain(ids)
        first = own(ids[:, :3], use_cache=True)
        last = own(ids[:, 3:], past_key_values=first.past_key_values)
    found = torch.cat((first.logits, last.logits), dim=1)
    torch.testing.assert_close(found, wanted.logits, atol=1e-5, rtol=0)


def test_a_single_file_loads_too(folder: Path) -> None:
    whole: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        whole |= load_file(shard)
        shard.unlink()
    (folder / INDEX).unlink()
    save_file(whole, folder / "model.safetensors")
    assert backbone(folder).fingerprint == backbone(GOLDEN).fingerprint
    load(folder)
    (folder / "model.safetensors").unlink()
    torch.save(whole, folder / "pytorch_model.bin")
    assert backbone(folder).fingerprint == backbone(GOLDEN).fingerprint
    load(folder)


def test_other_weights_have_another_fingerprint(folder: Path) -> None:
    change_shard(folder, QKV, lambda tensors: tensors[QKV].add_(0.1))
    assert backbone(folder).fingerprint != backbone(GOLDEN).fingerprint


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ptkit.CheckpointError, match="must be a model folder with config.json"):
        load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ptkit.CheckpointError, match="no config.json; backbone.source must be"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "can't be read"), ("[]", "must hold an object, got list"), ("\xff", "can't be read")],
)
def test_a_broken_config(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert message in refused(folder)[0]


def test_another_model_type(folder: Path) -> None:
    change_config(folder, model_type="bert")
    assert "model_type must be 'chatglm', got 'bert'" in refused(folder)[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rmsnorm", False),
        ("post_layer_norm", False),
        ("add_bias_linear", True),
        ("add_qkv_bias", False),
        ("original_rope", False),
        ("multi_query_attention", False),
        ("apply_residual_connection_post_layernorm", True),
        ("tie_word_embeddings", True),
        ("interleaved_qkv", True),
        ("quantization_embeddings", True),
        ("rotary_percent", 1.0),
        ("rope_theta", 500000),
    ],
)
def test_what_the_native_model_cannot_express_is_refused_by_name(
    folder: Path, key: str, value: Any
) -> None:
    change_config(folder, **{key: value})
    assert refused(folder) == (
        f"{folder}/config.json: {key} = {json.dumps(value)} is not supported",
    )


@pytest.mark.parametrize("bits", [2, "4"])
def test_other_bits_are_refused(folder: Path, bits: Any) -> None:
    change_config(folder, quantization_bit=bits)
    assert refused(folder) == (
        f"{folder}/config.json: quantization_bit must be 0, 4 or 8, got {json.dumps(bits)}",
    )


def test_an_unknown_switch_that_is_on_is_refused(folder: Path) -> None:
    change_config(folder, use_parallel_residual=True, another_switch=False, _private=True)
    assert refused(folder) == (
        f"{folder}/config.json: use_parallel_residual = true is not known here, and may change "
        "what the model computes; remove it if it doesn't",
    )


def test_tensors_are_loaded_one_by_one_and_counted(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    backbone(folder).load("cpu", "float32", lambda done, total: seen.append((done, total)))
    assert seen == [(done, 32) for done in range(1, 33)]


def test_loaded_weights_are_not_the_files(folder: Path) -> None:
    """A file that changes afterwards changes nothing."""
    loaded = load(folder)
    before = loaded.body.norm.weight.clone()
    for path in folder.glob("*.safetensors"):
        with path.open("r+b") as file:
            file.seek(-4096, 2)
            file.write(b"\xff" * 4096)
    assert all(torch.isfinite(p).all() for p in loaded.body.parameters())
    assert torch.equal(loaded.body.norm.weight, before)


def test_all_missing_and_wrong_numbers_at_once(folder: Path) -> None:
    change_config(folder, num_layers=None, hidden_size="64", kv_channels=-1)
    assert [line.split(": ", 1)[1] for line in refused(folder)] == [
        "num_layers is missing",
        'hidden_size must be a positive number, got "64"',
        "kv_channels must be a positive number, got -1",
    ]


def test_missing_and_unexpected_tensors(folder: Path) -> None:
    change_shard(folder, NORM, lambda tensors: tensors.update({"extra.weight": tensors.pop(NORM)}))
    assert refused(folder) == (
        f"{folder}: missing tensors: {NORM}",
        f"{folder}: unexpected tensors: extra.weight",
    )


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    change_config(folder, num_layers=5)
    lines = refused(folder)
    assert "missing tensors: transformer.encoder.layers.4." in lines[0]
    assert lines[0].endswith(" and 2 more")


def test_a_tensor_of_another_shape_or_type(folder: Path) -> None:
    change_shard(folder, NORM, lambda tensors: tensors.update({NORM: torch.ones(63)}))
    assert f"{NORM} must be a float tensor of [64], got float32 [63]" in refused(folder)[0]
    integers = torch.ones(64, dtype=torch.int8)
    change_shard(folder, NORM, lambda tensors: tensors.update({NORM: integers}))
    assert f"{NORM} must be a float tensor of [64], got int8 [64]" in refused(folder)[0]


def test_no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    assert "holds no weights; looked for model.safetensors" in refused(folder)[0]


def test_a_missing_shard(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert refused(folder) == (f"{folder}: 1 of 3 weight files are missing: {SHARD}",)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index(folder: Path, index: str) -> None:
    (folder / INDEX).write_text(index)
    assert "is not an index" in refused(folder)[0]


def test_an_index_cannot_lead_outside(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": {"x": "../../secret.bin"}}')
    assert "names a file outside its folder" in refused(folder)[0]


def test_a_truncated_shard(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[: len(data) // 2])
    assert "can't be read as weights" in refused(folder)[0]
    assert "is it a whole download?" in refused(folder)[0]


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("content", [Payload(), [1, 2]])
def test_pickles_execute_nothing(folder: Path, content: Any) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert "can't be read as weights" in refused(folder)[0]
