"""report.html, from run folders made by hand."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from ptkit import cli
from ptkit.engine import charts, page, report
from ptkit.engine.bootstrap import Interval
from ptkit.engine.charts import Bars, Line, Rule, line_chart, thinned, ticks
from ptkit.engine.page import element, number
from ptkit.engine.report import verdict, write_report
from ptkit.engine.runfolder import read_run
from ptkit.engine.samples import LONGEST, chosen
from ptkit.engine.usage import python_lines, shell_lines
from ptkit.errors import PtkitError

from .finished import change, events, make_run, predictions, totals, write, write_lines
from .pages import checked


def made(folder: Path, rows: Any = None, **options: Any) -> str:
    make_run(folder, rows, **options)
    write_report(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------ the whole page


def test_a_report_says_what_the_run_was(tmp_path: Path) -> None:
    html = made(tmp_path / "r", predictions(60))
    text = checked(html).text
    scores = json.loads((tmp_path / "r" / "scores.json").read_text())
    for column in scores.values():
        for value in column.values():
            assert f"{value:.2f}" in text
    for wanted in ("chatglm2 nano", "8,192", "2.1366 at step 40", "untuned model, 4.00", "rouge-1"):
        assert wanted in text
    assert "12 of 1,000 train rows lost 108 tokens to the length limits, 24 of them" in text
    assert "Only 60 rows were scored: intervals from so few are rather too narrow." in text
    assert "learning_rate = 0.02" in text
    assert "limit, 64 and the end" in text
    assert "宽松的版型，百搭的颜色" in text


def test_it_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    first = made(tmp_path / "r", predictions(60))
    write_report(tmp_path / "r")
    assert (tmp_path / "r" / "report.html").read_text(encoding="utf-8") == first


def test_everything_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&<img src=x onerror=y>"
    rows = predictions(20)
    for row in rows:
        row |= {"prompt": evil, "reference": evil, "before": evil, "after": evil, "origin": evil}
        row["scores"] = {column: {evil: 1.0, **s} for column, s in row["scores"].items()}
    folder = make_run(tmp_path / "r", rows)
    scores = {column: {evil: 1.0, **found} for column, found in totals(rows).items()}
    write(folder / "scores.json", scores)
    change(folder / "scoring.json", constant=evil, warnings=[evil], units={evil: evil})
    environment = json.loads((folder / "environment.json").read_text())
    environment["backbone"]["name"] = environment["data"]["train"]["source"] = evil
    environment |= {"device": evil, "packages": {evil: evil}}
    write(folder / "environment.json", environment)
    lengths = json.loads((folder / "lengths.json").read_text())
    change(folder / "lengths.json", parts={evil: lengths["parts"]["train"]}, limits={})
    recipe = (folder / "recipe.toml").read_text()
    (folder / "recipe.toml").write_text(f"# {evil}\n{recipe}")
    write_report(folder)
    text = checked((folder / "report.html").read_text()).text
    assert text.count("<script>alert(1)</script>") > 20


def test_one_row_has_nothing_to_estimate_from(tmp_path: Path) -> None:
    html = made(tmp_path / "r", predictions(1))
    text = checked(html).text
    assert "One row was scored: from a single row there is no interval to estimate." in text
    assert "A single row was scored, which says next to nothing." in text
    assert "On 1 validation row, the adapter takes rouge-1 from" in text
    assert "1 row, the best rouge-1 first." in text
    assert "95 %" not in text


def test_ten_thousand_rows_stay_small(tmp_path: Path) -> None:
    rows = predictions(10_000)
    for row in rows:
        row["after"] = "很长的回答，" * 500
    html = made(tmp_path / "r", rows, steps=5000)
    text = checked(html).text
    assert len(html.encode()) < 500_000
    assert "15 of 10,000 rows, by rouge-1 after training." in text
    assert f"… ({3000 - LONGEST:,} more characters)" in text
    assert "On 10,000 validation rows, the adapter raises rouge-1 from" in text


def test_without_validation_data(tmp_path: Path) -> None:
    html = made(tmp_path / "r")
    text = checked(html).text
    assert "The adapter was trained, but nothing was scored." in text
    assert "Nothing was scored: the recipe names no metric, or no validation or test data." in text
    assert "Without validation data there is no loss to compare with" in text
    assert "There are no predictions: nothing was scored." in text


def test_files_of_an_earlier_version(tmp_path: Path) -> None:
    """No scores of rows, no lengths, no constant: the rest is shown."""
    rows = predictions(30)
    for row in rows:
        del row["scores"]
    folder = make_run(tmp_path / "r", [])
    write_lines(folder / "predictions.jsonl", rows)
    write(folder / "scores.json", {"before": {"f1": 1.0}, "after": {"f1": 3.0}})
    for name in ("lengths.json", "scoring.json"):
        (folder / name).unlink()
    write_report(folder)
    text = checked((folder / "report.html").read_text()).text
    assert "The lengths of this run's rows were not recorded." in text
    assert "There are no intervals: no score is a mean of scores of single rows." in text
    assert "15 of 30 rows." in text
    assert "takes f1 from 1.00 to 3.00." in text


def test_scores_that_are_no_mean_over_rows_have_no_interval(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(30))
    scores = json.loads((folder / "scores.json").read_text())
    scores = {column: {**found, "corpus-f1": 5.0} for column, found in scores.items()}
    write(folder / "scores.json", scores)
    write_report(folder)
    text = checked((folder / "report.html").read_text()).text
    assert "corpus-f1: not a mean over rows, so without one." in text


def test_labels_and_lists_are_shown_as_json_and_nothing_as_nothing(tmp_path: Path) -> None:
    rows = predictions(3)
    for row in rows:
        row |= {"prompt": None, "reference": ["正", "负"], "before": None, "after": " "}
    text = checked(made(tmp_path / "r", rows)).text
    assert '["正", "负"]' in text
    assert " none " in text
    assert " empty " in text
    assert "ptkit chat" not in text
    assert "generate" not in text


def test_warnings_that_only_some_runs_have(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(200))
    change(folder / "scoring.json", warnings=["3 of 200 predictions are empty and score 0"])
    data = json.loads((folder / "environment.json").read_text())["data"]
    data["train"]["skipped"] = 2
    change(folder / "environment.json", data=data)
    write_lines(folder / "events.jsonl", events(40, fall=-1.0))
    write_report(folder)
    text = checked((folder / "report.html").read_text()).text
    assert "3 of 200 predictions are empty and score 0" in text
    assert "2 bad rows of the train data left out." in text
    assert "The validation loss never fell below the untuned model's." in text
    assert "rather too narrow" not in text


def test_a_run_without_anything_to_warn_of(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(200))
    (folder / "lengths.json").unlink()
    write_report(folder)
    assert "Before you rely on it" not in (folder / "report.html").read_text()


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(5))
    write_lines(folder / "events.jsonl", [{"event": "train", "step": 1, "loss": float("nan")}])
    write_report(folder)
    text = checked((folder / "report.html").read_text()).text
    assert "There is nothing to draw: no step was recorded." in text


# ------------------------------------------------------------------------------ the sentence


def sentence(folder: Path, before: float, constant: float | None, after: float) -> tuple[str, str]:
    """The verdict of forty rows whose scores vary by ±2 around these."""
    rows = predictions(40)
    means = {"before": before, "constant": constant, "after": after}
    for index, row in enumerate(rows):
        shift = {"before": index % 5 - 2, "constant": index % 3 - 1, "after": 2 - index % 5}
        row["scores"] = {c: {"f1": m + shift[c]} for c, m in means.items() if m is not None}
    make_run(folder, rows)
    scores = {
        column: {"f1": sum(row["scores"][column]["f1"] for row in rows) / 40}
        for column in rows[0]["scores"]
    }
    write(folder / "scores.json", scores)
    return verdict(read_run(folder))


def test_better_and_above_the_constant(tmp_path: Path) -> None:
    kind, text = sentence(tmp_path / "r", 20, 30, 60)
    assert kind == "good"
    assert re.fullmatch(
        r"On 40 validation rows, the adapter raises f1 from 20\.00 to 60\.00, a change of \+40\.00 "
        r"\(95 %: \+3\d\.\d\d to \+4\d\.\d\d\); one constant answer scores 29\.98\.",
        text,
    )


def test_better_but_no_better_than_a_constant(tmp_path: Path) -> None:
    kind, text = sentence(tmp_path / "r", 20, 70, 60)
    assert kind == "open"
    assert text.endswith("; that is not above one constant answer, which scores 69.97.")


def test_above_the_constant_by_chance(tmp_path: Path) -> None:
    kind, text = sentence(tmp_path / "r", 20, 59.9, 60)
    assert kind == "open"
    assert "that is not clearly above one constant answer" in text


def test_a_change_that_could_be_chance(tmp_path: Path) -> None:
    kind, text = sentence(tmp_path / "r", 60, None, 60.1)
    assert kind == "open"
    assert "the adapter takes f1 from" in text
    assert text.endswith(", which could be chance.")


def test_worse(tmp_path: Path) -> None:
    kind, text = sentence(tmp_path / "r", 60, 70, 20)
    assert kind == "bad"
    assert "the adapter lowers f1 from" in text


def test_unchanged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(1))
    scores = {"before": {"f1": 5.0}, "after": {"f1": 5.0}}
    write(folder / "scores.json", scores)
    assert "the adapter leaves f1 from 5.00 to 5.00" in verdict(read_run(folder))[1]


# ------------------------------------------------------------------------------ samples and usage


def test_best_worst_and_random_rows_once_each() -> None:
    scores: list[float | None] = [float(i % 50) for i in range(100)]
    scores[0] = None
    groups = chosen(scores)
    assert groups["best"] == [49, 99, 48, 98, 47]
    assert groups["worst"] == [50, 51, 1, 52, 2]
    shown = [row for group in groups.values() for row in group]
    assert len(set(shown)) == len(shown) == 15
    assert chosen(scores) == groups


def test_few_rows_are_all_shown() -> None:
    assert chosen([1.0, None, 3.0]) == {"all": [2, 0, 1]}
    assert chosen([]) == {"all": []}
    assert len(chosen([None] * 40)["random"]) == 15


def test_the_python_lines_are_python() -> None:
    lines = python_lines('a"b\\', "it's/适配器", '提示\n"')
    tree = ast.parse(lines)
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {'a"b\\', "it's/适配器", '提示\n"'} <= constants
    assert "generate" not in python_lines("nano", "a", None)


def test_the_shell_lines_are_quoted() -> None:
    lines = shell_lines("/my models/glm", "my run/adapter", chat=True).splitlines()
    assert lines[0] == "ptkit chat 'my run/adapter' --backbone '/my models/glm'"
    assert len(lines) == 3
    # a named source is in the adapter itself
    assert shell_lines("nano", "adapter", chat=False).splitlines()[0] == (
        "ptkit predict adapter --input FILE --output FILE"
    )


def test_the_commands_and_options_exist() -> None:
    for line in shell_lines("/glm", "adapter", chat=True).splitlines():
        _, name, *rest = line.split()
        command = cli.COMMANDS[name].load(name)
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known


# ------------------------------------------------------------------------------ parts of a page


def test_elements_escape_text_and_attributes() -> None:
    made_of = element("p.a.b", "<", element("b", "&"), attributes={"title": '"<'})
    assert made_of == '<p class="a b" title="&quot;&lt;">&lt;<b>&amp;</b></p>'
    assert page.joined(["<", element("b", "x")]) == "&lt;<b>x</b>"


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(0.004, True, "0.00"), (-0.004, False, "0.00"), (-1.5, True, "−1.50"), (1.5, True, "+1.50"),
     (None, False, "–"), (float("nan"), False, "–"), (float("inf"), False, "–")],
)  # fmt: skip
def test_numbers(value: float | None, signed: bool, text: str) -> None:
    assert number(value, signed=signed) == text


def test_spans_and_counts() -> None:
    assert page.span(Interval(0, -1, 1), signed=True) == "−1.00 to +1.00"
    assert page.span(None) == "–"
    assert (page.counted(1, "row"), page.counted(1200, "row")) == ("1 row", "1,200 rows")
    assert page.shortened("abc", 3) == "abc"
    assert page.shortened("abcd", 3) == "abc… (1 more characters)"


def test_ticks_are_round() -> None:
    assert ticks(0, 23) == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert ticks(7.9, 8.6) == [8.0, 8.2, 8.4, 8.6]
    assert ticks(-0.2, 0.2) == [-0.2, -0.1, 0.0, 0.1, 0.2]
    assert charts.rounded(0, 61) == charts.Scale(0, 80)


def test_long_lines_are_averaged() -> None:
    points = [(float(i), float(i % 2)) for i in range(1000)]
    short = thinned(points, 100)
    assert len(short) == 100
    assert short[0] == (4.5, 0.5)
    assert thinned(points[:100], 100) == points[:100]


def test_a_chart_keeps_outliers_inside() -> None:
    noise = [(float(i), 1000.0 if i == 3 else 1.0 + i / 10) for i in range(10)]
    calm = [(float(i), 1.0 + i / 10) for i in range(10)]
    lines = [Line("noise", noise, "c1", "faint"), Line("calm", calm, "c1")]
    html = line_chart(lines, [Rule("nan", float("nan"))], x_label="x", y_label="y", title="t")
    paths = re.findall(r'd="M([^"]*)"', html)
    assert max(float(n) for path in paths for n in re.findall(r"[\d.]+", path)) <= 1000
    assert "nan" not in html


def test_a_histogram_is_a_share_of_rows() -> None:
    bars = Bars("train", [1, 3], 10, "c1")
    html = charts.histogram([bars], limit=("limit, 15", 16), x_label="tokens", title="t")
    # 4 rows, 10 wide: 2.5 % and 7.5 % of the rows a token
    heights = re.findall(r"L[\d.]+ ([\d.]+)L", html)
    top, peak = 7.5 * 1.08, 1000 - 1000 / 1.08
    assert [float(h) for h in heights[:2]] == pytest.approx(
        [1000 - 1000 * 2.5 / top, peak], abs=0.1
    )
    assert "limit, 15" in html


def test_a_histogram_without_a_limit() -> None:
    html = charts.histogram([Bars("a", [1], 1, "c1")], limit=None, x_label="x", title="t")
    assert "limit" not in html


# ------------------------------------------------------------------------------ no run folders


def refused(folder: Path) -> str:
    with pytest.raises(PtkitError) as caught:
        write_report(folder)
    assert not (folder / "report.html").exists()
    return str(caught.value)


def test_no_run_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "no") == f"{tmp_path}/no: no such run folder"
    assert refused(tmp_path) == f"{tmp_path}: is no run folder, it has no recipe.toml"
    adapter = make_run(tmp_path / "r", predictions(1)) / "adapter"
    assert refused(adapter) == (
        f"{adapter}: is no run folder, it has no recipe.toml; "
        f"it is an adapter, did you mean {tmp_path}/r?"
    )


def test_an_unfinished_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(2))
    (folder / "scores.json").unlink()
    (folder / "predictions.jsonl").unlink()
    assert refused(folder) == (
        f"{folder}: the run is not finished, predictions.jsonl, scores.json missing; go on with: "
        f"ptkit run {folder}/recipe.toml --out {folder} --resume"
    )
    (folder / "adapter" / "adapter.json").unlink()
    (folder / "environment.json").unlink()
    assert "not finished, environment.json, adapter/adapter.json missing" in refused(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("recipe.toml", "a = ", "recipe.toml: is damaged: Invalid value"),
        ("recipe.toml", "a = 1", "recipe.toml: is damaged: 'backbone' is missing"),
        ("scores.json", "[]", "scores.json: is damaged: must hold an object, got list"),
        ("scores.json", "{", "scores.json: is damaged: Expecting property name"),
        ("environment.json", "{}", "environment.json: is damaged: 'backbone' is missing"),
        ("adapter/adapter.json", "{}", "adapter/adapter.json: is damaged: 'backbone' is missing"),
        ("predictions.jsonl", "{}\n{", "predictions.jsonl:2: is damaged: Expecting property name"),
        ("predictions.jsonl", "1\n", "predictions.jsonl:1: is damaged: must hold objects, got int"),
        ("events.jsonl", "{}\n", "events.jsonl:1: is damaged: no event and step"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = make_run(tmp_path / "r", predictions(2))
    (folder / name).write_text(content)
    assert f"{folder}/{message}" in refused(folder)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", predictions(2))
    (folder / "scores.json").write_bytes(b"\xff")
    assert f"{folder}/scores.json: can't be read: " in refused(folder)


def test_the_module_names_what_it_writes() -> None:
    assert report.REPORT == "report.html"
