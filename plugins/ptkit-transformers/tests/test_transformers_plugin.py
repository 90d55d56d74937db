"""The plugin in recipes: training on a folder, refusals before training, models of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import ptkit_transformers
import pytest

import ptkit
from ptkit.cli import main

MakeFolder = Callable[..., Path]
SaveWeights = Callable[..., Any]

RECIPE = """
ptkit = 1
[backbone]
kind = "{kind}"
source = "model"
[prefix]
length = 2
[dataset]
kind = "instruction"
train = "rows.jsonl"
validation = "rows.jsonl"
[task]
kind = "generation"
max_source_tokens = 8
max_target_tokens = 4
[train]
max_steps = 2
batch_size = 2
"""


@pytest.fixture
def make_recipe(tmp_path: Path) -> Callable[..., Path]:
    """A recipe beside the folder "model"."""

    def make(kind: str) -> Path:
        rows = [{"instruction": "hello", "output": "world"}] * 4
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(kind=kind), encoding="utf-8")
        return path

    return make


def llama(make_folder: MakeFolder, **changes: Any) -> Path:
    return make_folder(
        model_type="llama", num_key_value_heads=1, eos_token_id=3, bos_token_id=2, **changes
    )


def test_a_llama_trains_and_is_loaded_again(
    make_folder: MakeFolder,
    make_recipe: Callable[..., Path],
    save_weights: SaveWeights,
    tmp_path: Path,
) -> None:
    save_weights(llama(make_folder), "AutoModelForCausalLM")
    result = ptkit.run(make_recipe("causal-lm"), out=tmp_path / "run", device="cpu")
    tuned = ptkit.load(tmp_path / "model", result.adapter, device="cpu")
    with tuned.adapter_off():
        untuned = tuned.logits("hello")
    assert untuned.shape == tuned.logits("hello").shape
    assert not untuned.equal(tuned.logits("hello"))


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("kind", "family", "reason"),
    [
        ("encoder", "deberta-v2", "its attention adds scores of relative positions"),
        ("encoder", "mpnet", "its attention is computed in the model itself"),
        ("causal-lm", "bloom", "its attention adds a bias of distances (ALiBi)"),
        ("causal-lm", "mamba", "its layers keep a state instead of keys and values"),
    ],
)
def test_refused_families_end_a_command_in_one_line(
    make_folder: MakeFolder,
    make_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    kind: str,
    family: str,
    reason: str,
) -> None:
    folder = make_folder(model_type=family)  # without weights: none are looked for
    out = ["--out", str(tmp_path / "run")] if command == "run" else []
    assert main([command, str(make_recipe(kind)), *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    start = f"{folder / 'config.json'}: model_type {family!r} is not supported: {reason}"
    assert start in line
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------ the hub


class Hub:
    """Stands for the hub: what it has, what the cache has, and what was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str | None, bool]] = []
        self.has: set[str] = set()
        self.cached = False

    def __call__(
        self, repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool
    ) -> str:
        self.asked.append((repo, revision, local_files_only))
        if local_files_only and not self.cached:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        if not self.has:
            raise OSError("404:\nno such model")  # what the library's errors are
        for name in self.has:
            if any(Path(name).match(pattern) for pattern in allow_patterns):
                (self.folder / name).write_text("", encoding="utf-8")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made)
    return made


def test_a_model_is_downloaded_once(hub: Hub) -> None:
    small = {"config.json", "chat_template.jinja"}
    hub.has = {*small, "model.safetensors", "pytorch_model.bin", "code.py"}
    assert ptkit_transformers.ptkit_resolve_source("hub:owner/name@v1.0") == hub.folder
    assert hub.asked == [("owner/name", "v1.0", True), ("owner/name", "v1.0", False)]
    found = {path.name for path in hub.folder.iterdir()}
    assert found == {*small, "model.safetensors"}  # neither pickles nor code
    hub.cached, hub.asked = True, []
    assert ptkit_transformers.ptkit_resolve_source("hub:owner/name") == hub.folder
    assert hub.asked == [("owner/name", None, True)]


def test_pickles_are_taken_where_there_is_nothing_else(hub: Hub) -> None:
    hub.has = {"config.json", "pytorch_model.bin"}
    assert ptkit_transformers.ptkit_resolve_source("hub:name") == hub.folder
    assert (hub.folder / "pytorch_model.bin").exists()


def test_other_names_are_left_alone(hub: Hub) -> None:
    assert ptkit_transformers.ptkit_resolve_source("owner/name") is None
    assert hub.asked == []


def refusal(source: str) -> str:
    with pytest.raises(ptkit.PtkitError) as refused:
        ptkit_transformers.ptkit_resolve_source(source)
    (line,) = refused.value.lines
    return line


def test_names_that_cant_be_had(hub: Hub) -> None:
    assert refusal("hub:a/b/c") == "'hub:a/b/c': must be hub:owner/name or hub:owner/name@revision"
    line = refusal("hub:owner/name")
    assert line.startswith("'hub:owner/name': can't be downloaded (404: no such model")
    assert line.endswith("); check the name and the network, or name a local folder")
    hub.has = {"README.md"}
    assert refusal("hub:owner/name") == (
        "'hub:owner/name': has no config.json with .safetensors or .bin weights; name another model"
    )
