"""What an adapter folder is refused for: damage, another version, paths, what isn't installed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ptkit
from ptkit.engine.adapter import load_adapter, save_adapter
from ptkit.engine.assembly import assemble
from ptkit.engine.tuned import load
from ptkit.errors import CheckpointError, PtkitError, RecipeError
from ptkit.manifest import checksum
from ptkit.registry import Owner, Registry, empty_registry
from ptkit.settings import Source

MakeAdapter = Callable[..., Path]


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and make its checksum right again, as an attacker would."""
    path = folder / "adapter.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps({**manifest, "checksum": checksum(manifest)}), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_adapter(folder)
    assert len(refused.value.lines) == 1
    return str(refused.value)


def test_it_is_saved_and_loaded(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "prefix.safetensors"]
    adapter = load_adapter(folder)
    assert adapter.length == 3
    assert adapter.folder == folder
    assert len(adapter.checksum) == 64
    again = make_adapter("again")
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_a_run_folder_stands_for_its_adapter(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    make_adapter("run/adapter")
    assert load_adapter(tmp_path / "run").folder == tmp_path / "run" / "adapter"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no") == f"{tmp_path / 'no'}: no such adapter folder"


def test_what_was_probably_meant(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    (tmp_path / "runs" / "stopped" / "checkpoints").mkdir(parents=True)
    (tmp_path / "runs" / "stopped" / "recipe.toml").touch()
    make_adapter("runs/first/adapter")
    make_adapter("runs/second/adapter")
    runs = tmp_path / "runs"
    assert refusal(runs / "frist") == (
        f"{runs / 'frist'}: no such adapter folder (did you mean 'first'?)"
    )
    assert refusal(runs) == (
        f"{runs}: is no adapter, it has no adapter.json; name one of its runs, such as "
        f"{runs / 'second'}"
    )
    stopped = runs / "stopped"
    assert refusal(stopped) == (
        f"{stopped}: is no adapter, it has no adapter.json: the run is not finished; go on with: "
        f"ptkit run {stopped / 'recipe.toml'} --out {stopped} --resume"
    )


@pytest.mark.skipif(os.name != "posix", reason="needs the file modes of Unix")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_its_files_can_be_read_by_whom_the_umask_lets(
    make_adapter: MakeAdapter, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        folder = make_adapter()
    finally:
        os.umask(before)
    files = [path for path in folder.iterdir() if path.is_file()]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        path.name: mode for path in files
    }
    assert "prefix.safetensors" in {path.name for path in files}


def flip(path: Path) -> None:
    """Change the last byte: a number of a tensor, so that the file can still be read."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "line"),
    [
        (flip, "prefix.safetensors", "was altered or cut short after it was made"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "prefix.safetensors", "cut short"),
        (lambda p: p.unlink(), "prefix.safetensors", "is missing; the adapter is not whole"),
        (lambda p: (p.unlink(), p.mkdir()), "prefix.safetensors", "can't be read: Is a directory"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "adapter.json", "can't be read"),
        (lambda p: p.write_bytes(b"\xff\xfe"), "adapter.json", "can't be read"),
        (lambda p: p.write_text("[" * 100_000), "adapter.json", "can't be read"),
        (
            lambda p: p.write_text(p.read_text().replace('"max_steps": 6', '"max_steps": 7')),
            "adapter.json",
            "was altered after it was made",
        ),
        (lambda p: p.write_text('{"format": 1}'), "adapter.json", "it has no checksum"),
        (
            lambda p: p.write_text('{"format": 2}'),
            "adapter.json",
            "format must be 1, got 2; it was made by a newer version of ptkit",
        ),
        (
            lambda p: p.write_text('{"format": 0}'),
            "adapter.json",
            "format must be 1, got 0; it was made by another version of ptkit",
        ),
        (lambda p: p.write_text('{"format": true}'), "adapter.json", "format must be 1, got True"),
    ],
)
def test_damage_is_named(
    make_adapter: MakeAdapter, damage: Callable[[Path], Any], name: str, line: str
) -> None:
    folder = make_adapter()
    damage(folder / name)
    said = refusal(folder)
    assert said.startswith(f"{folder / name}: ")
    assert line in said


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda m: m["files"].update({"../prefix.safetensors": "0"}),
            "names ../prefix.safetensors",
        ),
        (lambda m: m["files"].update({"/etc/passwd": "0"}), "names /etc/passwd"),
        (lambda m: m["files"].clear(), "names no weights"),
        (lambda m: m.pop("files"), "is damaged (KeyError('files'))"),
        (lambda m: m.update(files=3), "is damaged"),
        (lambda m: m["task"].update(labels="ab"), "labels a list"),
        (lambda m: m["backbone"].update(kind=3), "backbone.kind must be a string"),
        (lambda m: m.update(recipe=[]), "recipe must be a table"),
        (lambda m: m["backbone"]["geometry"].update(layers=-1), "is damaged"),
        (lambda m: m["prefix"].update(length=4), "prefix.safetensors: doesn't match adapter.json"),
        (lambda m: m["prefix"].update(evil=4), "is damaged"),
    ],
)
def test_a_manifest_that_asks_for_more_is_refused(
    make_adapter: MakeAdapter, change: Callable[[dict[str, Any]], Any], line: str
) -> None:
    folder = make_adapter()
    rewrite(folder, change)
    assert line in refusal(folder)


def test_something_else_under_the_right_hash_is_refused(make_adapter: MakeAdapter) -> None:
    import hashlib

    folder = make_adapter()
    (folder / "prefix.safetensors").write_bytes(b"no tensors")
    digest = hashlib.sha256(b"no tensors").hexdigest()
    rewrite(folder, lambda m: m["files"].update({"prefix.safetensors": digest}))
    assert "prefix.safetensors: can't be read: " in refusal(folder)


@pytest.mark.parametrize("name", ["prefix.safetensors", "adapter.json"])
def test_a_link_out_of_the_folder_is_refused(
    make_adapter: MakeAdapter, tmp_path: Path, name: str
) -> None:
    folder = make_adapter()
    outside = (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(outside)
    wanted = f"{folder / name}: is a link out of the adapter, to {outside}; put the file there"
    assert refusal(folder) == wanted


def test_the_folder_itself_may_be_a_link(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(make_adapter())
    load_adapter(tmp_path / "link")


# ---------------------------------------------------------------------- what isn't installed


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: m["task"].update(kind="taks"), "task.kind: unknown kind 'taks'; installed: gen"),
        (
            lambda m: m["recipe"]["dataset"].update(kind="adgn"),
            "dataset.kind: unknown kind 'adgn' (did you mean 'adgen'?); installed: adgen",
        ),
        (lambda m: m["recipe"].pop("dataset"), "dataset.kind: is missing; installed: adgen"),
        (
            lambda m: m["recipe"]["metrics"][0].update(kind="bleu"),
            "metrics.0.kind: unknown kind 'bleu'",
        ),
        (lambda m: m["recipe"]["task"].update(depth=3), "task.depth: unknown key"),
        (lambda m: m["recipe"].update(dataset=3), "is damaged: recipe.dataset must be a table"),
        (lambda m: m["recipe"].update(metrics=3), "recipe.metrics must be a list of tables"),
        (lambda m: m["recipe"].update(metrics=[3]), "recipe.metrics must be a list of tables"),
    ],
)
def test_what_is_not_installed_is_the_registrys_line(
    make_adapter: MakeAdapter,
    registry: Registry,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    line: str,
) -> None:
    folder = make_adapter()
    rewrite(folder, change)
    with pytest.raises(PtkitError) as refused:
        assemble(
            load_adapter(folder), registry, data=str(tmp_path / "validation.json"), scored=True
        )
    (said,) = refused.value.lines
    assert said.startswith(f"{folder / 'adapter.json'}: ")
    assert line in said


def test_a_backbone_that_is_not_installed(make_adapter: MakeAdapter) -> None:
    adapter = load_adapter(make_adapter())
    with pytest.raises(PtkitError, match="unknown kind 'tiny'; none is installed"):
        load("x", adapter, registry=empty_registry())


def test_a_base_without_a_name_must_be_given(
    make_adapter: MakeAdapter, registry: Registry, tmp_path: Path
) -> None:
    folder = make_adapter()

    def on_a_folder(manifest: dict[str, Any]) -> None:
        manifest["backbone"]["name"] = manifest["recipe"]["backbone"]["source"] = "my-model"

    rewrite(folder, on_a_folder)
    with pytest.raises(PtkitError) as refused:
        load(None, folder, registry=registry)
    (line,) = refused.value.lines
    assert line == (
        f"{folder}: was made on 'my-model', which is the name of no plugin's model; "
        "give the folder of that model with --backbone (in Python: backbone=)"
    )
    (tmp_path / "my-model").mkdir()
    assert load(tmp_path / "my-model", folder, registry=registry, device="cpu").enabled
    with pytest.raises(PtkitError, match="neither an adapter nor a base model is given"):
        load(registry=registry)


def test_the_recipe_settings_of_the_base_are_kept(
    make_adapter: MakeAdapter, registry: Registry
) -> None:
    """An adapter made on seed 7 does not fit seed 0, and is loaded on 7."""
    folder = make_adapter(backbone={"seed": 7, "dtype": "bfloat16"})
    tuned = load("tiny", folder, registry=registry, device="cpu")
    assert tuned.model.dtype == torch.bfloat16
    tuned = load("tiny", folder, registry=registry, device="cpu", dtype="float32")
    assert tuned.model.dtype == torch.float32


def test_two_backbones_need_a_kind(registry: Registry) -> None:
    from ptkit.testing import TinyBackbone

    class Other(TinyBackbone):
        name = "other"

    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_backbones(self) -> list[type[ptkit.Backbone]]:
            return [Other]

    registry.register(Plugin(), Owner("other", "ptkit-other", "1.0"))
    with pytest.raises(PtkitError, match="kind of the base model is not given; give one of: other"):
        load("tiny", registry=registry)


# ---------------------------------------------------------------------- paths in a recipe


class Ruled(ptkit.TaskHead):
    """A head with a path and a text that looks like one among its settings, and a module."""

    name = "ruled"
    accepts = ptkit.GenerationRecord
    predicts = "text"

    class Settings(ptkit.Settings):
        rules: Source | None = None
        separator: str = "/"

    settings: Settings

    def build(self, info: ptkit.HeadInfo) -> torch.nn.Module:
        return torch.nn.Linear(info.hidden_size, 2)

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return []

    loss = decode = reference = None  # type: ignore[assignment]


@pytest.fixture
def ruled(registry: Registry) -> Registry:
    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_task_heads(self) -> list[type[ptkit.TaskHead]]:
            return [Ruled]

    registry.register(Plugin(), Owner("ruled", "ptkit-ruled", "1.0"))
    assert not registry.failures
    return registry


def test_paths_lose_their_folders_and_texts_stay(
    ruled: Registry, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    (tmp_path / "rules.txt").write_text("x")
    task = {"kind": "ruled", "rules": str(tmp_path / "rules.txt"), "max_target_tokens": None}
    adapter = load_adapter(make_adapter(task=task))
    assert adapter.manifest["recipe"]["task"] == {
        "kind": "ruled",
        "rules": "rules.txt",
        "separator": "/",
    }


@pytest.mark.parametrize("path", ["rules.txt", "../rules.txt", "/etc/hosts"])
def test_no_path_of_an_adapter_is_followed(
    ruled: Registry,
    make_adapter: MakeAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    (tmp_path / "rules.txt").write_text("x")
    task = {"kind": "ruled", "rules": str(tmp_path / "rules.txt"), "max_target_tokens": None}
    folder = make_adapter(task=task)
    rewrite(folder, lambda m: m["recipe"]["task"].update(rules=path))
    monkeypatch.chdir(tmp_path)
    adapter = load_adapter(folder)
    with pytest.raises(RecipeError) as refused:
        assemble(adapter, ruled, backbone="tiny")
    assert refused.value.lines == (
        f"{folder / 'adapter.json'}: task.rules: {path!r} is no named source, "
        "and paths are taken from --set only",
    )
    parts = assemble(adapter, ruled, backbone="tiny", overrides=['task.rules="rules.txt"'])
    assert parts.head is not None
    assert parts.head.settings.rules.path == tmp_path / "rules.txt"


# ---------------------------------------------------------------------- the head's weights


def saved_head(
    ruled: Registry, make_adapter: MakeAdapter, tensors: dict[str, torch.Tensor]
) -> Path:
    folder = make_adapter(task={"kind": "ruled", "max_target_tokens": None})
    adapter = load_adapter(folder)
    kept = {k: v for k, v in adapter.manifest.items() if k in ("backbone", "task", "recipe")}
    save_adapter(folder, adapter.prefix, tensors, kept)
    return folder


def test_head_weights_are_put_into_the_head(ruled: Registry, make_adapter: MakeAdapter) -> None:
    weights = {"weight": torch.ones(2, 32), "bias": torch.zeros(2)}
    folder = saved_head(ruled, make_adapter, weights)
    assert set(load_adapter(folder).manifest["files"]) == {"head.safetensors", "prefix.safetensors"}
    tuned = load("tiny", folder, registry=ruled, device="cpu")
    assert tuned.module is not None
    assert torch.equal(tuned.module.weight, torch.ones(2, 32))
    assert not tuned.module.training
    assert not tuned.module.weight.requires_grad


@pytest.mark.parametrize(
    ("tensors", "got"),
    [
        ({"weight": torch.ones(3, 32), "bias": torch.zeros(3)}, '{"bias": [3], "weight": [3, 32]}'),
        ({"weight": torch.ones(2, 32)}, '{"weight": [2, 32]}'),
        ({}, "{}"),
    ],
)
def test_head_weights_that_do_not_match_are_one_line(
    ruled: Registry, make_adapter: MakeAdapter, tensors: dict[str, torch.Tensor], got: str
) -> None:
    folder = saved_head(ruled, make_adapter, tensors)
    with pytest.raises(CheckpointError) as refused:
        load("tiny", folder, registry=ruled, device="cpu")
    assert refused.value.lines == (
        f"{folder / 'head.safetensors'}: doesn't match task 'ruled': expected "
        f'{{"bias": [2], "weight": [2, 32]}}, got {got}',
    )


def test_settings_can_be_changed_but_not_everything(
    make_adapter: MakeAdapter, registry: Registry
) -> None:
    folder = make_adapter()
    tuned = load(
        "tiny", folder, registry=registry, device="cpu", overrides=["task.max_target_tokens=2"]
    )
    assert tuned.head is not None
    assert tuned.head.settings.max_target_tokens == 2  # type: ignore[attr-defined]
    with pytest.raises(RecipeError) as refused:
        load("tiny", folder, registry=registry, overrides=["train.max_steps=2"])
    assert refused.value.lines == ("--set train: can't be changed here; what can: backbone, task",)
    with pytest.raises(RecipeError, match=r"task.max_target_tokens: .* \(given by --set\)"):
        load("tiny", folder, registry=registry, overrides=["task.max_target_tokens=0"])


def test_an_absurd_length_takes_no_memory(make_adapter: Callable[..., Path]) -> None:
    """A prefix of ten billion virtual tokens would be terabytes."""
    folder = make_adapter()
    path = folder / "adapter.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["prefix"]["length"] = 10**10
    del manifest["checksum"]
    path.write_text(json.dumps({**manifest, "checksum": checksum(manifest)}), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"doesn't match adapter\.json: expected .*10000000000"
    ):
        ptkit.load_adapter(folder)
