"""The adapter folder: what a run leaves to be used, and everything needed to check that it fits.

``adapter.json`` (what it is and fits), ``prefix.safetensors``, and ``head.safetensors`` if the head
has a module. Nothing in it is executed, no path in it is followed, and its files are known by their
SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ptkit.components import TaskHead
from ptkit.engine.files import save_tensors, whole_folder, write_json
from ptkit.engine.prefix import PrefixEncoder
from ptkit.errors import CheckpointError
from ptkit.manifest import FORMAT, MANIFEST, bytes_inside, checksum, read_manifest
from ptkit.models import Backbone
from ptkit.records import Geometry

PREFIX = "prefix.safetensors"
HEAD = "head.safetensors"


@dataclass
class Adapter:
    """A prefix, a head's weights, and the manifest that says what they fit."""

    manifest: dict[str, Any]
    prefix: PrefixEncoder
    head: dict[str, Tensor] = field(default_factory=dict)
    folder: Path = field(default=Path("adapter"), compare=False)

    @property
    def checksum(self) -> str:
        """The SHA-256 of what adapter.json says; that includes the hashes of the other files."""
        return str(self.manifest["checksum"])

    @property
    def length(self) -> int:
        """Virtual tokens a layer."""
        return self.prefix.length

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["task"]["labels"])

    def load_head(self, head: TaskHead, module: nn.Module | None) -> None:
        """Put the head's weights into the module that ``head`` built. Raises `CheckpointError`."""
        wanted = {} if module is None else _shapes(module.state_dict())
        got = _shapes(self.head)
        if wanted != got:
            raise CheckpointError(
                f"{self.folder / HEAD}: doesn't match task {head.name!r}: expected "
                f"{_short(wanted)}, got {_short(got)}"
            )
        if module is not None:
            module.load_state_dict(self.head)
            module.eval().requires_grad_(False)

    def check_fits(self, backbone: Backbone) -> list[str]:
        """Raise `CheckpointError`, a line a difference, unless it was made for this backbone.

        Returns warnings about what may change answers a little: a base that is quantised otherwise.
        """
        mine = self.manifest["backbone"]
        theirs = describe_backbone(backbone)
        problems = [
            f"{self.folder}: was made for {key} {_short(mine.get(key))}, but the backbone has "
            f"{_short(theirs[key])}"
            for key in ("kind", "geometry", "tokenizer", "fingerprint")
            if mine.get(key) != theirs[key]
        ]
        then, now = mine.get("variant", {}), theirs["variant"]
        problems += [
            f"{self.folder}: was made with backbone.{key} = {json.dumps(then[key])}, "
            f"but here it is {json.dumps(now[key])}"
            for key in sorted(then.keys() & now.keys())
            if then[key] != now[key]
        ]
        if problems:
            raise CheckpointError(*problems)
        rounded, here = mine.get("quantization", "none"), theirs["quantization"]
        if rounded == here:
            return []
        return [
            f"{self.folder}: was made on a base with quantization {rounded}, here it is {here}: "
            "answers may differ"
        ]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}


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
        "variant": dict(backbone.variant),
        "quantization": backbone.quantization,
    }


def save_adapter(
    folder: Path,
    prefix: PrefixEncoder,
    head: Mapping[str, Tensor],
    manifest: Mapping[str, Any],
) -> None:
    """Write an adapter folder, whole or not at all.

    ``manifest``: JSON values with at least "backbone" (`describe_backbone`), "task" with its kind
    and labels, and "recipe".
    """
    described = {
        "format": FORMAT,
        "prefix": {
            "length": prefix.length,
            "projection_hidden_size": prefix.projection_hidden_size,
        },
        **manifest,
    }
    with whole_folder(folder) as partial:
        save_tensors(partial / PREFIX, prefix.state_dict())
        if head:
            save_tensors(partial / HEAD, head)
        described["files"] = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(partial.iterdir())
        }
        write_json(partial / MANIFEST, {**described, "checksum": checksum(described)})


def load_adapter(path: str | Path) -> Adapter:
    """The adapter of a folder, or of the run folder that it lies in, on the CPU.

    Raises `CheckpointError` if it is not whole, was altered, or is of another version.
    """
    folder, manifest = read_manifest(Path(path))
    manifest_path = folder / MANIFEST
    try:
        geometry = Geometry(
            **manifest["backbone"]["geometry"], heads=0, max_positions=0, parameters=0
        )
        with torch.device("meta"):  # no memory until its shapes are known to be the file's
            prefix = PrefixEncoder(geometry, **manifest["prefix"])
        files, task = dict(manifest["files"]), manifest["task"]
        if not isinstance(task["kind"], str) or not isinstance(task["labels"], list):
            raise TypeError("task.kind must be a string, task.labels a list")
        if not isinstance(manifest["backbone"]["kind"], str):
            raise TypeError("backbone.kind must be a string")
        if not isinstance(manifest["recipe"], dict):
            raise TypeError("recipe must be a table")
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{manifest_path}: is damaged ({error!r})") from None
    strange = sorted(set(files) - {PREFIX, HEAD})
    if strange or PREFIX not in files:
        names = ", ".join(strange) or "no weights"
        raise CheckpointError(
            f"{manifest_path}: names {names}; an adapter has {PREFIX}, perhaps {HEAD}, and no other"
        )
    tensors = {name: _read(folder, name, digest) for name, digest in files.items()}
    wanted, got = _shapes(prefix.state_dict()), _shapes(tensors[PREFIX])
    if wanted != got:
        raise CheckpointError(
            f"{folder / PREFIX}: doesn't match {MANIFEST}: expected {wanted}, got {got}"
        )
    prefix.load_state_dict(tensors[PREFIX], assign=True)
    prefix.requires_grad_(False)
    return Adapter(manifest, prefix, tensors.get(HEAD, {}), folder)


def _read(folder: Path, name: str, digest: object) -> dict[str, Tensor]:
    content, path = bytes_inside(folder, name), folder / name
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(
            f"{path}: was altered or cut short after it was made (its SHA-256 is another); "
            "the adapter is not whole"
        )
    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
