"""Adapters from one program's layout to another's: recognised by content, checked against the base,
written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import ptkit
from ptkit.engine.adapter import HEAD, Adapter, describe_backbone, load_adapter, save_adapter
from ptkit.engine.assembly import backbone_of
from ptkit.engine.files import whole_folder
from ptkit.engine.peft import PeftFormat
from ptkit.engine.prefix import PrefixEncoder
from ptkit.errors import CheckpointError, PluginError, PtkitError, show_traceback, suggestion
from ptkit.interchange import ADAPTER_FORMATS, AdapterFormat
from ptkit.isolation import blamed, check_type
from ptkit.manifest import MANIFEST
from ptkit.models import Backbone
from ptkit.recipe import FORMAT, choose
from ptkit.registry import Choice, Registry, collision, load_plugins
from ptkit.settings import dump

PTKIT = "ptkit"
BUILT_IN: tuple[type[AdapterFormat], ...] = (PeftFormat,)
TASK = "generation"
"""The task of an imported adapter: what other programs' prefixes of language models are for."""


@dataclass(frozen=True)
class Converted:
    """What was done: the format that was found, the prefix, and a line for all that was lost."""

    found: str
    length: int
    projection_hidden_size: int | None
    notes: tuple[str, ...]


def adapter_formats(registry: Registry) -> dict[str, AdapterFormat]:
    """The formats besides ptkit's own, by name. Raises `PluginError` for a name that is taken."""
    formats: dict[str, AdapterFormat] = {f.name: f(f.Settings()) for f in BUILT_IN}
    for name, registered in registry.components[ADAPTER_FORMATS.key].items():
        if name in formats or name == PTKIT:
            raise PluginError(
                f"{name!r} is registered by both ptkit itself and {registered.owner}; rename the "
                "format of the latter"
            )
        component = registered.component
        made = Choice(ADAPTER_FORMATS.key, registered, component.Settings()).create()
        assert isinstance(made, AdapterFormat)
        formats[name] = made
    return formats


def convert(
    source: Path,
    target: Path,
    to: str,
    *,
    backbone: str | None = None,
    kind: str | None = None,
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> Converted:
    """Write the adapter in ``source`` to the new folder ``target`` in the format ``to``.

    ``backbone``: the base, needed unless the adapter is ptkit's and its base has a name or isn't
    needed; ``kind``: the plugin that reads it; ``overrides``: changes to its settings.

    Raises `PtkitError` if something does not fit; nothing is written then.
    """
    registry = registry or load_plugins()
    formats = adapter_formats(registry)
    _check_name(to, formats, registry)
    found = recognised(source, formats)
    if found == to:
        raise PtkitError(f"{source}: is a {to} adapter already; copy the folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PtkitError(f"{target}: exists and is not empty; choose another folder")
    notes: list[str] = []
    base: Backbone | None
    if found == PTKIT:
        adapter = load_adapter(source)
        base = _base_of(adapter, formats[to], registry, backbone, kind, overrides)
    else:
        if backbone is None:
            raise PtkitError(
                f"{source}: is a {found} adapter, which does not say what base it was made for; "
                "name it with --backbone"
            )
        kind = kind or formats[found].backbone_kind
        base = backbone_of(None, registry, source=backbone, kind=kind, overrides=overrides)
        _check_kind(source, formats[found], base.name)
        with blamed(formats[found], "read()", source):
            tensors = formats[found].read(source, base)
            wanted = "a dict of tensors"
            check_type(formats[found], "read()", tensors, dict, wanted, source)
        if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
            notes.append("the numbers were widened to float32")
        prefix = _encoder(source, tensors, base)
        adapter = Adapter(_manifest(base, found, registry), prefix, folder=source)
    whole = Path(os.path.abspath(target))  # a name to put .partial behind, whatever was given
    if to == PTKIT:
        save_adapter(whole, adapter.prefix, {}, adapter.manifest)
    else:
        _check_kind(source, formats[to], adapter.manifest["backbone"]["kind"])
        with whole_folder(whole) as partial, blamed(formats[to], "write()", target):
            lost = formats[to].write(partial, adapter, base)
            check_type(formats[to], "write()", lost, list, "a list of lines", target)
        notes += lost
    return Converted(found, adapter.length, adapter.prefix.projection_hidden_size, tuple(notes))


def recognised(folder: Path, formats: Mapping[str, AdapterFormat]) -> str:
    """The format of a folder. Raises `CheckpointError` for none, or for more than one."""
    if not folder.is_dir():
        wrong = (
            "is a file; give the folder that it lies in" if folder.exists() else "no such folder"
        )
        raise CheckpointError(f"{folder}: {wrong}")
    names = [PTKIT] if any((f / MANIFEST).is_file() for f in (folder, folder / "adapter")) else []
    faults: list[str] = []
    for name, form in formats.items():
        try:
            with blamed(form, "recognises()", folder):
                names += [name] if form.recognises(folder) else []
        except PluginError as error:  # matters only if no other format is found
            show_traceback(error)
            faults += error.lines
    if len(names) == 1:
        return names[0]
    if names:
        raise CheckpointError(
            f"{folder}: could be an adapter of {' and of '.join(names)}; put one into a folder of "
            "its own"
        )
    wanted = {PTKIT: MANIFEST, **{name: form.looks_for for name, form in formats.items()}}
    looked = ", ".join(f"{what} ({name})" for name, what in wanted.items())
    text = f"{folder}: is no adapter of a known format; looked for {looked}"
    raise CheckpointError(text, *faults)


def _check_name(to: str, formats: Mapping[str, AdapterFormat], registry: Registry) -> None:
    owners = registry.collisions.get((ADAPTER_FORMATS.key, to))
    if owners:
        raise PluginError(collision(to, owners))
    known = sorted([PTKIT, *formats])
    if to not in known:
        raise PtkitError(
            f"--to: unknown format {to!r}{suggestion(to, known)}; there are: {', '.join(known)}"
        )


def _check_kind(folder: Path, form: AdapterFormat, kind: str) -> None:
    if form.backbone_kind not in (None, kind):
        raise CheckpointError(
            f"{folder}: the format {form.name} is for {form.backbone_kind!r}, but the base is of "
            f"kind {kind!r}"
        )


def _base_of(
    adapter: Adapter,
    form: AdapterFormat,
    registry: Registry,
    source: str | None,
    kind: str | None,
    overrides: Sequence[str],
) -> Backbone | None:
    """The base of an adapter that is to be written as ``form``, if it is given or needed."""
    if adapter.head:
        raise CheckpointError(
            f"{adapter.folder}: has a trained head ({HEAD}), and {form.name} holds prefixes only"
        )
    if source is None and not form.needs_backbone:
        return None
    return backbone_of(adapter, registry, source=source, kind=kind, overrides=overrides)


def _encoder(folder: Path, tensors: Mapping[str, Tensor], base: Backbone) -> PrefixEncoder:
    """The prefix encoder that the tensors of a format are, for ``base``."""
    shape = base.geometry
    width, a_layer = shape.prefix_parameters(1), 2 * shape.kv_groups * shape.head_size
    embedding = tensors["embedding.weight"]
    got = int(embedding.shape[-1])
    if got != width:
        so_many = f", as {got // a_layer} such layers have" if got % a_layer == 0 else ""
        raise CheckpointError(
            f"{folder}: has {got:,} numbers a virtual token{so_many}, but {base.settings.source} "
            f"takes {width:,} ({shape.layers} layers x 2 x {shape.kv_groups} key/value groups x "
            f"{shape.head_size}); it was made for another base"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(f"{folder}: has numbers that are not finite; its training failed")
    first = tensors.get("trans.0.weight")
    hidden = None if first is None else len(first)
    prefix = PrefixEncoder(shape, len(embedding), projection_hidden_size=hidden)
    expected = {name: tensor.shape for name, tensor in prefix.state_dict().items()}
    wrong = [
        f"{name} {list(tensors[name].shape) if name in tensors else 'missing'}"
        for name in sorted(expected.keys() | tensors.keys())
        if name not in tensors or tensors[name].shape != expected.get(name)
    ]
    if wrong:
        raise CheckpointError(f"{folder}: is damaged: {', '.join(wrong)}")
    prefix.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return prefix.requires_grad_(False)


def _manifest(base: Backbone, found: str, registry: Registry) -> dict[str, object]:
    """What an imported adapter says of itself; its recipe has what is needed to use it."""
    chosen = choose({"task": {"kind": TASK}}, label="imported adapter", registry=registry)
    settings = dump(base.settings, portable=True)
    return {
        "ptkit": ptkit.__version__,
        "backbone": describe_backbone(base),
        "task": {"kind": TASK, "labels": []},
        "recipe": {
            "ptkit": FORMAT,
            "backbone": {"kind": base.name, **settings},
            "task": chosen["task"][0].resolved(portable=True),
        },
        "imported_from": found,
    }
