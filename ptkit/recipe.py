"""Recipes: a TOML file becomes checked settings and component classes, or a line a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import tomli_w
from pydantic import ValidationError

from ptkit.components import SECTIONS, DatasetFormat, Metric, Section, TaskHead
from ptkit.errors import (
    REPORT,
    PluginError,
    PtkitError,
    RecipeError,
    closest,
    show_traceback,
)
from ptkit.isolation import one_line
from ptkit.overrides import apply_overrides, read_toml
from ptkit.problems import Keys, Problem, settings_problems, shown, unknown_key
from ptkit.registry import Choice, Registered, Registry, load_plugins
from ptkit.sections import PrefixSettings, TrainSettings
from ptkit.settings import Component, Settings, SourceContext, dump

__all__ = ["FORMAT", "PrefixSettings", "Recipe", "TrainSettings"]

FORMAT = 1
"""The version of the recipe format, written as ``ptkit = 1`` at the top of every recipe."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: every section's settings, and the classes that its kinds stand for.

    ``path``: the file, None if the recipe was made from a dict. ``name``: the stem of the file.
    """

    path: Path | None
    name: str
    registry: Registry = field(repr=False, compare=False)
    backbone: Choice
    prefix: PrefixSettings
    dataset: Choice
    transforms: tuple[Choice, ...]
    task: Choice
    metrics: tuple[Choice, ...]
    train: TrainSettings
    trackers: tuple[Choice, ...]

    @classmethod
    def load(
        cls, path: str | Path, *, overrides: Sequence[str] = (), registry: Registry | None = None
    ) -> Recipe:
        """The recipe in ``path`` with ``overrides`` ("a.b=value", TOML values) applied.

        >>> import ptkit
        >>> recipe = ptkit.Recipe.load("quickstart.toml", overrides=["prefix.length=8"])
        >>> recipe.prefix.length, recipe.task.kind
        (8, 'generation')

        Raises `RecipeError` with a line for each problem. Plugins are loaded unless ``registry`` is
        given.
        """
        path = Path(path)
        data, keys_set = apply_overrides(read_toml(path), overrides)
        check = _Check(str(path), path.parent, registry or load_plugins(), keys_set)
        return check.recipe(data, path, path.stem)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, folder: Path, name: str, registry: Registry | None = None
    ) -> Recipe:
        """The recipe in ``data``, laid out as in a file; paths are relative to ``folder``."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"{name}: must be a table, got {shown(data)}")
        check = _Check(name, folder, registry or load_plugins())
        return check.recipe(data, None, name)

    @property
    def plugin_warnings(self) -> list[str]:
        """What is wrong with the plugins that it names and that can be used all the same."""
        one = (self.backbone, self.dataset, self.task)
        chosen = (*one, *self.transforms, *self.metrics, *self.trackers)
        return self.registry.warnings_of({choice.registered.owner for choice in chosen})

    def resolved(self, *, portable: bool = False) -> dict[str, Any]:
        """The recipe as TOML-ready values: defaults filled in, paths absolute, None left out.

        ``portable``: of paths, only the last part is kept, as adapters hold them.
        """

        def one(choice: Choice) -> dict[str, Any]:
            return choice.resolved(portable=portable)

        sections: dict[str, Any] = {
            "ptkit": FORMAT,
            "backbone": one(self.backbone),
            "prefix": dump(self.prefix, portable=portable),
            "dataset": one(self.dataset),
            "transforms": [one(choice) for choice in self.transforms],
            "task": one(self.task),
            "metrics": [one(choice) for choice in self.metrics],
            "train": dump(self.train),
            "trackers": [one(choice) for choice in self.trackers],
        }
        return {key: value for key, value in sections.items() if value != []}

    def to_toml(self) -> str:
        """`resolved` as a recipe file; loading it gives an equal recipe."""
        return tomli_w.dumps(self.resolved())


def choose(
    sections: Mapping[str, Any], *, label: str, registry: Registry, overrides: Sequence[str] = ()
) -> dict[str, tuple[Choice, ...]]:
    """The components that some sections of a recipe name, checked as in a whole one.

    Paths are taken from ``overrides`` only. Raises `RecipeError`, lines beginning with ``label``.
    """
    data, keys_set = apply_overrides(sections, overrides)
    others = sorted({str(keys[0]) for keys in keys_set if keys[0] not in sections})
    if others:
        known = ", ".join(sections)
        raise RecipeError(f"--set {others[0]}: can't be changed here; what can: {known}")
    check = _Check(label, None, registry, keys_set)
    parts = {key: check._parts(_COMPONENT_SECTIONS[key], data[key], key) for key in data}
    check._fit({"dataset": [], "task": [], "metrics": [], **parts})
    check._raise(list(data))
    return {key: tuple(part.choice(key) for part in found) for key, found in parts.items()}


# ------------------------------------------------------------------------------------------ checks

_COMPONENT_SECTIONS = {section.key: section for section in SECTIONS}
_SETTINGS_SECTIONS: dict[str, type[Settings]] = {"prefix": PrefixSettings, "train": TrainSettings}
_OPTIONAL = {"prefix"} | {section.key for section in SECTIONS if not section.required}
_KEYS = (
    "ptkit",
    "backbone",
    "prefix",
    "dataset",
    "transforms",
    "task",
    "metrics",
    "train",
    "trackers",
)

_S = TypeVar("_S", bound=Settings)


@dataclass
class _Part:
    """What could be made of a component's table; None for what could not."""

    where: Keys
    registered: Registered | None = None
    settings: Settings | None = None

    def choice(self, key: str) -> Choice:
        """The choice of a part in which nothing was wrong."""
        return Choice(key, cast(Registered, self.registered), cast(Settings, self.settings))

    def component(self, base: type[Component]) -> Any:
        found = self.registered
        return found.component if found is not None and issubclass(found.component, base) else None


@dataclass
class _Check:
    """One pass over a recipe that collects every problem before it raises any."""

    label: str
    folder: Path | None
    registry: Registry
    keys_set: frozenset[Keys] = frozenset()
    """The keys that --set gave."""
    problems: list[Problem] = field(default_factory=list)

    def recipe(self, data: Mapping[str, Any], path: Path | None, name: str) -> Recipe:
        written = self._sections(data)
        self._format(data, written.get("ptkit"))
        plain: dict[str, Any] = {
            key: self._settings(model, data[written[key]], (written[key],))
            if key in written
            else None
            for key, model in _SETTINGS_SECTIONS.items()
        }
        parts = {
            key: self._parts(section, data[written[key]], written[key]) if key in written else []
            for key, section in _COMPONENT_SECTIONS.items()
        }
        self._fit(parts)
        dataset = data[written["dataset"]] if "dataset" in written else None
        if isinstance(dataset, Mapping) and {"validation", "split"} <= dataset.keys():
            keys = (written["dataset"], "split")
            self._add(keys, "is given together with validation; remove one of them")
        self._raise(list(data))

        def choices(key: str) -> tuple[Choice, ...]:
            return tuple(part.choice(key) for part in parts[key])

        return Recipe(
            path=path,
            name=name,
            registry=self.registry,
            backbone=choices("backbone")[0],
            prefix=plain["prefix"] or PrefixSettings(),
            dataset=choices("dataset")[0],
            transforms=choices("transforms"),
            task=choices("task")[0],
            metrics=choices("metrics"),
            train=plain["train"],
            trackers=choices("trackers"),
        )

    def _add(self, keys: Keys, text: str) -> None:
        self.problems.append(Problem(keys, text))

    def _raise(self, order: list[str]) -> None:
        if not self.problems:
            return

        def position(problem: Problem) -> int:
            top = problem.keys[0]
            return order.index(top) if top in order else -1 if top == "ptkit" else len(order)

        lines = []
        for problem in sorted(self.problems, key=position):
            given = any(problem.keys[: len(keys)] == keys for keys in self.keys_set)
            lines.append(f"{self.label}: {problem}{' (given by --set)' if given else ''}")
        raise RecipeError(*lines)

    def _sections(self, data: Mapping[str, Any]) -> dict[str, str]:
        """Section to the key that it is written under; a misspelt section is still judged."""
        written = {key: key for key in _KEYS if key in data}
        for key in data:
            if key not in _KEYS:
                absent = [name for name in _KEYS if name not in written]
                is_section = isinstance(data[key], Mapping | list | tuple)
                meant = closest(str(key), absent)
                self._add(
                    (key,),
                    unknown_key(
                        key, absent if meant else _KEYS, "section" if is_section else "key"
                    ),
                )
                if meant is not None and is_section == (meant != "ptkit"):
                    written[meant] = key
        for key in _KEYS[1:]:
            if key not in written and key not in _OPTIONAL:
                self._add((key,), self._missing_section(key))
        return written

    def _missing_section(self, key: str) -> str:
        if key not in _COMPONENT_SECTIONS:
            return f"the section is missing; add [{key}] with max_steps or epochs"
        return f"the section is missing; add [{key}] with a kind ({self._installed(key)})"

    def _installed(self, key: str) -> str:
        names = self.registry.names(key)
        return f"installed: {', '.join(names)}" if names else "none is installed"

    def _format(self, data: Mapping[str, Any], key: str | None) -> None:
        if key is None:
            self._add(
                ("ptkit",), f"is missing; write ptkit = {FORMAT} at the top, above all sections"
            )
            return
        got = data[key]
        if type(got) is not int:
            self._add(
                (key,), f"must be the version of the recipe format, {FORMAT}, got {shown(got)}"
            )
        elif got != FORMAT:
            self._add(
                (key,),
                f"this recipe is made for another version of ptkit: it has format {shown(got)}, "
                f"this ptkit reads format {FORMAT}",
            )

    def _parts(self, section: Section, value: Any, key: str) -> list[_Part]:
        if not section.many:
            return [self._part(section, value, (key,))]
        if isinstance(value, Mapping):
            self._add((key,), f"is a list; write [[{key}]] with double brackets")
            return [self._part(section, value, (key,))]
        if not isinstance(value, list | tuple):
            self._add((key,), f"must be a list of tables, written as [[{key}]], got {shown(value)}")
            return []
        return [self._part(section, item, (key, index)) for index, item in enumerate(value)]

    def _part(self, section: Section, value: Any, where: Keys) -> _Part:
        part = _Part(where)
        if not self._is_table(value, where):
            return part
        kind = value.get("kind")
        if "kind" not in value:
            # a misspelt 'kind' is one mistake, and without it nothing else can be judged
            typo = next((key for key in value if closest(str(key), ["kind"])), None)
            if typo is None:
                self._add((*where, "kind"), f"is missing; {self._installed(section.key)}")
            else:
                self._add((*where, typo), unknown_key(typo, ["kind"]))
        elif not isinstance(kind, str):
            self._add((*where, "kind"), f"must be a string, got {shown(kind)}")
        else:
            try:
                part.registered = self.registry.find(section.key, kind)
            except PluginError as error:
                self._add((*where, "kind"), "; ".join(error.lines))
            else:
                rest = {key: item for key, item in value.items() if key != "kind"}
                model = cast(type[Settings], part.registered.component.Settings)
                part.settings = self._settings(model, rest, where, part.registered)
        return part

    def _is_table(self, value: Any, where: Keys) -> bool:
        if isinstance(value, Mapping):
            return True
        if isinstance(value, list) and len(where) == 1:
            self._add(where, f"is a single section; write [{where[0]}] with single brackets, once")
        else:
            self._add(where, f"must be a table, got {shown(value)}")
        return False

    def _settings(
        self, model: type[_S], value: Any, where: Keys, registered: Registered | None = None
    ) -> _S | None:
        if not self._is_table(value, where):
            return None
        kind = None if registered is None else registered.component.name
        try:
            context = SourceContext(self.folder, self.registry.resolve_source)
            return model.model_validate(dict(value), context=context)
        except ValidationError as error:
            found = settings_problems(model, value, error, kind)
        except PtkitError as error:
            whose = "" if kind is None else f" (kind {kind!r})"
            found = [Problem((), f"{line}{whose}") for line in error.lines]
        except (Exception, SystemExit) as error:
            if registered is None:
                raise
            show_traceback(error)
            text = f"kind {kind!r} ({registered.owner}): checking the settings raised"
            found = [Problem((), f"{text} {one_line(error)}; {REPORT}")]
        self.problems += [Problem((*where, *problem.keys), problem.text) for problem in found]
        return None

    def _fit(self, parts: Mapping[str, list[_Part]]) -> None:
        """Whether the format's records suit the head, and the head's predictions the metrics."""
        data, task = (parts[key][0] if parts[key] else _Part(()) for key in ("dataset", "task"))
        data_format, head = data.component(DatasetFormat), task.component(TaskHead)
        if data_format and head and not issubclass(data_format.record, head.accepts):
            fitting = self._fitting(
                "task", lambda other: issubclass(data_format.record, other.accepts)
            )
            self._add(
                (*task.where, "kind"),
                f"{head.name!r} takes {head.accepts.__name__}, but dataset.kind "
                f"{data_format.name!r} gives {data_format.record.__name__}; "
                f"heads that fit: {fitting}",
            )
        for number, part in enumerate(parts["metrics"]):
            metric = part.component(Metric)
            if metric and head and metric.scores != head.predicts:
                fitting = self._fitting("metrics", lambda other: other.scores == head.predicts)
                self._add(
                    (*part.where, "kind"),
                    f"{metric.name!r} scores {metric.scores!r}, but task.kind {head.name!r} "
                    f"predicts {head.predicts!r}; metrics that fit: {fitting}",
                )
            for earlier in parts["metrics"][:number]:
                same = earlier.registered == part.registered and earlier.settings == part.settings
                if same and part.settings is not None:
                    self._add(
                        part.where,
                        f"repeats {'.'.join(map(str, earlier.where))}; remove one of them",
                    )
                    break

    def _fitting(self, key: str, fits: Callable[[Any], bool]) -> str:
        known = self.registry.components[key]
        return ", ".join(n for n in self.registry.names(key) if fits(known[n].component)) or "none"
