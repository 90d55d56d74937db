"""Installed plugins, each broken in a way of its own: a line each, and the others work on."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

import ptkit
from ptkit import cli
from ptkit.commands.timings import show_timings, time_entries
from ptkit.entrypoints import find_entries, unmet_requirement
from ptkit.preparation import prepare
from ptkit.registry import Registry, load_plugins
from ptkit.reporter import Reporter

GOOD = """
import ptkit

class Length(ptkit.Metric):
    name = "{name}"
    scores = "text"
    def score(self, pairs):
        return {{}}

@ptkit.hookimpl
def ptkit_register_metrics():
    return [Length]
"""
WITH_SETTINGS = """
from __future__ import annotations
import ptkit

class Bad(ptkit.Metric):
    name = "bad"
    scores = "text"
    class Settings(ptkit.Settings):
        {field}
    def score(self, pairs):
        return {{}}

@ptkit.hookimpl
def ptkit_register_metrics():
    return [Bad]
"""
ADAPTERS = "import ptkit\n\n@ptkit.hookimpl\ndef ptkit_register_adapter_formats():\n    {body}\n"
HOOK = "import ptkit\n\n@ptkit.hookimpl\ndef ptkit_register_metrics():\n    {body}\n"

Install = Callable[..., None]


@pytest.fixture
def install(site: Path) -> Install:
    """Lay a distribution there: its module, and entry points as `group: {name: value}`."""

    def lay(
        name: str,
        code: str,
        *,
        entries: dict[str, dict[str, str]] | None = None,
        requires: str = "",
    ) -> None:
        module = f"isolated_{name}"
        (site / f"{module}.py").write_text(code, encoding="utf-8")
        info = site / f"{module}-1.5.dist-info"
        info.mkdir()
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        metadata = f"Metadata-Version: 2.1\nName: isolated-{name}\nVersion: 1.5\n{needs}"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        groups = entries or {"ptkit": {name: module}}
        text = "".join(
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
            for group, points in groups.items()
        )
        (info / "entry_points.txt").write_text(text, encoding="utf-8")

    return lay


def loaded(site: Path) -> Registry:
    return load_plugins({}, distributions(path=[str(site)]))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import isolated_nothing", "can't be imported: ModuleNotFoundError: No module named "),
        ("1 +", "can't be imported: SyntaxError: invalid syntax (isolated_bad.py, line 1)"),
        ("import sys; sys.exit('bye')", "can't be imported: SystemExit: bye"),
        ("class Odd(BaseException): ...\nraise Odd('x')", "can't be imported: Odd: x"),
        (HOOK.format(body="raise KeyError('k')"), "ptkit_register_metrics: KeyError: 'k'"),
        (
            HOOK.format(body="import sys; sys.exit(3)"),
            "ptkit_register_metrics: SystemExit: 3",
        ),
        (
            HOOK.format(body="return 3"),
            "ptkit_register_metrics must return a list of classes, got int",
        ),
        (
            ADAPTERS.format(body="raise KeyError('k')"),
            "ptkit_register_adapter_formats: KeyError: 'k'",
        ),
        (
            ADAPTERS.format(body="return {}"),
            "ptkit_register_adapter_formats must return a list of classes, got dict",
        ),
        (
            ADAPTERS.format(body="return [ptkit.Metric]"),
            "ptkit_register_adapter_formats: <class 'ptkit.components.Metric'> is not a subclass ",
        ),
        (
            HOOK.format(body="return [ptkit.Transform]"),
            "ptkit_register_metrics: <class 'ptkit.components.Transform'> is not a subclass of ",
        ),
        (
            GOOD.format(name="Not Kebab"),
            "ptkit_register_metrics: Length.name must be kebab-case such as 'my-name', got "
            "'Not Kebab'",
        ),
        (
            WITH_SETTINGS.format(field="size: Unknown = 1"),
            "ptkit_register_metrics: Bad.Settings: PydanticUndefinedAnnotation: name 'Unknown' is ",
        ),
        (
            WITH_SETTINGS.format(field="model_config = {'extra': 'ignore'}"),
            "ptkit_register_metrics: Bad.Settings must forbid unknown keys (extra='forbid'), as ",
        ),
        (
            WITH_SETTINGS.format(field="size = 1"),
            "can't be imported: PydanticUserError: A non-annotated attribute was detected: ",
        ),
        (
            WITH_SETTINGS.format(field="raise ValueError('in the class')"),
            "can't be imported: ValueError: in the class",
        ),
    ],
)
def test_a_broken_plugin_is_a_line_and_its_neighbour_works(
    install: Install, site: Path, code: str, expected: str
) -> None:
    install("bad", code)
    install("good", GOOD.format(name="fine"))
    registry = loaded(site)
    (failure,) = map(str, registry.failures)
    assert failure.startswith(f"plugin 'bad' (isolated-bad 1.5): {expected}")
    assert "https://" not in failure  # pydantic's
    assert "\n" not in failure
    assert str(registry.find("metrics", "fine").owner) == "isolated-good 1.5"
    with pytest.raises(ptkit.PluginError) as caught:
        registry.find("metrics", "bad")
    assert failure in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "isolated_gone",
            "can't be imported: ModuleNotFoundError: No module named 'isolated_gone'",
        ),
        (
            "isolated_bad:plugin",
            "can't be imported: AttributeError: module 'isolated_bad' has no attribute 'plugin'",
        ),
        (
            "isolated_bad:Length",
            "its entry point names the class Length; name the module with the hooks",
        ),
    ],
)
def test_entry_points_that_name_no_plugin(
    install: Install, site: Path, value: str, expected: str
) -> None:
    install("bad", GOOD.format(name="fine"), entries={"ptkit": {"bad": value}})
    (failure,) = loaded(site).failures
    assert str(failure) == f"plugin 'bad' (isolated-bad 1.5): {expected}"


def test_a_plugin_that_breaks_while_its_hooks_are_looked_for(install: Install, site: Path) -> None:
    code = (
        "class Plugin:\n    @property\n    def ptkit_x(self):\n        raise OSError('no')\n"
        "    def __dir__(self):\n        return ['ptkit_x']\nplugin = Plugin()\n"
        "Plugin.__dir__ = lambda self: (_ for _ in ()).throw(OSError('no'))\n"
    )
    install("bad", code, entries={"ptkit": {"bad": "isolated_bad:plugin"}})
    registry = loaded(site)
    assert [failure.reason for failure in registry.failures] == ["OSError: no"]
    assert not registry.owners


def test_a_plugin_without_hooks_is_warned_of(install: Install, site: Path) -> None:
    install("bare", "def ptkit_register_metrics():\n    return []\n")
    registry = loaded(site)
    assert registry.failures == []
    assert [str(warning) for warning in registry.warnings] == [
        "plugin 'bare' (isolated-bare 1.5): has no hook; mark its functions with @ptkit.hookimpl"
    ]
    with pytest.raises(ptkit.PluginError) as refused:
        registry.find("metrics", "bare-length")
    assert str(refused.value).endswith(f"none is installed; {registry.warnings[0]}")


@pytest.mark.parametrize(
    "code", ["raise KeyboardInterrupt", HOOK.format(body="raise KeyboardInterrupt")]
)
def test_ctrl_c_while_a_plugin_loads_ends_the_command(
    install: Install, site: Path, code: str
) -> None:
    install("stopped", code)
    stdout = sys.stdout
    with pytest.raises(KeyboardInterrupt):
        loaded(site)
    assert sys.stdout is stdout


# ------------------------------------------------------------------------------ versions


def test_a_plugin_for_another_ptkit_is_not_imported(install: Install, site: Path) -> None:
    install("newer", "raise AssertionError('imported')", requires="ptkit>=99,<100")
    (failure,) = loaded(site).failures
    assert str(failure) == (
        "plugin 'newer' (isolated-newer 1.5): needs ptkit<100,>=99, and this is ptkit "
        f"{ptkit.__version__}; install that ptkit, or another version of isolated-newer"
    )


@pytest.mark.parametrize(
    ("requirement", "version", "unmet"),
    [
        ("ptkit>=0.1,<0.2", "0.1.9", None),
        ("ptkit>=0.1,<0.2", "0.2.0", "ptkit<0.2,>=0.1"),
        ("ptkit (<0.1)", "0.1.0", "ptkit<0.1"),
        ("ptkit>=0.2", "0.2.0.dev1", "ptkit>=0.2"),
        ("ptkit>=0.1", "0.2.0rc1", None),
        ("ptkit", "0.1.0", None),
        ("ptkit[all]>=1", "0.1.0", "ptkit>=1"),
        ("ptkit>=9; python_version < '3'", "0.1.0", None),
        ("ptkit>=9; extra == 'test'", "0.1.0", None),
        ("ptkit-tasks>=9", "0.1.0", None),
        ("ptkit_tasks>=9", "0.1.0", None),
        ("ptkit => 9", "0.1.0", None),
        ("torch>=9", "0.1.0", None),
    ],
)
def test_requirements_on_ptkit(requirement: str, version: str, unmet: str | None) -> None:
    assert unmet_requirement(["click", requirement], version) == unmet


# ------------------------------------------------------------------------------ stdout, time

NOISY = "import sys\nprint('Hello!\\n  from', 'noise')\n" + GOOD.format(name="noisy")


def test_what_a_plugin_prints_is_held_back_and_told(
    install: Install, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("noisy", NOISY.replace("return [Length]", "print('x' * 100)\n    return [Length]"))
    registry = loaded(site)
    assert capsys.readouterr().out == ""
    assert registry.names("metrics") == ["noisy"]
    (warning,) = registry.warnings
    text = f"Hello! from noise {'x' * 100}"[:60]
    assert str(warning) == (
        f"plugin 'noisy' (isolated-noisy 1.5): printed '{text}…' to stdout while it was loaded; "
        "print nothing there"
    )


def test_what_took_stdout_while_imported_writes_to_it_later(
    install: Install, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import logging, sys\nlogging.getLogger('isolated').addHandler(handler := "
        "logging.StreamHandler(sys.stdout))\nsys.stdout.writelines(['a', 'b'])\n"
    )
    install("logs", code + GOOD.format(name="logs"))
    assert "printed 'ab' to stdout" in str(loaded(site).warnings[0])
    logger = logging.getLogger("isolated")
    try:
        logger.warning("later")
        assert capsys.readouterr().out == "later\n"
    finally:
        logger.handlers.clear()


def test_the_output_of_a_command_stays_whole(
    install: Install, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("noisy", NOISY)
    assert cli.main(["plugins", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    line = "plugin 'noisy' (isolated-noisy 1.5): printed 'Hello! from noise' to stdout while it "
    assert f"{line}was loaded; print nothing there" in report["warnings"]
    del sys.modules["isolated_noisy"]
    assert cli.main(["plugins"]) == 0
    assert f"warning: {line}" in capsys.readouterr().out


def test_a_slow_plugin_is_warned_of(install: Install, site: Path) -> None:
    install("slow", "import time; time.sleep(1.2)\n" + GOOD.format(name="slow"))
    registry = loaded(site)
    (warning,) = registry.warnings
    assert warning.reason.startswith("took 1.")
    assert warning.reason.endswith(
        " s to load; import what is slow inside the functions that need it"
    )
    assert registry.names("metrics") == ["slow"]


RECIPE = """
ptkit = 1
backbone = {{kind = "chatglm2", source = "nano"}}
dataset = {{kind = "adgen", train = "nano:train", limit = 4}}
task = {{kind = "generation", max_source_tokens = 64, max_target_tokens = 32}}
metrics = [{{kind = "{metric}"}}]
train = {{max_steps = 1, batch_size = 2}}
"""


@pytest.mark.parametrize(("metric", "warned"), [("noisy", True), ("quiet", False)])
def test_a_recipe_that_uses_a_noisy_plugin_is_told(
    install: Install,
    site: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    metric: str,
    warned: bool,
) -> None:
    pytest.importorskip("ptkit_nano")
    install("noisy", NOISY)
    install("quiet", GOOD.format(name="quiet"))
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.format(metric=metric), encoding="utf-8")
    line = (
        "plugin 'noisy' (isolated-noisy 1.5): printed 'Hello! from noise' to stdout while it was "
        "loaded; print nothing there"
    )
    assert cli.main(["check", str(recipe), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (line in report["warnings"]) is warned
    sys.modules.pop("isolated_noisy", None)
    loaded_recipe = ptkit.Recipe.load(recipe)
    told = Told()
    prepare(loaded_recipe, told)
    assert [text for text in told.warnings if "noise" in text] == [line] * warned


class Told(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


# ------------------------------------------------------------------------------ timings


@pytest.fixture
def only_ours(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No distribution but those of the test."""
    real = find_entries

    def mine() -> Any:
        return real({}, distributions(path=[str(site)]))

    monkeypatch.setattr("ptkit.commands.timings.find_entries", mine)


def test_timings_load_each_alone(
    install: Install, site: Path, only_ours: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "transformers.py").write_text("")  # in place of the one that takes seconds
    install("bad", "raise OSError('no')")
    install("dead", "import os; os._exit(7)")
    install("fine", GOOD.format(name="fine"))
    install("heavy", "import time, transformers; time.sleep(1.05)\n" + GOOD.format(name="heavy"))
    install("noisy", NOISY)
    install("works", "def go(): ...\n", entries={"ptkit.commands": {"go": "isolated_works:go"}})
    timings = time_entries()
    by_name = {entry["name"]: dict(entry) for entry in timings}
    assert list(by_name) == ["bad", "dead", "fine", "go", "heavy", "noisy"]
    assert by_name["bad"]["problem"] == "can't be imported: OSError: no"
    assert by_name["dead"]["problem"] == ("ended its interpreter with code 7: nothing on stderr")
    assert by_name["dead"]["seconds"] is None
    fine = by_name["fine"]
    assert 0 < fine.pop("seconds") < 1
    assert fine == {
        "group": "ptkit",
        "name": "fine",
        "distribution": "isolated-fine",
        "version": "1.5",
        "imported": [],
        "printed": "",
        "problem": None,
    }
    assert by_name["heavy"]["imported"] == ["transformers"]
    assert by_name["heavy"]["seconds"] > 1.05
    assert by_name["noisy"]["printed"] == "Hello!\n  from noise\n"
    assert by_name["go"]["group"] == "ptkit.commands"

    show_timings(timings)
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["bad"].endswith("  can't be imported: OSError: no")
    assert lines["heavy"].endswith("  imports transformers; slow: over 1 s")
    assert "printed 'Hello! from noise' to stdout" in lines["noisy"]
    assert lines["command"].split()[:3] == ["isolated-works", "command", "go"]


def test_a_plugin_that_never_ends_loading_is_stopped(install: Install, only_ours: None) -> None:
    install("endless", "import time; time.sleep(600)")
    (entry,) = time_entries(timeout=3)
    assert entry["problem"] == "still loading after 3 s, stopped"


def test_timings_of_the_command(
    run_alone: Callable[..., subprocess.CompletedProcess[str]], install: Install
) -> None:
    install("fine", GOOD.format(name="fine"))
    done = run_alone("plugins", "--timings", "--json")
    assert done.returncode == 0, done.stderr
    names = {entry["name"]: entry for entry in json.loads(done.stdout)["timings"]}
    assert names["fine"]["problem"] is None


@pytest.fixture
def run_alone(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line in a process of its own, with the folder on its path."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys; sys.path.insert(0, sys.argv.pop(1)); from ptkit.cli import main; "
            "sys.exit(main(sys.argv[1:]))"
        )
        names = [d.name for d in distributions() if d.name.startswith("ptkit-")]
        monkeypatch.setenv("PTKIT_DISABLE_PLUGINS", ",".join(names))
        return subprocess.run(
            [sys.executable, "-c", code, str(site), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    return call
