"""The files of a new plugin: a small working component of each kind, its tests, data, a recipe.

The texts are in ``ptkit/templates/plugin``; what depends on which parts are wanted is made here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from string import Template

COLOURS = ("红色", "蓝色", "白色", "黑色")
KINDS = ("裙", "裤", "上衣")
STYLES = ("简约", "复古", "休闲", "甜美", "清新")
_TRAIN_STYLES = 4  # of STYLES; the last one is for validation


@dataclass(frozen=True)
class Part:
    """What ``--adds`` can name: its module and test are called so.

    ``makes``: the class, or the function of a command. ``base``: the class of ptkit that it
    extends. ``hook``: the one that registers it; "" for a command. ``kind``: its name in a recipe,
    behind the plugin's. ``settings``: rows of the README's table. ``requires``: what its module
    imports besides ptkit.
    """

    makes: str
    base: str
    hook: str
    kind: str
    summary: str
    settings: tuple[tuple[str, str, str], ...] = ()
    requires: tuple[str, ...] = ()


PARTS: Mapping[str, Part] = {
    "format": Part(
        "TabSeparated",
        "DatasetFormat",
        "ptkit_register_dataset_formats",
        "tsv",
        "dataset format: a prompt, a tab and the response, a line each",
        (("separator", "a tab", "what stands between the prompt and the response"),),
    ),
    "head": Part(
        "KnownAnswers",
        "TaskHead",
        "ptkit_register_task_heads",
        "known-answers",
        "task head: picks one of the answers of the training data",
        (("max_tokens", "256", "longest prompt; what is behind is cut"),),
        ("pydantic>=2.9", "torch>=2.11"),
    ),
    "metric": Part(
        "Distinct",
        "Metric",
        "ptkit_register_metrics",
        "distinct",
        "metric: distinct n-grams among all n-grams of the predictions, percent",
        (("n", "2", "the characters of an n-gram"),),
        ("pydantic>=2.9",),
    ),
    "backbone": Part(
        "ByteGlm",
        "Backbone",
        "ptkit_register_backbones",
        "bytes",
        "backbone: a GLM with random weights that reads bytes, for a model of yours to replace",
        (("source", "", "a folder with a config.json, or the name of the one that comes along"),),
        ("torch>=2.11", "transformers>=5.17"),
    ),
    "tracker": Part(
        "CsvTracker",
        "Tracker",
        "ptkit_register_trackers",
        "csv",
        "tracker: every number of a run as a line of a table in its folder",
        (("file", "events.csv", "the name of the file"),),
    ),
    "transform": Part(
        "FirstOfEach",
        "Transform",
        "ptkit_register_transforms",
        "first-of-each",
        "transform: of training records with the same prompt, the first one",
    ),
    "command": Part(
        "count",
        "",
        "",
        "count",
        "command: counts the rows of a text file",
        requires=("click>=8.1",),
    ),
}


def plugin_files(name: str, adds: Sequence[str], version: str) -> dict[str, str]:
    """The text of every file of the plugin ``name`` by its path, for ptkit of this ``version``."""
    adds = [part for part in PARTS if part in adds]
    package, base = name.replace("-", "_"), base_name(name)
    rows = {"train": _rows(STYLES[:_TRAIN_STYLES]), "validation": _rows(STYLES[_TRAIN_STYLES:])}
    fields = {
        "package": package,
        "base": base,
        "train_rows": str(len(rows["train"])),
        "skips": "".join(
            f'    pytest.importorskip("{distribution.replace("-", "_")}")\n'
            for distribution in _recipe_needs(adds)
        ),
    }
    made = {
        "pyproject.toml": _pyproject(name, adds, bound(version)),
        "README.md": _readme(name, adds),
        "recipe.toml": _recipe(name, adds),
        f"{package}/__init__.py": _init(name, adds),
        f"{package}/py.typed": "",
        "tests/test_recipe.py": _template("tests/test_recipe.py", fields),
    }
    for part in adds:
        made[f"{package}/{part}.py"] = _template(f"{part}.py", fields)
        made[f"tests/test_{part}.py"] = _template(f"tests/test_{part}.py", fields)
    if "backbone" in adds:
        made[f"{package}/model/config.json"] = _template("model.json", fields)
    for which, pairs in rows.items():
        made[f"data/{which}{_suffix(adds)}"] = "".join(_data(pairs, adds))
    return made


def base_name(name: str) -> str:
    """What the plugin is called inside ptkit: ``ptkit-haiku`` is ``haiku``."""
    return name.removeprefix("ptkit-") or name


def kinds(name: str, adds: Sequence[str]) -> dict[str, str]:
    """The name in recipes, or on the command line, of each part."""
    return {part: f"{base_name(name)}-{PARTS[part].kind}" for part in adds}


def bound(version: str) -> str:
    """The requirement of a plugin that was made with ptkit ``version``.

    A minor release may take away what an earlier one deprecated:

    >>> bound("0.1.4"), bound("2.3.0")
    ('ptkit>=0.1,<0.2', 'ptkit>=2.3,<2.4')
    """
    major, minor = version.split(".")[:2]
    return f"ptkit>={major}.{minor},<{major}.{int(minor) + 1}"


def _template(path: str, fields: Mapping[str, str]) -> str:
    source = files("ptkit").joinpath("templates", "plugin", *f"{path}.tmpl".split("/"))
    return Template(source.read_text(encoding="utf-8")).substitute(fields)


# ------------------------------------------------------------------------------------------- data


def _rows(styles: Sequence[str]) -> list[tuple[str, str]]:
    """Prompts in the words that the nano model knows, and what they describe."""
    return [
        (f"类型#{kind}*颜色#{colour}*风格#{style}", f"{colour}{kind}")
        for style, colour, kind in product(styles, COLOURS, KINDS)
    ]


def _data(rows: Sequence[tuple[str, str]], adds: Sequence[str]) -> Iterator[str]:
    for prompt, response in rows:
        if "format" in adds:
            yield f"{prompt}\t{response}\n"
        else:
            yield f'{{"instruction": "{prompt}", "output": "{response}"}}\n'


def _suffix(adds: Sequence[str]) -> str:
    return ".tsv" if "format" in adds else ".jsonl"


# ---------------------------------------------------------------------------------------- metadata


def _recipe_needs(adds: Sequence[str]) -> list[str]:
    """The distributions of ptkit that the recipe takes its other parts from."""
    needed = ["ptkit-metrics-zh"]
    if "backbone" not in adds:
        needed += ["ptkit-chatglm2", "ptkit-nano"]
    if "format" not in adds:
        needed.append("ptkit-qa")
    if "head" not in adds:
        needed.append("ptkit-tasks")
    return sorted(needed)


def _summary(adds: Sequence[str]) -> str:
    *others, last = (f"a {part}" for part in adds)
    return f"{', '.join(others)} and {last}" if others else last


def _pyproject(name: str, adds: Sequence[str], requirement: str) -> str:
    package, base = name.replace("-", "_"), base_name(name)
    requires = sorted({requirement, *(r for part in adds for r in PARTS[part].requires)})
    tests = ["pytest>=8.3", *(f"{d}{requirement[5:]}" for d in _recipe_needs(adds))]
    lines = [
        "[build-system]",
        'requires = ["hatchling>=1.26"]',
        'build-backend = "hatchling.build"',
        "",
        "[project]",
        f'name = "{name}"',
        'version = "0.1.0"',
        f'description = "A plugin for ptkit: {_summary(adds)}"',
        'readme = "README.md"',
        'requires-python = ">=3.11"',
        "dependencies = [",
        *(f'  "{line}",' for line in requires),
        "]",
        "",
        "[project.optional-dependencies]",
        "test = [",
        *(f'  "{line}",' for line in tests),
        "]",
        "",
    ]
    if _hooks(adds):
        lines += ["[project.entry-points.ptkit]", f'{base} = "{package}"', ""]
    if "command" in adds:
        lines += [
            '[project.entry-points."ptkit.commands"]',
            f'{kinds(name, adds)["command"]} = "{package}.command:count"',
            "",
        ]
    lines += [
        "[tool.hatch.build.targets.wheel]",
        f'packages = ["{package}"]',
        "",
        "[tool.mypy]",
        "strict = true",
        'plugins = ["pydantic.mypy"]',
        f'files = ["{package}", "tests"]',
        "",
        "[tool.pytest.ini_options]",
        'testpaths = ["tests"]',
    ]
    return "\n".join(lines) + "\n"


def _hooks(adds: Sequence[str]) -> list[str]:
    return [part for part in adds if PARTS[part].hook]


def _init(name: str, adds: Sequence[str]) -> str:
    package, base = name.replace("-", "_"), base_name(name)
    text = f'"""The plugin ``{base}`` for ptkit."""\n'
    if not _hooks(adds):
        return text
    path = "from pathlib import Path\n\n" if "backbone" in adds else ""
    text += f"\nfrom __future__ import annotations\n\n{path}import ptkit\n"
    for part in _hooks(adds):
        made = PARTS[part]
        text += (
            f"\n\n@ptkit.hookimpl\ndef {made.hook}() -> list[type[ptkit.{made.base}]]:\n"
            f"    from {package}.{part} import {made.makes}\n\n"
            f"    return [{made.makes}]\n"
        )
    if "backbone" in adds:
        text += (
            "\n\n@ptkit.hookimpl\ndef ptkit_resolve_source(source: str) -> Path | None:\n"
            f'    """``{base}`` is the model that comes with this package."""\n'
            f'    if source != "{base}":\n        return None\n'
            f"    from {package}.backbone import MODEL\n\n    return MODEL\n"
        )
    return text


# ------------------------------------------------------------------------------------------ recipe


def _recipe(name: str, adds: Sequence[str]) -> str:
    own, suffix = kinds(name, adds), _suffix(adds)

    def table(header: str, *pairs: tuple[str, str]) -> list[str]:
        return [header, *(f'{key} = "{value}"' for key, value in pairs), ""]

    backbone = ("chatglm2", "nano")
    if "backbone" in adds:
        backbone = (own["backbone"], base_name(name))
    lines = [
        f"# {name}: name the colour and the kind of a product, on a tiny model.",
        "ptkit = 1",
        "",
        *table("[backbone]", ("kind", backbone[0]), ("source", backbone[1])),
        "[prefix]",
        "length = 8",
        "dropout = 0.0",
        "",
        *table(
            "[dataset]",
            ("kind", own.get("format", "instruction")),
            ("train", f"data/train{suffix}"),
            ("validation", f"data/validation{suffix}"),
        ),
    ]
    if "transform" in adds:
        lines += table("[[transforms]]", ("kind", own["transform"]))
    lines += table("[task]", ("kind", own.get("head", "generation")))
    if "head" not in adds:
        lines[-1:] = ["max_target_tokens = 16", ""]
    lines += table("[[metrics]]", ("kind", "bleu-char"))
    if "metric" in adds:
        lines += table("[[metrics]]", ("kind", own["metric"]))
    if "tracker" in adds:
        lines += table("[[trackers]]", ("kind", own["tracker"]))
    lines += ["[train]", "max_steps = 60", "batch_size = 16", "learning_rate = 0.05"]
    if "head" in adds:
        lines.append("head_learning_rate = 0.01")
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------ readme


def _readme(name: str, adds: Sequence[str]) -> str:
    own = kinds(name, adds)
    lines = [f"# {name}", "", f"A plugin for ptkit: {_summary(adds)}.", "", "| name | what it is |"]
    lines.append("|---|---|")
    for part in adds:
        command = "ptkit " if part == "command" else ""
        lines.append(f"| `{command}{own[part]}` | {PARTS[part].summary} |")
    settings = [(own[part], *row) for part in adds for row in PARTS[part].settings]
    if settings:
        lines += [
            "",
            "## Settings",
            "",
            "| of | setting | default | meaning |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{kind}` | `{key}` | {default or 'none'} | {meaning} |"
            for kind, key, default, meaning in settings
        ]
    lines += [
        "",
        "## Try it",
        "",
        "```",
        "python -m pip install -e '.[test]'",
        "python -m pytest",
        "ptkit plugins",
        "ptkit run recipe.toml",
        "```",
        "",
        "`recipe.toml` trains for some seconds on the rows in `data/`. What it names and this",
        "package doesn't add comes from the packages of the extra `test`.",
        "",
        "## Before you publish it",
        "",
        "Replace what stands here by what you need, add a `LICENSE` file, and set the version and",
        "the bound on ptkit in `pyproject.toml`: a plugin that needs another ptkit is not loaded.",
    ]
    return "\n".join(lines) + "\n"
