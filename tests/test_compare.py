"""``ptkit compare`` and ``ptkit report``, on run folders made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptkit import cli
from ptkit.commands import tables
from ptkit.engine.compare import compare_runs
from ptkit.engine.compare_page import render

from .engine.finished import change, events, make_run, predictions, write, write_lines
from .engine.pages import checked


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs scored on the same rows."""
    base = make_run(tmp_path / "base", predictions(60))
    return base, make_run(tmp_path / "better", predictions(60, seed=1, lift=6), rate=0.01, fall=2.3)


# ------------------------------------------------------------------------------ what it shows


def test_runs_scores_and_differences(run: Any, pair: tuple[Path, Path]) -> None:
    code, out, err = run("compare", *pair)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == ("run backbone P init steps trained best validation loss")
    assert " ".join(lines[1].split()) == ("base chatglm2 nano 16 normal 40 8,192 2.1366 at step 40")
    rows = [line.split() for line in lines]
    assert ["rouge-1", "base", "21.29", "32.09", "57.09", "–", "–"] in rows
    assert ["better", "19.67", "33.04", "66.86", "+9.76", "+4.79", "to", "+15.06"] in rows
    assert rows[-2:] == [["recipe", "base", "better"], ["train.learning_rate", "0.02", "0.01"]]


def test_the_interval_is_paired_by_rows(pair: tuple[Path, Path]) -> None:
    comparison = compare_runs(pair)
    gain = comparison.gain(1, "rouge-1")
    assert gain is not None
    base, better = (
        np.array([row["scores"]["after"]["rouge-1"] for row in run.predictions])
        for run in comparison.runs
    )
    generator = np.random.default_rng(0)
    drawn = [generator.integers(60, size=60) for _ in range(2000)]
    differences = [(better[rows] - base[rows]).mean() for rows in drawn]
    assert gain.value == pytest.approx((better - base).mean())
    assert gain[1:] == pytest.approx(np.percentile(differences, [2.5, 97.5]))
    assert comparison.gain(0, "rouge-1") is None


def test_equal_recipes(run: Any, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, predictions(5)) for name in ("a", "b")]
    out = run("compare", *folders)[1]
    assert out.splitlines()[-1] == "the recipes are the same"


def test_keys_that_one_recipe_lacks(run: Any, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, predictions(5)) for name in ("a", "b")]
    recipe = folders[1] / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('init = "normal"', "projection = true"))
    rows = [line.split() for line in run("compare", *folders)[1].splitlines()]
    assert ["prefix.init", '"normal"', "–"] in rows
    assert ["prefix.projection", "–", "true"] in rows


def test_runs_without_scores(run: Any, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    code, out, err = run("compare", *folders)
    assert (code, err) == (0, "")
    assert "score" not in out
    assert "None of the runs was scored." in checked(render(compare_runs(folders))).text


def test_runs_of_one_name_go_by_their_paths(run: Any, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name / "run", predictions(5)) for name in ("a", "b")]
    assert run("compare", *folders)[1].splitlines()[2].startswith(f"{tmp_path}/b/run")


def test_chinese_names_line_up(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_table(("run", "n"), [("中文", "1"), ("a", "10")], numbers=(1,))
    assert capsys.readouterr().out == "run    n\n中文   1\na     10\n"


def test_a_table_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables.sys.stdout, "isatty", lambda: True)
    tables.show_table(("run", "n"), [("[bold]", "1")], numbers=(1,))
    assert "│ [bold] │ 1 │" in capsys.readouterr().out


# ------------------------------------------------------------------------------ warnings


def test_other_data(run: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", predictions(60), sha256="e" * 64)
    code, _, err = run("compare", pair[0], other)
    assert code == 0
    assert err.splitlines() == [
        "warning: base and other were scored on different data (validation.json, sha256 bbbbbbbb…; "
        "validation.json, sha256 eeeeeeee…): their scores can't be compared",
        "warning: base and other differ in validation data: their losses can't be compared",
    ]


def test_one_run_without_scores(run: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    err = run("compare", pair[0], make_run(tmp_path / "none"))[2]
    assert "(validation.json, sha256 bbbbbbbb…; none): their scores can't be compared" in err


def test_other_rows_of_the_same_file(run: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", predictions(50))
    err = run("compare", pair[0], other)[2]
    assert (
        "warning: base and other were scored on different rows of the same file (60; 50): "
        "their scores can't be compared\n"
    ) in err


def test_other_tokenizers_and_averages(run: Any, pair: tuple[Path, Path]) -> None:
    manifest = pair[1] / "adapter" / "adapter.json"
    backbone = json.loads(manifest.read_text())["backbone"] | {"tokenizer": "other"}
    change(manifest, backbone=backbone)
    recipe = pair[1] / "recipe.toml"
    recipe.write_text(recipe.read_text() + 'loss_average = "row"\n')
    assert run("compare", *pair)[2] == (
        "warning: base and better differ in tokenizer and train.loss_average: "
        "their losses can't be compared\n"
    )


# ------------------------------------------------------------------------------ refusals


def test_one_run_is_not_enough(run: Any, pair: tuple[Path, Path]) -> None:
    code, out, err = run("compare", pair[0])
    assert (code, out) == (2, "")
    assert "one run is nothing to compare: name two or more run folders" in err


def test_every_folder_that_is_no_finished_run_is_named(
    run: Any, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (pair[1] / "scores.json").unlink()
    assert run("compare", pair[0], tmp_path / "no", tmp_path, pair[1]) == (
        2,
        "",
        f"{tmp_path}/no: no such run folder\n"
        f"{tmp_path}: is no run folder, it has no recipe.toml\n"
        f"{pair[1]}: the run is not finished, scores.json missing; go on with: "
        f"ptkit run {pair[1]}/recipe.toml --out {pair[1]} --resume\n",
    )


def test_a_run_named_twice(run: Any, pair: tuple[Path, Path]) -> None:
    again = pair[0] / ".." / pair[0].name
    message = f"{again}: is named twice; compare it with another run\n"
    assert run("compare", pair[0], again) == (2, "", message)


# ------------------------------------------------------------------------------ the page


def test_the_page_has_all_runs_in_one_chart(run: Any, pair: tuple[Path, Path]) -> None:
    path = pair[0].parent / "compare.html"
    code, out, err = run("compare", *pair, "--html", path)
    assert (code, err) == (0, "")
    assert out.endswith(f"\npage: {path}\n")
    html = path.read_text(encoding="utf-8")
    text = checked(html).text
    assert html.count('class="chart large"') == 1
    for line in ("line dots c1", "line dots c2", "line faint c1", "line faint c2"):
        assert html.count(f'class="{line}"') >= 1
    assert "untuned, 4.00" in text
    assert "2 runs compared" in text
    assert "train.learning_rate" in text
    assert "Not comparable" not in text
    assert run("compare", *pair, "--html", path)[0] == 0
    assert path.read_text(encoding="utf-8") == html


def test_the_page_escapes_and_warns(tmp_path: Path) -> None:
    rows = predictions(5)
    evil = "<script>alert(1)<"
    folders = [
        make_run(tmp_path / "a", rows),
        make_run(tmp_path / evil, rows, sha256="e" * 64),
        make_run(tmp_path / "c"),
    ]
    write(folders[1] / "scores.json", {"before": {evil: 1.0}, "after": {evil: 2.0}})
    write_lines(folders[1] / "events.jsonl", [*events(40)[1:], {**events(1)[0], "loss": 5.0}])
    text = checked(render(compare_runs(folders))).text
    assert "Not comparable" in text
    assert f"{evil} untuned, 5.00" in text
    assert text.count(evil) > 5


def test_equal_recipes_on_the_page(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, predictions(5)) for name in ("a", "b")]
    assert "The recipes are the same." in checked(render(compare_runs(folders))).text


def test_a_page_that_cannot_be_written(run: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "no" / "compare.html"
    code, _, err = run("compare", *pair, "--html", path)
    assert (code, err) == (2, f"{path}: can't be written: No such file or directory\n")


# ------------------------------------------------------------------------------ ptkit report


def test_report_is_made_again(run: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[0] / "report.html"
    assert run("report", pair[0]) == (0, f"wrote {path}\n", "")
    checked(path.read_text(encoding="utf-8"))
    assert run("report", tmp_path / "no") == (2, "", f"{tmp_path}/no: no such run folder\n")
