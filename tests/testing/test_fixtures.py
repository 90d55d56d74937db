"""The fixtures of `ptkit.testing.fixtures`, as the tests of a plugin use them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PLUGIN = """
import ptkit


class Words(ptkit.DatasetFormat):
    name = "words"
    record = ptkit.GenerationRecord

    def read(self, path, name):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            first, *rest = line.split()
            yield ptkit.GenerationRecord(
                origin=ptkit.Origin(name, number), prompt=first, response=" ".join(rest)
            )


class Length(ptkit.RowMetric):
    name = "length"
    scores = "text"
    unit = "words"

    def score_row(self, pair):
        return {"length": float(len(pair.prediction.split()))}


class Fails(Length):
    name = "fails"

    def score_row(self, pair):
        raise ValueError("never")


@ptkit.hookimpl
def ptkit_register_dataset_formats():
    return [Words]


@ptkit.hookimpl
def ptkit_register_metrics():
    return [Length, Fails]
"""

TESTS = """
import json

import ptkit_tasks
import pytest
import words_plugin


class Broken:
    @words_plugin.ptkit.hookimpl
    def ptkit_register_metrics(self):
        return [3]


def test_the_registry_has_what_it_is_given_and_the_tiny_backbone(registry):
    made = registry(words_plugin)
    assert made.names("dataset") == ["words"]
    assert made.names("backbone") == ["tiny"]
    assert made.names("task") == []


def test_a_registry_each(registry):
    assert registry().names("dataset") == []


def test_a_broken_plugin_fails_the_test(registry):
    with pytest.raises(pytest.fail.Exception, match="3 is not a subclass of ptkit.Metric"):
        registry(Broken())


def test_twice_fails_the_test(registry):
    class Again:
        @words_plugin.ptkit.hookimpl
        def ptkit_register_metrics(self):
            return [words_plugin.Length]

    with pytest.raises(pytest.fail.Exception, match="'length' is registered twice"):
        registry(words_plugin, Again())


@pytest.fixture
def sections(tmp_path):
    (tmp_path / "data.txt").write_text("red a red dress\\nblue a blue hat\\n" * 3)
    data = {"kind": "words", "train": "data.txt", "validation": "data.txt"}
    return {"dataset": data, "task": {"kind": "generation", "max_target_tokens": 6}}


def test_a_run(tiny_run, sections, tmp_path):
    metrics = [{"kind": "length"}]
    result = tiny_run(words_plugin, ptkit_tasks, **sections, metrics=metrics)
    assert set(result.scores["after"]) == {"length"}
    assert result.folder == tmp_path / "run-1"
    lines = (result.folder / "events.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["event"] == "train" for line in lines) == 4
    again = tiny_run(words_plugin, ptkit_tasks, **sections, train={"max_steps": 2})
    assert again.folder == tmp_path / "run-2"


def test_a_failing_metric_fails_the_test(tiny_run, sections):
    with pytest.raises(pytest.fail.Exception, match="metric 'fails' .* ValueError: never"):
        tiny_run(words_plugin, ptkit_tasks, **sections, metrics=[{"kind": "fails"}])
"""


def test_the_fixtures_of_a_plugins_tests(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makeconftest('pytest_plugins = ["ptkit.testing.fixtures"]\n')
    pytester.makepyfile(words_plugin=PLUGIN, test_words=TESTS)
    pytester.syspathinsert()
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=6)


def test_nothing_is_loaded_unasked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_no_fixture(tiny_run):\n    pass\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'tiny_run' not found*"])
