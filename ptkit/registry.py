"""Finds plugins by their entry points, loads them one at a time, and keeps what fails.

There is no module state: `load_plugins` returns a fresh `Registry`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import pluggy

from ptkit import hookspecs
from ptkit.components import SECTIONS, Component, Section
from ptkit.errors import PluginError, PtkitError, suggestion

ENTRY_POINT_GROUP = "ptkit"
DISABLE_VARIABLE = "PTKIT_DISABLE_PLUGINS"
_KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Owner:
    """A plugin: its entry point name and the distribution and version that it comes from."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Registered:
    """A component class and whose it is."""

    component: type[Component]
    owner: Owner


@dataclass(frozen=True)
class Failure:
    """A plugin, or one of its hooks, that could not be used, and why (one line)."""

    owner: Owner
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.owner.plugin!r} ({self.owner}): {self.reason}"


@dataclass
class Registry:
    """The components of all loaded plugins, by section key and name."""

    manager: pluggy.PluginManager
    owners: dict[str, Owner] = field(default_factory=dict)
    disabled: tuple[Owner, ...] = ()
    failures: list[Failure] = field(default_factory=list)
    components: dict[str, dict[str, Registered]] = field(default_factory=dict)
    collisions: dict[tuple[str, str], tuple[Owner, ...]] = field(default_factory=dict)

    def names(self, section: str) -> list[str]:
        """The kinds that a recipe can name in ``section``."""
        return sorted(self.components[section])

    def find(self, section: str, name: str) -> Registered:
        """The component behind ``kind = name``. Raises `PluginError` saying why it is not to be had."""
        owners = self.collisions.get((section, name))
        if owners:
            both = " and ".join(str(owner) for owner in owners)
            raise PluginError(
                f"{name!r} is registered by both {both}; set {DISABLE_VARIABLE} to disable one of them"
            )
        found = self.components[section].get(name)
        if found is None:
            raise PluginError(self.missing(section, name))
        return found

    def missing(self, section: str, name: str) -> str:
        """Why no plugin gives ``name``: what is installed, what is close, what failed to load."""
        known = self.names(section)
        installed = f"installed: {', '.join(known)}" if known else "none is installed"
        failed = "".join(f"; {failure}" for failure in self.failures)
        off = "".join(f"; {owner} is disabled by {DISABLE_VARIABLE}" for owner in self.disabled)
        return f"unknown kind {name!r}{suggestion(name, known)}; {installed}{failed}{off}"

    def resolve_source(self, source: str) -> Path | None:
        """The path behind a named source, or None if no plugin knows it. Raises `PluginError`."""
        try:
            found = self.manager.hook.ptkit_resolve_source(source=source)
        except PtkitError:
            raise
        except Exception as error:
            raise PluginError(f"a plugin failed to resolve {source!r}: {_one_line(error)}") from error
        return None if found is None else Path(found)

    def register(self, plugin: object, owner: Owner) -> None:
        """Register one plugin and collect its components; what is wrong becomes a `Failure`."""
        try:
            self.manager.register(plugin, name=owner.plugin)
            self.manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self.manager.has_plugin(owner.plugin):
                self.manager.unregister(name=owner.plugin)
            self.failures.append(Failure(owner, _hook_problem(error)))
            return
        self.owners[owner.plugin] = owner
        for section in SECTIONS:
            self._collect(plugin, owner, section)

    def _collect(self, plugin: object, owner: Owner, section: Section) -> None:
        caller = getattr(self.manager.hook, section.hook)
        mine = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
        for implementation in mine:
            try:
                classes = implementation.function()
            except Exception as error:
                self.failures.append(Failure(owner, f"{section.hook}: {_one_line(error)}"))
                continue
            if not isinstance(classes, Sequence) or isinstance(classes, str):
                got = type(classes).__name__
                self.failures.append(
                    Failure(owner, f"{section.hook} must return a list of classes, got {got}")
                )
                continue
            for component in classes:
                problem = _component_problem(component, section)
                if problem:
                    self.failures.append(Failure(owner, f"{section.hook}: {problem}"))
                else:
                    self._add(section.key, Registered(component, owner))

    def _add(self, key: str, new: Registered) -> None:
        known = self.components[key]
        name = new.component.name
        if (key, name) in self.collisions:
            self.collisions[key, name] += (new.owner,)
        elif name in known:
            self.collisions[key, name] = (known.pop(name).owner, new.owner)
        else:
            known[name] = new


def _component_problem(component: Any, section: Section) -> str | None:
    if not (isinstance(component, type) and issubclass(component, section.base)):
        return f"{component!r} is not a subclass of ptkit.{section.base.__name__}"
    name = getattr(component, "name", None)
    if not isinstance(name, str) or not _KEBAB.fullmatch(name):
        return f"{component.__name__}.name must be kebab-case such as 'my-name', got {name!r}"
    settings = component.Settings
    if settings.model_config.get("extra") != "forbid":
        return f"{component.__name__}.Settings must forbid unknown keys (extra='forbid'), as ptkit.Settings does"
    abstract = sorted(getattr(component, "__abstractmethods__", ()))
    if abstract:
        return f"{component.__name__} lacks {', '.join(abstract)}"
    return None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _hook_problem(error: Exception) -> str:
    text = _one_line(error)
    unknown = re.search(r"unknown hook '(\w+)'", text)
    if unknown:
        known = [name for name in vars(hookspecs) if name.startswith("ptkit_")]
        return f"unknown hook {unknown[1]!r}{suggestion(unknown[1], known)}"
    return text


def empty_registry() -> Registry:
    """A registry with the hooks and no plugin; tests register theirs on it."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return Registry(manager, components={section.key: {} for section in SECTIONS})


def load_plugins(
    environment: Mapping[str, str] = os.environ,
    installed: Iterable[Distribution] | None = None,
) -> Registry:
    """All installed plugins, loaded one at a time in alphabetical order.

    ``PTKIT_DISABLE_PLUGINS=a,b`` leaves out plugins by entry point or distribution name. A plugin that
    fails to load is kept in ``failures`` and matters only to a recipe that needs it.
    """
    registry = empty_registry()
    unwanted = {name.strip() for name in environment.get(DISABLE_VARIABLE, "").split(",")} - {""}
    found = [
        (entry_point, Owner(entry_point.name, distribution.name, distribution.version))
        for distribution in (distributions() if installed is None else installed)
        for entry_point in distribution.entry_points
        if entry_point.group == ENTRY_POINT_GROUP
    ]
    for entry_point, owner in sorted(found, key=lambda pair: (pair[1].plugin, pair[1].distribution)):
        if unwanted & {owner.plugin, owner.distribution}:
            registry.disabled += (owner,)
            continue
        try:
            plugin = entry_point.load()
        except Exception as error:
            registry.failures.append(Failure(owner, f"can't be imported: {_one_line(error)}"))
        else:
            registry.register(plugin, owner)
    return registry
