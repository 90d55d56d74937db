"""Finds plugins by their entry points, loads them one at a time, and keeps what fails.

There is no module state: `load_plugins` returns a fresh `Registry`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution
from pathlib import Path
from types import UnionType
from typing import Any

import pluggy

from ptkit import hookspecs
from ptkit.components import SECTIONS, DatasetFormat, Metric, Section, TaskHead
from ptkit.entrypoints import (
    COMMANDS,
    DISABLE_VARIABLE,
    KEBAB,
    PLUGINS,
    Found,
    LoadError,
    Owner,
    collision,
    find_entries,
    one_line,
    watched,
)
from ptkit.errors import REPORT, PluginError, PtkitError, suggestion
from ptkit.interchange import ADAPTER_FORMATS
from ptkit.records import Record
from ptkit.settings import Component, Settings, dump

__all__ = [
    "COLLECTED",
    "Choice",
    "Failure",
    "Owner",
    "Registered",
    "Registry",
    "collision",
    "empty_registry",
    "load_plugins",
]

COLLECTED: tuple[Section, ...] = (*SECTIONS, ADAPTER_FORMATS)
"""What registration hooks give: the sections of a recipe, and the formats of `ptkit convert`."""
NO_HOOK = "has no hook; mark its functions with @ptkit.hookimpl"
"""Why a plugin that loads gives nothing."""
_RECORD_TYPES: tuple[tuple[type[Component], str], ...] = (
    (DatasetFormat, "record"),
    (TaskHead, "accepts"),
)
_PREDICTION_KINDS: tuple[tuple[type[Component], str], ...] = (
    (TaskHead, "predicts"),
    (Metric, "scores"),
)


@dataclass(frozen=True)
class Registered:
    """A component class and whose it is."""

    component: type[Component]
    owner: Owner


@dataclass(frozen=True)
class Choice:
    """A registered component with checked settings, such as a recipe names.

    ``section``: where it was named, such as "task".
    """

    section: str
    registered: Registered
    settings: Settings

    @property
    def kind(self) -> str:
        return self.registered.component.name

    def create(self, **kwargs: Any) -> Any:
        """The component; ``kwargs``: what its class takes besides settings, such as ``labels``.

        Raises `PluginError` for whatever its constructor raises.
        """
        kind, owner = self.registered.component, str(self.registered.owner)
        try:
            made = kind(self.settings, **kwargs)
        except PtkitError:
            raise
        except (Exception, SystemExit) as error:
            text = f"{self.section}.kind {self.kind!r} ({owner}): {kind.__name__}() raised"
            raise PluginError(f"{text} {one_line(error)}; {REPORT}") from error
        made.owner = owner
        return made

    def resolved(self, *, portable: bool = False) -> dict[str, Any]:
        return {"kind": self.kind, **dump(self.settings, portable=portable)}


@dataclass(frozen=True)
class Failure:
    """What is wrong with a plugin or one of its hooks (one line): most can't be used then."""

    owner: Owner
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.owner.plugin!r} ({self.owner}): {self.reason}"


@dataclass
class Registry:
    """The components of all loaded plugins, by section key and name.

    ``warnings``: what is wrong with plugins that can be used all the same. ``commands``: the
    commands that distributions add, none of them imported.
    """

    manager: pluggy.PluginManager
    owners: dict[str, Owner] = field(default_factory=dict)
    disabled: tuple[Owner, ...] = ()
    failures: list[Failure] = field(default_factory=list)
    warnings: list[Failure] = field(default_factory=list)
    commands: tuple[Found, ...] = ()
    components: dict[str, dict[str, Registered]] = field(default_factory=dict)
    collisions: dict[tuple[str, str], tuple[Owner, ...]] = field(default_factory=dict)

    def names(self, section: str) -> list[str]:
        """The kinds that a recipe can name in ``section``."""
        return sorted(self.components[section])

    def find(self, section: str, name: str) -> Registered:
        """The component behind ``kind = name``. Raises `PluginError` saying why there is none."""
        owners = self.collisions.get((section, name))
        if owners:
            raise PluginError(collision(name, owners))
        found = self.components[section].get(name)
        if found is None:
            raise PluginError(self.missing(section, name))
        return found

    def missing(self, section: str, name: str) -> str:
        """Why no plugin gives ``name``: what is installed, what is close, what failed to load."""
        known = self.names(section)
        installed = f"installed: {', '.join(known)}" if known else "none is installed"
        bare = [warning for warning in self.warnings if warning.reason == NO_HOOK]
        failed = "".join(f"; {failure}" for failure in [*self.failures, *bare])
        off = "".join(f"; {owner} is disabled by {DISABLE_VARIABLE}" for owner in self.disabled)
        return f"unknown kind {name!r}{suggestion(name, known)}; {installed}{failed}{off}"

    def resolve_source(self, source: str) -> Path | None:
        """The path behind a named source, or None if no plugin knows it. Raises `PluginError`."""
        found = self._ask("ptkit_resolve_source", str | Path, "a path or None", {"source": source})
        return None if found is None else Path(found)

    def recipe_from_script(self, text: str, name: str) -> str | None:
        """The recipe, as TOML, that a plugin makes of a training script ``text`` from the file
        ``name``; None if no plugin knows the script. Raises `PluginError`."""
        question = {"text": text, "name": name}
        found: str | None = self._ask("ptkit_recipe_from_script", str, "TOML or None", question)
        return found

    def _ask(
        self, hook: str, kind: type | UnionType, wanted: str, question: Mapping[str, str]
    ) -> Any:
        """The first answer to a hook that is a question, not only a None."""
        try:
            found = getattr(self.manager.hook, hook)(**question)
        except PtkitError:
            raise
        except (Exception, SystemExit) as error:
            problem = f"raised {one_line(error)}"
            raise PluginError(self._asked(hook, kind, question, problem)) from error
        if found is not None and not isinstance(found, kind):
            problem = f"must return {wanted}, got {type(found).__name__}"
            raise PluginError(self._asked(hook, kind, question, problem))
        return found

    def _asked(
        self, hook: str, kind: type | UnionType, question: Mapping[str, str], problem: str
    ) -> str:
        """``problem`` with the first plugin that causes it when it is asked alone."""
        about = question.get("source", question.get("name"))
        text = f"{hook}() of {about!r} {problem}; {REPORT}"
        for owner, ask in self.one_by_one(hook):
            try:
                found = ask(**question)
                blamed = found is not None and not isinstance(found, kind)
            except (Exception, SystemExit):
                blamed = True
            if blamed:
                return f"plugin {owner.plugin!r} ({owner}): {text}"
        return text

    def one_by_one(self, hook: str) -> Iterator[tuple[Owner, Callable[..., Any]]]:
        """The plugins with a hook, in the order in which pluggy calls them, and the hook of each
        alone."""
        plugins = self.manager.get_plugins()
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            others = plugins - {implementation.plugin}
            owner = self.owners.get(implementation.plugin_name)
            if owner is not None:
                yield owner, self.manager.subset_hook_caller(hook, others)

    def warnings_of(self, owners: Collection[Owner]) -> list[str]:
        """What is wrong with some plugins that can be used all the same, a line each."""
        return [str(warning) for warning in self.warnings if warning.owner in owners]

    def register(self, plugin: object, owner: Owner) -> None:
        """Register one plugin and collect its components; what is wrong becomes a `Failure`."""
        namesake = self.owners.get(owner.plugin)
        if namesake is not None:
            self.failures.append(
                Failure(
                    owner,
                    f"{owner.plugin!r} is also the entry point of {namesake}; rename one of them",
                )
            )
            return
        if isinstance(plugin, type):
            line = f"its entry point names the class {plugin.__name__}"
            self.failures.append(Failure(owner, f"{line}; name the module with the hooks"))
            return
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                self.manager.register(plugin, name=owner.plugin)
                self.manager.check_pending()
        except Exception as error:
            if self.manager.has_plugin(owner.plugin):
                self.manager.unregister(name=owner.plugin)
            self.failures.append(Failure(owner, _hook_problem(error)))
            return
        self.owners[owner.plugin] = owner
        # a hook that is to go says so, see warn_on_impl of pluggy
        self.warnings += [Failure(owner, " ".join(str(one.message).split())) for one in said]
        if not self.manager.get_hookcallers(plugin):
            self.warnings.append(Failure(owner, NO_HOOK))
        for section in COLLECTED:
            self._collect(plugin, owner, section)

    def _collect(self, plugin: object, owner: Owner, section: Section) -> None:
        caller = getattr(self.manager.hook, section.hook)
        mine = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
        for implementation in mine:
            try:
                classes = implementation.function()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.failures.append(Failure(owner, f"{section.hook}: {one_line(error)}"))
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
    if not isinstance(name, str) or not KEBAB.fullmatch(name):
        return f"{component.__name__}.name must be kebab-case such as 'my-name', got {name!r}"
    own, wanted = component.Settings, vars(section.base).get("Settings", Settings)
    if not (isinstance(own, type) and issubclass(own, wanted)):
        public = (
            "ptkit.Settings" if wanted is Settings else f"ptkit.{section.base.__name__}.Settings"
        )
        return f"{component.__name__}.Settings must be a subclass of {public}"
    if own.model_config.get("extra") != "forbid":
        return (
            f"{component.__name__}.Settings must forbid unknown keys (extra='forbid'), "
            "as ptkit.Settings does"
        )
    try:
        own.model_rebuild()  # an unknown type would break the recipes of others too
    except Exception as error:
        return f"{component.__name__}.Settings: {one_line(error)}"
    if "kind" in own.model_fields:
        return f"{component.__name__}.Settings must not have a field 'kind'; ptkit adds it"
    for base, attribute in _RECORD_TYPES:
        record = getattr(component, attribute, None) if section.base is base else Record
        if not (isinstance(record, type) and issubclass(record, Record)):
            wanted_type = "a subclass of ptkit.Record"
            return f"{component.__name__}.{attribute} must be {wanted_type}, got {record!r}"
    for base, attribute in _PREDICTION_KINDS:
        kind = getattr(component, attribute, None) if section.base is base else ""
        if not isinstance(kind, str):
            return f"{component.__name__}.{attribute} must be a string such as 'text', got {kind!r}"
    abstract = sorted(getattr(component, "__abstractmethods__", ()))
    if abstract:
        return f"{component.__name__} lacks {', '.join(abstract)}"
    return None


def _hook_problem(error: Exception) -> str:
    text = one_line(error)
    unknown = re.search(r"unknown hook '(\w+)'", text)
    if unknown:
        known = [name for name in vars(hookspecs) if name.startswith("ptkit_")]
        return f"unknown hook {unknown[1]!r}{suggestion(unknown[1], known)}"
    return text


def empty_registry() -> Registry:
    """A registry with the hooks and no plugin; tests register theirs on it."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return Registry(manager, components={section.key: {} for section in COLLECTED})


def load_plugins(
    environment: Mapping[str, str] = os.environ,
    installed: Iterable[Distribution] | None = None,
) -> Registry:
    """All installed plugins, loaded one at a time in alphabetical order.

    ``PTKIT_DISABLE_PLUGINS=a,b`` leaves out plugins by entry point or distribution name. One that
    fails to load is kept in ``failures`` and matters only to a recipe that needs it. What plugins
    print while they are loaded is kept from stdout.
    """
    registry = empty_registry()
    entries = find_entries(environment, installed)
    plugins = entries.of(PLUGINS)
    registry.disabled = tuple(one.owner for one in plugins.disabled)
    for one in plugins.wanted:
        with watched() as watch:
            try:
                plugin = one.load()
            except LoadError as error:
                registry.failures.append(Failure(one.owner, str(error)))
            else:
                registry.register(plugin, one.owner)
        registry.warnings += [Failure(one.owner, line) for line in watch.warnings()]
    registry.commands = entries.of(COMMANDS).wanted
    return registry
