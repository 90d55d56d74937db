"""What the README says is so: every snippet is a recipe section, every setting is in a table."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import ptkit_labelled
import pytest

from ptkit import DatasetFormat

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
FORMATS = {form.name: form for form in ptkit_labelled.ptkit_register_dataset_formats()}
SNIPPETS = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_the_snippets_are_sections(snippet):
    section = tomllib.loads(snippet)["dataset"]
    form = FORMATS[section.pop("kind")]
    assert form.Settings(**section).train.name == section["train"]


def test_there_is_a_snippet_for_every_format():
    assert {tomllib.loads(snippet)["dataset"]["kind"] for snippet in SNIPPETS} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_the_tables_have_every_setting(name):
    part = README.split(f"## `{name}`")[1].split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", part, re.MULTILINE))))
    own = set(FORMATS[name].Settings.model_fields) - set(DatasetFormat.Settings.model_fields)
    assert named == own
