"""Plugins: how they are found, what they may return, and what becomes of broken ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ptkit
from ptkit import hookspecs
from ptkit.commands.plugins import describe
from ptkit.errors import closest
from ptkit.registry import Owner, Registry, empty_registry, load_plugins

ONE = Owner("one", "ptkit-one", "1.0")
TWO = Owner("two", "ptkit-two", "2.0")


class Length(ptkit.Metric):
    name = "length"
    scores = "text"

    def score(self, pairs: Sequence[ptkit.Pair]) -> dict[str, float]:
        return {}


class Keep(ptkit.Transform):
    name = "keep"

    def apply(self, records: Sequence[ptkit.Record], *, seed: int) -> Iterable[ptkit.Record]:
        return records


class Metrics:
    def __init__(self, *classes: Any) -> None:
        self.classes: Any = list(classes)

    @ptkit.hookimpl
    def ptkit_register_metrics(self) -> Any:
        return self.classes


def registered(*plugins: tuple[object, Owner]) -> Registry:
    registry = empty_registry()
    for plugin, owner in plugins:
        registry.register(plugin, owner)
    return registry


def failure(plugin: object) -> str:
    (found,) = registered((plugin, ONE)).failures
    assert found.owner == ONE
    return found.reason


def reason(registry: Registry, kind: str = "length") -> str:
    with pytest.raises(ptkit.PluginError) as caught:
        registry.find("metrics", kind)
    (found,) = caught.value.lines
    return found


# ------------------------------------------------------------------------------ good ones


def test_a_component_is_found_with_its_owner() -> None:
    registry = registered((Metrics(Length), ONE))
    found = registry.find("metrics", "length")
    assert found.component is Length
    assert found.owner == ONE
    assert str(found.owner) == "ptkit-one 1.0"
    assert registry.names("metrics") == ["length"]
    assert registry.names("task") == []


def test_registries_share_nothing() -> None:
    registered((Metrics(Length), ONE))
    assert empty_registry().names("metrics") == []


def test_a_plugin_may_be_a_module_and_return_a_tuple() -> None:
    plugin = Metrics()
    plugin.classes = (Length,)
    assert registered((plugin, ONE)).names("metrics") == ["length"]


# ------------------------------------------------------------------------------ kinds


def test_an_unknown_kind_says_what_there_is() -> None:
    registry = registered((Metrics(Length), ONE))
    assert reason(registry, "lenght") == (
        "unknown kind 'lenght' (did you mean 'length'?); installed: length"
    )
    assert reason(empty_registry()) == "unknown kind 'length'; none is installed"


def test_a_collision_names_both_owners_and_nobody_wins() -> None:
    registry = registered((Metrics(Length), ONE), (Metrics(Length), TWO))
    assert reason(registry) == (
        "'length' is registered by both ptkit-one 1.0 and ptkit-two 2.0; "
        "set PTKIT_DISABLE_PLUGINS=ptkit-two or uninstall one of them"
    )
    three = Owner("three", "ptkit-three", "3.0")
    registry.register(Metrics(Length), three)
    assert reason(registry) == (
        "'length' is registered by ptkit-one 1.0 and ptkit-two 2.0 and ptkit-three 3.0; "
        "set PTKIT_DISABLE_PLUGINS=ptkit-three or uninstall one of them"
    )


def test_one_plugin_may_not_use_a_name_twice_either() -> None:
    assert "both ptkit-one 1.0 and ptkit-one 1.0" in reason(
        registered((Metrics(Length, Length), ONE))
    )


# ------------------------------------------------------------------------------ hooks


def test_an_unknown_hook_is_a_failure_with_a_suggestion() -> None:
    class Typo:
        @ptkit.hookimpl
        def ptkit_register_metric(self) -> Any:
            return [Length]

    registry = registered((Typo(), ONE), (Metrics(Length), TWO))
    (found,) = registry.failures
    assert str(found) == (
        "plugin 'one' (ptkit-one 1.0): unknown hook 'ptkit_register_metric' "
        "(did you mean 'ptkit_register_metrics'?)"
    )
    assert registry.find("metrics", "length").owner == TWO  # the others are not affected


def test_a_hook_with_other_arguments_is_a_failure() -> None:
    class Wrong:
        @ptkit.hookimpl
        def ptkit_resolve_source(self, name: str) -> None: ...

    assert "ptkit_resolve_source" in failure(Wrong())
    assert "name" in failure(Wrong())


def test_what_a_hook_raises_is_kept() -> None:
    class Raises:
        @ptkit.hookimpl
        def ptkit_register_metrics(self) -> Any:
            raise ImportError("no module\nnamed 'x'")

        @ptkit.hookimpl
        def ptkit_register_transforms(self) -> Any:
            return [Keep]

    assert failure(Raises()) == "ptkit_register_metrics: ImportError: no module named 'x'"
    registry = registered((Raises(), ONE))
    assert registry.names("transforms") == ["keep"]
    assert reason(registry).endswith(
        "; none is installed; plugin 'one' (ptkit-one 1.0): "
        "ptkit_register_metrics: ImportError: no module named 'x'"
    )


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (None, "ptkit_register_metrics must return a list of classes, got NoneType"),
        ("length", "ptkit_register_metrics must return a list of classes, got str"),
        (Length, "ptkit_register_metrics must return a list of classes, got ABCMeta"),
        ([3], "ptkit_register_metrics: 3 is not a subclass of ptkit.Metric"),
        ([int], "ptkit_register_metrics: <class 'int'> is not a subclass of ptkit.Metric"),
        ([Keep], f"ptkit_register_metrics: {Keep!r} is not a subclass of ptkit.Metric"),
    ],
)
def test_a_hook_that_returns_something_else(returned: Any, expected: str) -> None:
    plugin = Metrics()
    plugin.classes = returned
    assert failure(plugin) == expected


def test_a_bad_class_does_not_hide_its_neighbours() -> None:
    registry = registered((Metrics(3, Length), ONE))
    assert len(registry.failures) == 1
    assert registry.names("metrics") == ["length"]


# ------------------------------------------------------------------------------ classes


def class_problem(**attributes: Any) -> str:
    changed = type("Changed", (Length,), attributes)
    return failure(Metrics(changed)).removeprefix("ptkit_register_metrics: ")


@pytest.mark.parametrize("name", ["Length", "a_b", "a b", "-a", "a-", "", "长", None, 3])
def test_names_are_kebab_case(name: Any) -> None:
    assert class_problem(name=name) == (
        f"Changed.name must be kebab-case such as 'my-name', got {name!r}"
    )


def test_settings_are_of_the_right_class() -> None:
    assert class_problem(Settings=dict) == ("Changed.Settings must be a subclass of ptkit.Settings")

    class Loose(ptkit.Settings):
        model_config = {"extra": "allow"}

    assert class_problem(Settings=Loose) == (
        "Changed.Settings must forbid unknown keys (extra='forbid'), as ptkit.Settings does"
    )

    class Kind(ptkit.Settings):
        kind: str = "x"

    assert class_problem(Settings=Kind) == (
        "Changed.Settings must not have a field 'kind'; ptkit adds it"
    )


def test_settings_of_a_format_keep_its_keys() -> None:
    class Bare(ptkit.DatasetFormat):
        name = "bare"
        record = ptkit.Record

        class Settings(ptkit.Settings):  # type: ignore[assignment]
            pass

        def read(self, path: Path, name: str) -> Any: ...

    class Formats:
        @ptkit.hookimpl
        def ptkit_register_dataset_formats(self) -> Any:
            return [Bare]

    assert failure(Formats()).endswith(
        "Bare.Settings must be a subclass of ptkit.DatasetFormat.Settings"
    )


def test_what_a_class_must_declare() -> None:
    assert class_problem(scores=None) == (
        "Changed.scores must be a string such as 'text', got None"
    )

    class Format(ptkit.DatasetFormat):
        name = "format"

        def read(self, path: Path, name: str) -> Any: ...

    class Head(ptkit.TaskHead):
        name = "head"
        accepts = int  # type: ignore[assignment]
        encode = loss = decode = reference = None  # type: ignore[assignment]

    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_dataset_formats(self) -> Any:
            return [Format]

        @ptkit.hookimpl
        def ptkit_register_task_heads(self) -> Any:
            return [Head]

    assert [found.reason for found in registered((Plugin(), ONE)).failures] == [
        "ptkit_register_dataset_formats: Format.record must be a subclass of ptkit.Record, "
        "got None",
        "ptkit_register_task_heads: Head.accepts must be a subclass of ptkit.Record, "
        "got <class 'int'>",
    ]


def test_abstract_methods_are_named() -> None:
    class Half(ptkit.Metric):
        name = "half"
        scores = "text"

    assert failure(Metrics(Half)) == "ptkit_register_metrics: Half lacks score"


def test_a_hook_that_is_to_go_is_a_warning_with_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the guide promises: pluggy's warn_on_impl, told by ``ptkit plugins`` and by a run."""
    spec = vars(hookspecs.ptkit_register_metrics)[f"{hookspecs.PROJECT}_spec"]
    gone = DeprecationWarning("ptkit_register_metrics goes in 0.3;\n use ptkit_register_scores")
    monkeypatch.setitem(spec, "warn_on_impl", gone)
    registry = registered((Metrics(Length), ONE))
    assert registry.names("metrics") == ["length"]
    assert [str(warning) for warning in registry.warnings] == [
        "plugin 'one' (ptkit-one 1.0): ptkit_register_metrics goes in 0.3; use "
        "ptkit_register_scores"
    ]
    assert registry.warnings_of({ONE}) == list(map(str, registry.warnings))
    assert registry.warnings_of({TWO}) == []
    assert describe(registry)["warnings"] == list(map(str, registry.warnings))


# ------------------------------------------------------------------------------ sources


def resolver(answer: Any) -> object:
    class Resolver:
        @ptkit.hookimpl
        def ptkit_resolve_source(self, source: str) -> Any:
            if isinstance(answer, BaseException):
                raise answer
            return answer

    return Resolver()


def test_sources() -> None:
    assert empty_registry().resolve_source("x") is None
    registry = registered((resolver(None), ONE), (resolver("/a"), TWO))
    assert registry.resolve_source("x") == Path("/a")
    ours = registered((resolver(ptkit.PluginError("none of that name")), ONE))
    with pytest.raises(ptkit.PluginError, match=r"^none of that name$"):
        ours.resolve_source("x")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (KeyError("k"), "raised KeyError: 'k'"),
        (SystemExit("bye"), "raised SystemExit: bye"),
        (3, "must return a path or None, got int"),
    ],
)
def test_a_broken_source_names_the_distribution(answer: Any, expected: str) -> None:
    registry = registered((resolver(None), ONE), (resolver(answer), TWO))
    with pytest.raises(ptkit.PluginError) as caught:
        registry.resolve_source("x")
    assert caught.value.lines == (
        f"plugin 'two' (ptkit-two 2.0): ptkit_resolve_source() of 'x' {expected}; report it to "
        "the plugin's author with the traceback that PTKIT_DEBUG=1 shows",
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (KeyError("k"), "raised KeyError: 'k'"),
        (b"ptkit = 1", "must return TOML or None, got bytes"),
    ],
)
def test_a_broken_reader_of_scripts_names_the_distribution(answer: Any, expected: str) -> None:
    class Scripts:
        @ptkit.hookimpl
        def ptkit_recipe_from_script(self, text: str, name: str) -> Any:
            if text == "theirs" and isinstance(answer, Exception):
                raise answer
            return answer if text == "theirs" else text or None

    registry = registered((resolver(None), ONE), (Scripts(), TWO))
    assert registry.recipe_from_script("", "x.sh") is None
    assert registry.recipe_from_script("ptkit = 1", "x.sh") == "ptkit = 1"
    with pytest.raises(ptkit.PluginError) as caught:
        registry.recipe_from_script("theirs", "x.sh")
    assert caught.value.lines == (
        f"plugin 'two' (ptkit-two 2.0): ptkit_recipe_from_script() of 'x.sh' {expected}; report "
        "it to the plugin's author with the traceback that PTKIT_DEBUG=1 shows",
    )


# ------------------------------------------------------------------------------ loading


class FakeDistribution(SimpleNamespace):
    """What `load_plugins` needs of an installed distribution."""

    def __init__(self, name: str | None, *entry_points: Any) -> None:
        super().__init__(name=name, version="1.0", entry_points=entry_points, requires=None)


def entry_point(name: str, plugin: Any = None, *, group: str = "ptkit") -> Any:
    def load() -> Any:
        if isinstance(plugin, BaseException):
            raise plugin
        return plugin

    return SimpleNamespace(name=name, group=group, load=load)


def loaded(*found: FakeDistribution, disable: str = "") -> Registry:
    environment = {"PTKIT_DISABLE_PLUGINS": disable} if disable else {}
    return load_plugins(environment, found)  # type: ignore[arg-type]


def test_entry_points_of_our_group_are_loaded() -> None:
    registry = loaded(
        FakeDistribution("other", entry_point("x", AssertionError(), group="console_scripts")),
        FakeDistribution("ptkit-one", entry_point("one", Metrics(Length))),
    )
    assert registry.failures == []
    assert registry.find("metrics", "length").owner == ONE


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ImportError("no\nx"), "can't be imported: ImportError: no x"),
        (SystemExit(3), "can't be imported: SystemExit: 3"),
        (RuntimeError(), "can't be imported: RuntimeError"),
    ],
)
def test_a_failure_at_import_is_kept_and_matters_only_if_needed(
    error: BaseException, expected: str
) -> None:
    registry = loaded(
        FakeDistribution("ptkit-broken", entry_point("broken", error)),
        FakeDistribution("ptkit-one", entry_point("one", Metrics(Length))),
    )
    assert [str(found) for found in registry.failures] == [
        f"plugin 'broken' (ptkit-broken 1.0): {expected}"
    ]
    assert registry.find("metrics", "length").component is Length
    assert expected in reason(registry, "other")


def test_an_entry_point_to_nowhere() -> None:
    nowhere = EntryPoint("x", "ptkit_has_no_such_module:plugin", "ptkit")
    (found,) = loaded(FakeDistribution("ptkit-x", nowhere)).failures
    assert found.reason == (
        "can't be imported: ModuleNotFoundError: No module named 'ptkit_has_no_such_module'"
    )


@pytest.mark.parametrize(
    "disable", ["one", "ptkit-one", "ptkit_one", "PTKIT.ONE", " x , one ", ",,ptkit-one,"]
)
def test_plugins_can_be_disabled(disable: str) -> None:
    registry = loaded(
        FakeDistribution("ptkit-one", entry_point("one", AssertionError("not imported"))),
        disable=disable,
    )
    assert registry.failures == []
    assert registry.disabled == (ONE,)
    assert reason(registry).endswith("; ptkit-one 1.0 is disabled by PTKIT_DISABLE_PLUGINS")


def test_disabling_one_side_ends_a_collision() -> None:
    both = (
        FakeDistribution("ptkit-one", entry_point("one", Metrics(Length))),
        FakeDistribution("ptkit-two", entry_point("two", Metrics(Length))),
    )
    assert "is registered by both" in reason(loaded(*both))
    assert loaded(*both, disable="ptkit-two").find("metrics", "length").owner == ONE


def test_another_copy_of_a_distribution_is_left_out() -> None:
    registry = loaded(
        FakeDistribution("ptkit-one", entry_point("one", Metrics(Length))),
        FakeDistribution("ptkit_one", entry_point("one", Metrics(Length))),
    )
    assert registry.failures == []
    assert registry.find("metrics", "length").owner == ONE


def test_two_entry_points_of_one_name() -> None:
    registry = loaded(
        FakeDistribution("ptkit-one", entry_point("one", Metrics(Length))),
        FakeDistribution("ptkit-two", entry_point("one", Metrics())),
    )
    assert [str(found) for found in registry.failures] == [
        "plugin 'one' (ptkit-two 1.0): 'one' is also the entry point of ptkit-one 1.0; "
        "rename one of them"
    ]
    assert registry.find("metrics", "length").owner == ONE  # the first one is whole
    assert registry.manager.has_plugin("one")


def test_a_distribution_without_metadata() -> None:
    registry = loaded(FakeDistribution(None, entry_point("one", Metrics(Length))))
    assert registry.find("metrics", "length").owner == Owner("one", "unknown", "1.0")


def test_installed_plugins_are_found_by_default() -> None:
    assert isinstance(load_plugins({}), Registry)


# ------------------------------------------------------------------------------ the report


def test_the_report_shows_what_each_adds_and_what_is_wrong() -> None:
    class Watch(Metrics):
        @ptkit.hookimpl
        def ptkit_before_run(self, run: Any) -> None: ...

    registry = loaded(
        FakeDistribution("ptkit-a", entry_point("a", Watch(Length, 3))),
        FakeDistribution("ptkit-b", entry_point("b", Metrics(Length))),
        FakeDistribution("ptkit-c", entry_point("c", ImportError("x"))),
        FakeDistribution("ptkit-d", entry_point("d")),
        disable="ptkit-d",
    )
    report = describe(registry)
    assert report["ptkit"] == ptkit.__version__
    broken = "ptkit_register_metrics: 3 is not a subclass of ptkit.Metric"
    assert report["plugins"] == [
        {
            "distribution": f"ptkit-{name}",
            "version": "1.0",
            "plugin": name,
            "status": status,
            "adds": adds,
            "problems": problems,
        }
        for name, status, adds, problems in [
            ("a", "failed", {"hooks": ["ptkit_before_run"]}, [broken]),
            ("b", "ok", {}, []),
            ("c", "failed", {}, ["can't be imported: ImportError: x"]),
            ("d", "disabled", {}, []),
        ]
    ]
    assert report["collisions"] == [
        {
            "section": "metrics",
            "kind": "length",
            "owners": [
                {"distribution": f"ptkit-{name}", "version": "1.0", "plugin": name} for name in "ab"
            ],
        }
    ]
    assert report["problems"] == [
        f"plugin 'a' (ptkit-a 1.0): {broken}",
        "plugin 'c' (ptkit-c 1.0): can't be imported: ImportError: x",
        "metrics.kind 'length' is registered by both ptkit-a 1.0 and ptkit-b 1.0; "
        "set PTKIT_DISABLE_PLUGINS=ptkit-b or uninstall one of them",
    ]


def test_closest() -> None:
    known = ["tiny", "learning_rate", "Seed"]
    assert closest("tyni", known) == "tiny"
    assert closest("learnig_rate", known) == "learning_rate"
    assert closest("SEED", known) == "Seed"
    assert closest("zzz", known) is None
    assert closest("x", []) is None
