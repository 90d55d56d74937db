"""The adapter folder: what a run leaves to be used, and everything needed to check that it fits.

``adapter.json`` (what it is and fits), ``prefix.safetensors``, and ``head.safetensors`` if the head has
a module. Nothing in it is executed, and it holds no absolute path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptkit.components import Backbone
from ptkit.engine.files import save_tensors, whole_folder, write_json
from ptkit.engine.prefix import PrefixEncoder
from ptkit.errors import CheckpointError
from ptkit.records import Geometry

FORMAT = 1
MANIFEST = "adapter.json"
PREFIX = "prefix.safetensors"
HEAD = "head.safetensors"


@dataclass
class Adapter:
    """A prefix, a head's weights, and the manifest that says what they fit."""

    manifest: dict[str, Any]
    prefix: PrefixEncoder
    head: dict[str, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Virtual tokens a layer."""
        return self.prefix.length

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["task"]["labels"])

    def check_fits(self, backbone: Backbone) -> None:
        """Raise `CheckpointError`, a line a difference, unless it was made for this backbone."""
        mine = self.manifest["backbone"]
        theirs = describe_backbone(backbone)
        problems = [
            f"adapter: was made for {key} {_short(mine.get(key))}, but the backbone has "
            f"{_short(theirs[key])}"
            for key in ("kind", "geometry", "tokenizer", "fingerprint")
            if mine.get(key) != theirs[key]
        ]
        if problems:
            raise CheckpointError(*problems)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 400 else f"{text[:400]}…"


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """What an adapter remembers of its backbone."""
    shape = backbone.geometry
    return {
        "kind": backbone.name,
        "name": Path(backbone.settings.source.name).name,
        "geometry": {
            "layers": shape.layers,
            "kv_groups": shape.kv_groups,
            "head_size": shape.head_size,
            "hidden_size": shape.hidden_size,
            "vocab_size": shape.vocab_size,
        },
        "tokenizer": backbone.tokenizer.fingerprint,
        "fingerprint": backbone.fingerprint,
    }


def save_adapter(
    folder: Path,
    prefix: PrefixEncoder,
    head: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
) -> None:
    """Write an adapter folder, whole or not at all."""
    hidden = None if prefix.trans is None else prefix.trans[0].out_features
    described = {
        "format": FORMAT,
        "prefix": {"length": prefix.length, "projection_hidden_size": hidden},
        **manifest,
    }
    with whole_folder(folder) as partial:
        save_tensors(partial / PREFIX, prefix.state_dict())
        if head:
            save_tensors(partial / HEAD, head)
        write_json(partial / MANIFEST, described)


def load_adapter(path: str | Path) -> Adapter:
    """The adapter of a folder, on the CPU. Raises `CheckpointError` if it is not whole."""
    folder = Path(path)
    manifest_path = folder / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        hint = f"; did you mean {folder / 'adapter'}?" if (folder / "adapter").is_dir() else ""
        raise CheckpointError(f"{folder}: is no adapter, it has no {MANIFEST}{hint}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{manifest_path}: can't be read: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise CheckpointError(
            f"{manifest_path}: format must be {FORMAT}, got {got!r}; "
            "it was made by another version of ptkit"
        )
    try:
        shape = manifest["backbone"]["geometry"]
        geometry = Geometry(**shape, heads=0, max_positions=0, parameters=0)
        prefix = PrefixEncoder(geometry, **manifest["prefix"])
        labels = manifest["task"]["labels"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{manifest_path}: is damaged ({error!r})") from None
    assert isinstance(labels, list)
    tensors = _read(folder / PREFIX)
    wanted = {name: tuple(t.shape) for name, t in prefix.state_dict().items()}
    got_shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    if wanted != got_shapes:
        raise CheckpointError(
            f"{folder / PREFIX}: doesn't match {MANIFEST}: expected {wanted}, got {got_shapes}"
        )
    prefix.load_state_dict(tensors)
    prefix.requires_grad_(False)
    head = _read(folder / HEAD) if (folder / HEAD).exists() else {}
    return Adapter(manifest, prefix, head)


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}; the adapter is not whole") from None
