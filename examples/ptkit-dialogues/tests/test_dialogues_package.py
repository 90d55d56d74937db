"""The package: what it registers, what importing it costs, its README, its recipe."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import ptkit
import pytest
from click.testing import CliRunner

import ptkit_dialogues
from ptkit_dialogues.command import stats
from ptkit_dialogues.distinct import Distinct
from ptkit_dialogues.format import DialogueCsv

PACKAGE = Path(__file__).parents[1]
README = (PACKAGE / "README.md").read_text(encoding="utf-8")


def test_what_is_registered() -> None:
    assert ptkit_dialogues.ptkit_register_dataset_formats() == [DialogueCsv]
    assert ptkit_dialogues.ptkit_register_metrics() == [Distinct]
    assert (DialogueCsv.name, Distinct.name) == ("dialogue-csv", "distinct")
    assert DialogueCsv.record is ptkit.GenerationRecord


def test_importing_the_plugin_is_light() -> None:
    heavy = "{'pydantic', 'click', 'torch', 'csv'}"
    code = f"import ptkit_dialogues, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_the_readme_has_every_setting() -> None:
    for component in (DialogueCsv, Distinct):
        part = README.split(f"## `{component.name}`")[1].split("\n## ")[0]
        first_cells = "".join(re.findall(r"^\| (`.*?) \|", part, re.MULTILINE))
        own = set(component.Settings.model_fields)
        named = set(re.findall(r"`(\w+)`", first_cells))
        assert named == own - set(ptkit.DatasetFormat.Settings.model_fields)
        for snippet in re.findall(r"```toml\n(.*?)```", part, re.DOTALL):
            for sections in tomllib.loads(snippet).values():
                for section in sections if isinstance(sections, list) else [sections]:
                    assert section.pop("kind") == component.name
                    assert component.Settings(**section)


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    path = tmp_path / "chats.csv"
    (example,) = re.findall(r"```\n(conversation,.*?)```", README, re.DOTALL)
    path.write_text(example, encoding="utf-8")
    settings = DialogueCsv.Settings(
        train=ptkit.SourcePath("chats.csv", path), turn_column="turn"
    )
    first, second = DialogueCsv(settings).read(path, "chats.csv")
    assert isinstance(first, ptkit.GenerationRecord)
    assert isinstance(second, ptkit.GenerationRecord)
    assert (first.prompt, first.response, first.history) == (
        "几点开门？",
        "九点。",
        (),
    )
    assert (second.prompt, second.response) == ("周日呢？\n也开吗？", "十点。")
    assert second.history == (("几点开门？", "九点。"),)


def test_the_counts_in_the_readme() -> None:
    part = README.split("## `ptkit dialogue-stats`")[1]
    (command, counts) = re.findall(r"```\n\$ ptkit (.*?)\n(.*?)```", part, re.DOTALL)[0]
    name, file, *options = command.split()
    assert name == stats.name
    result = CliRunner().invoke(stats, [str(PACKAGE / file), *options])
    assert result.output == counts


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"user_role": "assistant"},
            "user_role and assistant_role must be two names, got 'assistant' twice",
        ),
        (
            {"role_column": "text"},
            "text_column and turn_column must be different columns, got 'text' twice",
        ),
        ({"turn_column": "role"}, "must be different columns, got 'role' twice"),
        (
            {"separator": '"'},
            "separator must be neither a quote nor a line break, got '\"'",
        ),
        ({"separator": "::"}, "at most 1 character"),
        ({"encoding": "utf-9"}, "unknown encoding 'utf-9'"),
    ],
)
def test_settings_that_make_no_sense(settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DialogueCsv.Settings(train=ptkit.SourcePath("x", PACKAGE), **settings)


def test_the_recipe_runs(tmp_path: Path) -> None:
    for package in ("chatglm2", "metrics_zh", "nano", "tasks"):
        pytest.importorskip(f"ptkit_{package}")
    small = ["train.max_steps=2", "dataset.limit=8", "task.max_target_tokens=4"]
    recipe = ptkit.Recipe.load(PACKAGE / "recipe.toml", overrides=small)
    result = ptkit.run(recipe, out=tmp_path / "run")
    for column in ("before", "constant", "after"):
        assert {"bleu-4", "distinct-1", "distinct-2"} <= set(result.scores[column])
    # eight times the same answer: as many distinct 1-grams as it has characters
    constant = result.scores["constant"]
    assert constant["distinct-1"] <= 100 / 8
