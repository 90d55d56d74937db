from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import ptkit_metrics_nlu

HERE = Path(__file__).parent.parent
README = (HERE / "README.md").read_text(encoding="utf-8")
METRICS = {metric.name: metric for metric in ptkit_metrics_nlu.ptkit_register_metrics()}
SCORES = {
    "accuracy": "label",
    "f1": "label",
    "matthews": "label",
    "multi-label-f1": "labels",
    "pearson-spearman": "number",
    "mean-error": "number",
    "choice-accuracy": "choice",
    "entity-f1": "entities",
    "tag-accuracy": "tags",
    "squad": "answer",
    "cmrc": "answer",
}


def test_what_is_registered():
    assert {name: metric.scores for name, metric in METRICS.items()} == SCORES


def test_the_readme_names_every_metric_its_kind_and_its_settings():
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| `(\w+)` \|", README, re.MULTILINE))
    assert rows == SCORES
    settings = {(name, key) for name, m in METRICS.items() for key in m.Settings.model_fields}
    named = set(re.findall(r"^\| `([a-z0-9-]+)` `(\w+)` \|", README, re.MULTILINE))
    assert named == settings


def test_the_readmes_sections_are_settings():
    found = 0
    for block in re.findall(r"```toml\n(.*?)```", README, re.DOTALL):
        for section in tomllib.loads(block)["metrics"]:
            kind = section.pop("kind")
            METRICS[kind].Settings(**section)
            found += 1
    assert found > 3


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import ptkit_metrics_nlu, sys; kinds = ptkit_metrics_nlu.ptkit_register_metrics();"
        "print([kind(kind.Settings()).score([]) for kind in kinds]);"
        "print({'nltk', 'numpy', 'scipy', 'sklearn', 'torch'} & set(sys.modules))"
    )
    assert run(code) == f"{[{}] * len(SCORES)}\nset()\n"


def test_scoring_says_nothing_on_stderr():
    code = (
        "import ptkit, ptkit_metrics_nlu as p;"
        "r = ptkit.Record(origin=ptkit.Origin('x', 1));"
        "rows = {'label': 'ab', 'labels': [('a',), ()], 'number': [1.0, 2.0], 'choice': [0, 1],"
        "'entities': [[], []], 'tags': [('N',), ()], 'answer': [{'text': '清朝 x'}, {'text': ''}]};"
        "gold = {**rows, 'answer': [['清朝'], []]};"
        "[m(m.Settings()).score([ptkit.Pair(r, x, y) for x, y in"
        " zip(rows[m.scores], gold[m.scores])]) for m in p.ptkit_register_metrics()]"
    )
    assert run(code) == ""


def run(code: str) -> str:
    """What ``code`` prints, in a process of its own that may say nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.stderr == ""
    return done.stdout
