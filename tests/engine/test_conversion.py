"""Formats of adapters: recognition, a third party's format, PEFT's folder, keys that are moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ptkit
from ptkit.engine.adapter import load_adapter, save_adapter
from ptkit.engine.conversion import Converted, convert
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.rotary import rotated
from ptkit.errors import CheckpointError, PluginError, PtkitError
from ptkit.registry import Owner, Registry
from ptkit.testing import TinyBackbone

MakeAdapter = Callable[..., Path]


class RowsFormat(ptkit.AdapterFormat):
    """A third party's: the flat prefix as lists of numbers in rows.json."""

    name = "rows"
    looks_for = "rows.json"

    def recognises(self, folder: Path) -> bool:
        return (folder / "rows.json").is_file()

    def read(self, folder: Path, backbone: ptkit.Backbone) -> dict[str, torch.Tensor]:
        return {"embedding.weight": torch.tensor(json.loads((folder / "rows.json").read_text()))}

    def write(
        self, folder: Path, adapter: ptkit.Adapter, backbone: ptkit.Backbone | None
    ) -> list[str]:
        assert backbone is not None
        rows = adapter.prefix.state_dict()["embedding.weight"].tolist()
        (folder / "rows.json").write_text(json.dumps(rows))
        if len(rows) > 3:
            raise CheckpointError("rows: takes 3 at most")
        return ["rows lose nothing"]


def plugin(*formats: type[ptkit.AdapterFormat]) -> Any:
    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_adapter_formats(self) -> list[type[ptkit.AdapterFormat]]:
            return list(formats)

    return Plugin()


@pytest.fixture
def formats(registry: Registry) -> Registry:
    registry.register(plugin(RowsFormat), Owner("rows", "ptkit-rows", "1.0"))
    assert not registry.failures
    return registry


def broken(**methods: Any) -> type[Any]:
    return type("Broken", (RowsFormat,), {"name": "broken", **methods})


def boom(*args: Any, **kwargs: Any) -> Any:
    raise KeyError("a\nb")


REPORT = "report it to the plugin's author with the traceback that PTKIT_DEBUG=1 shows"


@pytest.mark.parametrize(
    ("methods", "line"),
    [
        ({"write": boom}, "{target}: {form}: write() raised KeyError: 'a\\nb'; {report}"),
        (
            {"write": lambda *a: None},
            "{target}: {form}: write() must return a list of lines, got NoneType; {report}",
        ),
        (
            {"__init__": boom},
            "adapters.kind 'broken' (ptkit-bad 2.0): Broken() raised KeyError: 'a\\nb'; {report}",
        ),
    ],
)
def test_a_broken_format_is_a_line_and_leaves_nothing(
    methods: dict[str, Any],
    line: str,
    registry: Registry,
    make_adapter: MakeAdapter,
    tmp_path: Path,
) -> None:
    registry.register(plugin(broken(**methods)), Owner("bad", "ptkit-bad", "2.0"))
    target, form = tmp_path / "out", "adapter format 'broken' (ptkit-bad 2.0)"
    expected = line.format(target=target, form=form, report=REPORT)
    assert refusal(registry, make_adapter(), target, "broken") == expected
    assert not target.exists()


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (boom, "raised KeyError: 'a\\nb'"),
        (lambda *a: None, "must return a dict of tensors, got NoneType"),
    ],
)
def test_a_format_that_cannot_read(
    read: Any, problem: str, registry: Registry, tmp_path: Path
) -> None:
    registry.register(plugin(broken(read=read)), Owner("bad", "ptkit-bad", "2.0"))
    (tmp_path / "rows.json").write_text("[]")
    line = refusal(registry, tmp_path, tmp_path / "out", "ptkit", backbone="tiny")
    assert line == (
        f"{tmp_path}: adapter format 'broken' (ptkit-bad 2.0): read() {problem}; {REPORT}"
    )


def test_a_format_that_cannot_tell_matters_only_if_no_other_can(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    formats.register(plugin(broken(recognises=boom)), Owner("bad", "ptkit-bad", "2.0"))
    convert(make_adapter(), tmp_path / "rows", "rows", registry=formats)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError) as refused:
        convert(tmp_path / "empty", tmp_path / "out", "ptkit", registry=formats)
    first, second = refused.value.lines
    assert first.startswith(f"{tmp_path / 'empty'}: is no adapter of a known format")
    assert second == (
        f"{tmp_path / 'empty'}: adapter format 'broken' (ptkit-bad 2.0): recognises() raised "
        f"KeyError: 'a\\nb'; {REPORT}"
    )


def refusal(registry: Registry, *arguments: Any, **options: Any) -> str:
    with pytest.raises(PtkitError) as refused:
        convert(*arguments, **options, registry=registry)
    (line,) = refused.value.lines
    return line


def test_a_third_partys_format_goes_out_and_comes_in(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder, rows, back = make_adapter(), tmp_path / "rows", tmp_path / "back"
    done = convert(folder, rows, "rows", registry=formats)
    assert done == Converted("ptkit", 3, None, ("rows lose nothing",))
    done = convert(rows, back, "ptkit", backbone="tiny", registry=formats)
    assert done == Converted("rows", 3, None, ())
    one, two = (path / "prefix.safetensors" for path in (folder, back))
    assert one.read_bytes() == two.read_bytes()
    assert ptkit.load("tiny", back, registry=formats, device="cpu").generate(["类型#裙"])
    assert load_adapter(back).manifest["imported_from"] == "rows"


def test_a_run_folder_stands_for_its_adapter(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    make_adapter("run/adapter")
    assert convert(tmp_path / "run", tmp_path / "x", "rows", registry=formats).found == "ptkit"


def test_the_target_may_be_an_empty_folder(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder, target = make_adapter(), tmp_path / "empty"
    target.mkdir()
    convert(folder, target, "rows", registry=formats)
    assert refusal(formats, folder, target, "rows") == (
        f"{target}: exists and is not empty; choose another folder"
    )
    file = target / "rows.json"
    assert refusal(formats, folder, file, "rows").startswith(f"{file}: exists and is not empty")


def test_a_format_that_fails_leaves_nothing(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = make_adapter()
    adapter = load_adapter(folder)
    longer = PrefixEncoder(TinyBackbone().geometry, 4)
    kept = {k: v for k, v in adapter.manifest.items() if k in ("backbone", "task", "recipe")}
    save_adapter(folder, longer, {}, kept)
    before = sorted(tmp_path.rglob("*"))
    assert refusal(formats, folder, tmp_path / "x", "rows") == "rows: takes 3 at most"
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_not_recognised(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder, target = make_adapter(), tmp_path / "x"
    wanted = (
        f"{tmp_path}: is no adapter of a known format; looked for adapter.json (ptkit), "
        "adapter_config.json (peft), rows.json (rows)"
    )
    moved = folder.rename(tmp_path / "elsewhere")
    assert refusal(formats, tmp_path, target, "ptkit", backbone="tiny") == wanted
    no = tmp_path / "no"
    assert refusal(formats, no, target, "ptkit") == f"{no}: no such folder"
    file = moved / "adapter.json"
    wanted = f"{file}: is a file; give the folder that it lies in"
    assert refusal(formats, file, target, "peft") == wanted
    (moved / "rows.json").write_text("[]")
    wanted = f"{moved}: could be an adapter of ptkit and of rows; put one into a folder of its own"
    assert refusal(formats, moved, target, "peft") == wanted


def test_names(formats: Registry, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    folder, target = make_adapter(), tmp_path / "x"
    assert refusal(formats, folder, target, "pfet") == (
        "--to: unknown format 'pfet' (did you mean 'peft'?); there are: peft, ptkit, rows"
    )
    assert refusal(formats, folder, target, "ptkit") == (
        f"{folder}: is a ptkit adapter already; copy the folder"
    )


@pytest.mark.parametrize("taken", ["peft", "ptkit"])
def test_a_plugin_cannot_take_our_names(registry: Registry, tmp_path: Path, taken: str) -> None:
    mine = type("Mine", (RowsFormat,), {"name": taken})
    registry.register(plugin(mine), Owner("mine", "ptkit-mine", "1.0"))
    assert refusal(registry, tmp_path, tmp_path / "x", "ptkit") == (
        f"{taken!r} is registered by both ptkit itself and ptkit-mine 1.0; rename the format of "
        "the latter"
    )


def test_two_plugins_with_one_name(formats: Registry, tmp_path: Path) -> None:
    formats.register(plugin(RowsFormat), Owner("twin", "ptkit-twin", "2.0"))
    with pytest.raises(PluginError, match="'rows' is registered by both ptkit-rows 1.0 and"):
        convert(tmp_path, tmp_path / "x", "rows", registry=formats)


def test_a_format_for_one_kind_of_backbone(
    registry: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    mine = type("Mine", (RowsFormat,), {"backbone_kind": "other"})
    registry.register(plugin(mine), Owner("mine", "ptkit-mine", "1.0"))
    folder = make_adapter()
    wanted = f"{folder}: the format rows is for 'other', but the base is of kind 'tiny'"
    assert refusal(registry, folder, tmp_path / "x", "rows") == wanted
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.json").write_text("[]")
    found = refusal(registry, rows, tmp_path / "x", "ptkit", backbone="tiny", kind="tiny")
    assert found == wanted.replace(str(folder), str(rows))


def test_a_base_that_is_not_the_adapters(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder, target = make_adapter(), tmp_path / "x"
    options = {"backbone": "tiny", "overrides": ["backbone.seed=7"]}
    assert "was made for fingerprint" in refusal(formats, folder, target, "rows", **options)
    options["overrides"] = ["task.max_source_tokens=7"]
    assert refusal(formats, folder, target, "rows", **options) == (
        "--set task: can't be changed here; what can: backbone"
    )


def test_a_head_has_no_place_elsewhere(
    formats: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = make_adapter()
    adapter = load_adapter(folder)
    kept = {k: v for k, v in adapter.manifest.items() if k in ("backbone", "task", "recipe")}
    save_adapter(folder, adapter.prefix, {"weight": torch.ones(2)}, kept)
    assert refusal(formats, folder, tmp_path / "x", "peft") == (
        f"{folder}: has a trained head (head.safetensors), and peft holds prefixes only"
    )


# ------------------------------------------------------------------------------ PEFT's folder


@pytest.fixture
def exported(registry: Registry, make_adapter: MakeAdapter, tmp_path: Path) -> Path:
    convert(make_adapter(), tmp_path / "peft", "peft", registry=registry)
    return tmp_path / "peft"


def test_what_peft_is_told(exported: Path) -> None:
    """Keys and values of 2 groups of 8 in 2 layers, 3 virtual tokens."""
    config = json.loads((exported / "adapter_config.json").read_text())
    assert config == {
        "base_model_name_or_path": None,
        "encoder_hidden_size": 16,
        "inference_mode": True,
        "num_attention_heads": 2,
        "num_layers": 2,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": 3,
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "task_type": "CAUSAL_LM",
        "token_dim": 16,
    }
    (tensor,) = load_file(exported / "adapter_model.safetensors").values()
    assert list(tensor.shape) == [3, 64]


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda f: set_config(f, peft_type="LORA"),
            "adapter_config.json: peft_type must be 'PREFIX_TUNING', got 'LORA'; only a prefix can "
            "become a prefix",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text("[]"),
            "adapter_config.json: peft_type must be 'PREFIX_TUNING', got None; only a prefix can "
            "become a prefix",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text("{"),
            "adapter_config.json: can't be read: Expecting property name",
        ),
        (
            lambda f: set_config(f, num_transformer_submodules=2),
            "adapter_config.json: num_transformer_submodules must be 1, got 2; models with an "
            "encoder and a decoder are not supported",
        ),
        (
            lambda f: set_config(f, num_virtual_tokens=4),
            f"{WEIGHTS}: prompt_embeddings has the shape [3, 64], but adapter_config.json has "
            "num_virtual_tokens 4",
        ),
        (
            lambda f: (f / "adapter_config.json").write_text('{"peft_type": "PREFIX_TUNING"}'),
            "has the shape [3, 64], but adapter_config.json has num_virtual_tokens None",
        ),
        (
            lambda f: (f / WEIGHTS).unlink(),
            f"{WEIGHTS}: is missing; pickled weights are not read",
        ),
        (lambda f: (f / WEIGHTS).write_bytes(b"cut"), f"{WEIGHTS}: can't be read: "),
        (
            lambda f: save_file(
                {"a": torch.ones(1), "prompt_embeddings": torch.ones(1)}, f / WEIGHTS
            ),
            f"{WEIGHTS}: must hold prompt_embeddings and no other tensor, got a, prompt_embeddings",
        ),
        (
            lambda f: save_file({"prompt_embeddings": torch.ones(3, 96)}, f / WEIGHTS),
            "has 96 numbers a virtual token, as 3 such layers have, but tiny takes 64",
        ),
    ],
)
def test_what_is_wrong_with_a_peft_folder(
    registry: Registry, exported: Path, tmp_path: Path, damage: Callable[[Path], Any], line: str
) -> None:
    damage(exported)
    said = refusal(registry, exported, tmp_path / "x", "ptkit", backbone="tiny")
    assert said.startswith(str(exported))
    assert line in said
    assert not (tmp_path / "x").exists()


def test_peft_needs_a_model_that_reads_forwards(
    registry: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = make_adapter(backbone={"causal": False})
    assert refusal(registry, folder, tmp_path / "x", "peft") == (
        "tiny: reads in both directions, and only prefixes of causal language models are written "
        "for PEFT"
    )


# ------------------------------------------------------------------------------ positions


def keys_at(loaded: ptkit.LoadedBackbone, first: int) -> torch.Tensor:
    """[l, g, p, d]: the keys that the model has for three tokens from position ``first`` on."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.no_grad():
        loaded.body(
            input_ids=torch.tensor([[5, 6, 7]]),
            position_ids=torch.arange(first, first + 3)[None],
            past_key_values=cache,
            use_cache=True,
        )
    return torch.cat([layer.keys for layer in cache.layers])


def llama() -> ptkit.LoadedBackbone:
    """Rotates halves of the head and not pairs of channels, and stretches queries and keys."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    body = LlamaModel(
        LlamaConfig(
            vocab_size=20,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.2,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        )
    )
    return ptkit.LoadedBackbone(body.eval(), [layer.self_attn for layer in body.layers])


@pytest.mark.parametrize("make", [lambda: TinyBackbone().load("cpu", "float32"), llama])
def test_moved_keys_are_those_of_the_model(make: Callable[[], ptkit.LoadedBackbone]) -> None:
    loaded = make()
    here, there = keys_at(loaded, 2), keys_at(loaded, 9)
    assert not torch.allclose(here, there, atol=0.1)
    torch.testing.assert_close(rotated(loaded, here, 7), there, atol=1e-5, rtol=0)
    back = rotated(loaded, rotated(loaded, here, 7), -7)
    torch.testing.assert_close(back, here, atol=1e-6, rtol=0)


def test_positions_in_a_table_cannot_be_moved() -> None:
    from transformers import GPT2Config, GPT2Model

    body = GPT2Model(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    loaded = ptkit.LoadedBackbone(body, [body.h[0].attn])
    with pytest.raises(CheckpointError) as refused:
        rotated(loaded, torch.ones(1, 2, 3, 4), 3)
    assert refused.value.lines == (
        "GPT2Model has positions (wpe: Embedding) that can't be moved: PEFT counts real tokens "
        "from the prefix's length on, ptkit from 0",
    )


def test_a_model_without_positions_keeps_its_keys() -> None:
    body = torch.nn.Sequential(torch.nn.Linear(2, 2))
    keys = torch.ones(1, 2, 3, 4)
    loaded = ptkit.LoadedBackbone(body, [body[0]])  # type: ignore[arg-type]
    assert rotated(loaded, keys, 3) is keys
