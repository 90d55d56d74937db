"""What the READMEs of plugins with formats say is so: snippets are sections, tables have every
setting."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import ptkit_labelled
import ptkit_qa
import ptkit_seqlabel
import pytest

from ptkit import DatasetFormat

PLUGINS = Path(__file__).parent.parent / "plugins"
PACKAGES = {
    name: {form.name: form for form in package.ptkit_register_dataset_formats()}
    for name, package in (
        ("ptkit-labelled", ptkit_labelled),
        ("ptkit-qa", ptkit_qa),
        ("ptkit-seqlabel", ptkit_seqlabel),
    )
}


def readme(package: str) -> str:
    return (PLUGINS / package / "README.md").read_text(encoding="utf-8")


def sections(package: str) -> list[dict]:
    found = re.findall(r"```toml\n(.*?)```", readme(package), re.DOTALL)
    return [tomllib.loads(snippet)["dataset"] for snippet in found]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_snippets_are_sections_of_every_format(package: str) -> None:
    seen = set()
    for section in sections(package):
        kind = section.pop("kind")
        assert PACKAGES[package][kind].Settings(**section).train.name == section["train"]
        seen.add(kind)
    assert seen == set(PACKAGES[package])


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in PACKAGES for name in PACKAGES[package]]
)
def test_the_tables_have_every_setting(package: str, name: str) -> None:
    part = readme(package).split(f"## `{name}`")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", part, re.MULTILINE))))
    own = set(PACKAGES[package][name].Settings.model_fields)
    assert named == own - set(DatasetFormat.Settings.model_fields)
