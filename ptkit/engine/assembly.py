"""An adapter's recipe as components again: backbone, task head, dataset format, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptkit.components import DatasetFormat, Metric, TaskHead, Transform
from ptkit.engine.adapter import Adapter
from ptkit.errors import CheckpointError, PtkitError
from ptkit.manifest import MANIFEST
from ptkit.models import Backbone
from ptkit.recipe import choose
from ptkit.registry import Choice, Registry
from ptkit.settings import FromCommandLine

FILES = ("train", "validation", "test", "split", "limit")
"""Keys of ``[dataset]`` that are about the data of a run, not about how to read a file."""


@dataclass(frozen=True)
class Assembly:
    """The components, made; no weights are loaded. Without an adapter there is a backbone only."""

    backbone: Backbone
    head: TaskHead | None = None
    form: DatasetFormat | None = None
    metrics: tuple[Metric, ...] = ()
    transforms: tuple[Transform, ...] = ()
    seed: int = 0
    warnings: tuple[str, ...] = ()
    """What of the base is not as it was when the adapter was trained, and may change answers."""


def assemble(
    adapter: Adapter | None,
    registry: Registry,
    *,
    backbone: Backbone | str | None = None,
    kind: str | None = None,
    dtype: str = "auto",
    data: str | None = None,
    scored: bool = False,
    overrides: Sequence[str] = (),
) -> Assembly:
    """What the adapter was trained with, on ``backbone``, its recipe changed by ``overrides``.

    ``backbone``: None is the source that the adapter names, which must then be one of a plugin's.
    ``data``: a file that the dataset format is to read. ``scored``: with metrics, the format's
    controls, and the transforms that apply to test data.

    Raises `PtkitError`, a line a problem, for what is not installed or does not fit.
    """
    sections: dict[str, Any] = {}
    if not isinstance(backbone, Backbone):
        sections["backbone"] = _backbone_section(adapter, registry, backbone, kind, dtype)
    label = "model"
    if adapter is not None:
        label = str(adapter.folder / MANIFEST)
        sections["task"] = {**_table(adapter, "task"), "kind": adapter.manifest["task"]["kind"]}
        if data is not None:
            dataset = _table(adapter, "dataset")
            rest = {key: value for key, value in dataset.items() if key not in FILES}
            sections["dataset"] = {**rest, "train": FromCommandLine(data)}
        if scored:
            sections["metrics"] = recipe_tables(adapter, "metrics")
            sections["transforms"] = recipe_tables(adapter, "transforms")
    chosen = choose(sections, label=label, registry=registry, overrides=overrides)
    made = backbone if isinstance(backbone, Backbone) else _one(chosen["backbone"], Backbone)
    if adapter is None:
        return Assembly(made)
    warnings = tuple(adapter.check_fits(made))
    head = _one(chosen["task"], TaskHead, labels=adapter.labels)
    form = _one(chosen["dataset"], DatasetFormat) if data is not None else None
    metrics = [_made(choice, Metric) for choice in chosen.get("metrics", ())]
    if form is not None and scored:
        named = {metric.name for metric in metrics}
        for control in form.controls:
            if control.name not in named:
                metrics.append(control(control.Settings()))
                metrics[-1].owner = form.owner
    transforms = [
        transform
        for choice in chosen.get("transforms", ())
        if "test" in (transform := _made(choice, Transform)).on
    ]
    seed = _table(adapter, "train").get("seed", 0)
    return Assembly(made, head, form, tuple(metrics), tuple(transforms), seed, warnings)


def backbone_of(
    adapter: Adapter | None,
    registry: Registry,
    *,
    source: str | None = None,
    kind: str | None = None,
    overrides: Sequence[str] = (),
) -> Backbone:
    """The backbone behind ``source``, or the named one that the adapter was made on, and no more.

    Raises `PtkitError` if there is none, or if the adapter was made for another.
    """
    sections = {"backbone": _backbone_section(adapter, registry, source, kind, "auto")}
    label = "model" if adapter is None else str(adapter.folder / MANIFEST)
    chosen = choose(sections, label=label, registry=registry, overrides=overrides)
    made: Backbone = _one(chosen["backbone"], Backbone)
    if adapter is not None:
        adapter.check_fits(made)
    return made


def _backbone_section(
    adapter: Adapter | None, registry: Registry, source: str | None, kind: str | None, dtype: str
) -> dict[str, Any]:
    section: dict[str, Any] = {}
    if adapter is not None:
        kind = kind or adapter.manifest["backbone"]["kind"]
        recorded = _table(adapter, "backbone")
        if recorded.get("kind") == kind:
            section = dict(recorded)
    if kind is None:
        kind = _kind_of(source, registry)
    registry.find("backbone", kind)
    if source is None:
        source = _named_source(adapter, section.get("source"), registry)
    elif registry.resolve_source(source) is None and not Path(source).expanduser().exists():
        raise CheckpointError(f"{source}: no such model folder, and no plugin knows that name")
    section |= {"kind": kind, "source": FromCommandLine(source)}
    return section if dtype == "auto" else {**section, "dtype": dtype}


def _kind_of(source: str | None, registry: Registry) -> str:
    """The only kind installed, or the only one that recognises the model."""
    kinds = registry.names("backbone")
    if len(kinds) > 1 and source is not None:
        path = registry.resolve_source(source) or Path(source).expanduser()
        known = {kind: registry.components["backbone"][kind].component for kind in kinds}
        found = [
            kind
            for kind, component in known.items()
            if issubclass(component, Backbone) and component.recognises(path)
        ]
        kinds = found if len(found) == 1 else kinds
    if len(kinds) != 1:
        installed = ", ".join(kinds) or "none is installed"
        raise PtkitError(f"the kind of the base model is not given; give one of: {installed}")
    return kinds[0]


def _named_source(adapter: Adapter | None, name: object, registry: Registry) -> str:
    if adapter is None:
        raise PtkitError("neither an adapter nor a base model is given; name one of them")
    known = isinstance(name, str) and registry.resolve_source(name) is not None
    if not known:
        made_on = adapter.manifest["backbone"].get("name", name)
        raise PtkitError(
            f"{adapter.folder}: was made on {made_on!r}, which is the name of no plugin's model; "
            "give the folder of that model with --backbone (in Python: backbone=)"
        )
    return str(name)


def _table(adapter: Adapter, key: str) -> Mapping[str, Any]:
    found = adapter.manifest["recipe"].get(key, {})
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"{adapter.folder / MANIFEST}: is damaged: recipe.{key} must be a table"
        )
    return found


def recipe_tables(adapter: Adapter, key: str) -> list[Mapping[str, Any]]:
    """The tables of a section that is a list, as the adapter's recipe has them."""
    found = adapter.manifest["recipe"].get(key, [])
    if not isinstance(found, list) or not all(isinstance(table, Mapping) for table in found):
        raise CheckpointError(
            f"{adapter.folder / MANIFEST}: is damaged: recipe.{key} must be a list of tables"
        )
    return found


def _made(choice: Choice, base: type[Any], **kwargs: Any) -> Any:
    component = choice.create(**kwargs)
    assert isinstance(component, base)
    return component


def _one(choices: Sequence[Choice], base: type[Any], **kwargs: Any) -> Any:
    return _made(choices[0], base, **kwargs)
