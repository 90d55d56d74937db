"""The packages in examples/ are as an outsider's: public names only, bounded, on ptkit alone.

`make test-wheels` installs them, runs their tests, and more; this reads them.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import ptkit
import ptkit.testing

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("ptkit-crf", "ptkit-dialogues")
PUBLIC = {*ptkit.__all__, "__version__", "testing"}
TESTING = {*ptkit.testing.__all__, "fixtures"}
GROUPS = {"ptkit", "ptkit.commands"}

each = pytest.mark.parametrize("name", NAMES)


def private_names(source: str) -> Iterator[str]:
    """What a module takes from ptkit besides its public names, as ``line: name``."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        for name in names:
            taken = re.match(r"ptkit\.(testing\.)?(\w+)", name)
            if taken and taken[2] not in (TESTING if taken[1] else PUBLIC):
                yield f"{node.lineno}: {taken[0]}"


def pyproject(name: str) -> dict[str, Any]:
    return tomllib.loads((EXAMPLES / name / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_is_looked_at() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")} == set(NAMES)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ptkit\nfrom ptkit import Row, hookimpl\nptkit.Row(ptkit.__version__)", []),
        ("from ptkit.testing import check_metric\nimport ptkit.testing.fixtures", []),
        ("import ptkit_tasks.controls, os\nfrom ptkit_tasks import fitting\na.ptkit.engine", []),
        ("import ptkit.engine.model", ["1: ptkit.engine"]),
        ("import ptkit.records as r", ["1: ptkit.records"]),
        ("from ptkit.records import Row", ["1: ptkit.records"]),
        ("from ptkit import Row, registry", ["1: ptkit.registry"]),
        ("from ptkit.testing import tiny", ["1: ptkit.testing.tiny"]),
        ("from ptkit.testing.tiny import TinyBackbone", ["1: ptkit.testing.tiny"]),
        ("if True:\n    import ptkit\n    ptkit.engine.loss.x", ["3: ptkit.engine"]),
    ],
)
def test_private_names_are_found(source: str, found: list[str]) -> None:
    assert list(dict.fromkeys(private_names(source))) == found


@each
def test_only_public_names_are_used(name: str) -> None:
    paths = sorted((EXAMPLES / name).rglob("*.py"))
    assert paths
    found = [
        f"{path.relative_to(EXAMPLES)}:{what}"
        for path in paths
        for what in private_names(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@each
def test_it_needs_ptkit_alone_and_says_which(name: str) -> None:
    project = pyproject(name)["project"]
    assert project["name"] == name
    needed = [Requirement(text) for text in project["dependencies"]]
    (ours,) = [one for one in needed if one.name.startswith("ptkit")]
    assert ours.name == "ptkit"
    assert Version(ptkit.__version__) in ours.specifier
    assert Version("1.0") not in ours.specifier
    tests = [Requirement(text) for text in project["optional-dependencies"]["test"]]
    unbounded = [one.name for one in tests if one.name.startswith("ptkit-") and not one.specifier]
    assert unbounded == []


@each
def test_its_entry_points_exist(name: str) -> None:
    package = name.replace("-", "_")
    entry_points = pyproject(name)["project"]["entry-points"]
    assert "ptkit" in entry_points
    assert set(entry_points) <= GROUPS
    for group in entry_points.values():
        for target in group.values():
            module, _, variable = target.partition(":")
            parts = module.split(".")
            assert parts[0] == package
            path = (EXAMPLES / name).joinpath(*parts)
            path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            assert not variable or f"def {variable}(" in path.read_text(encoding="utf-8")


@each
def test_it_has_what_a_package_has(name: str) -> None:
    folder = EXAMPLES / name
    package = folder / name.replace("-", "_")
    assert (package / "py.typed").is_file()
    assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    assert list((folder / "tests").glob("test_*.py"))
    recipe = tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe["backbone"]["source"] == "nano"
    for part in ("train", "validation"):
        assert (folder / recipe["dataset"][part]).is_file()
