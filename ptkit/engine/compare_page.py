"""The page of ``ptkit compare --html``: the runs, their scores and all curves in one chart."""

from __future__ import annotations

from pathlib import Path

from ptkit.engine.bootstrap import Interval
from ptkit.engine.charts import Line, Rule, Scale, line_chart, rounded, strip
from ptkit.engine.compare import RUN_COLUMNS, Comparison, run_row
from ptkit.engine.files import write_text
from ptkit.engine.page import (
    Column,
    Content,
    Html,
    document,
    element,
    joined,
    number,
    section,
    span,
    table,
)
from ptkit.engine.plot import smoothed

COLOURS = 6


def write_page(comparison: Comparison, path: Path) -> None:
    """Raises `WriteError` if it can't be written."""
    write_text(path, render(comparison))


def render(comparison: Comparison) -> Html:
    warnings = comparison.warnings
    keys = [
        element(f"span.swatch.{_colour(place)}", name)
        for place, name in enumerate(comparison.names)
    ]
    notes = element("ul", [element("li", f"{text}.") for text in warnings])
    return document(
        f"{len(comparison.runs)} runs compared",
        element("section.warnings", element("h2", "Not comparable"), notes) if warnings else "",
        section("Runs", _runs(comparison), anchor="runs"),
        section("Scores", _scores(comparison), anchor="scores"),
        section("Loss", _loss(comparison), anchor="loss"),
        section("Differences of the recipes", _differences(comparison), anchor="recipes"),
        lead=element("p.runs", keys),
        kicker="ptkit compare",
    )


def _colour(place: int) -> str:
    return f"c{place % COLOURS + 1}"


def _name(comparison: Comparison, place: int) -> Html:
    return element(f"span.swatch.{_colour(place)}", comparison.names[place])


def _runs(comparison: Comparison) -> Html:
    numbers = {"P", "steps", "trained"}
    columns = [Column(title, "number" if title in numbers else "") for title in RUN_COLUMNS]
    rows: list[list[Content]] = [
        [_name(comparison, place), *run_row(comparison, place)[1:]]
        for place in range(len(comparison.runs))
    ]
    return table(columns, rows)


def _scores(comparison: Comparison) -> Html:
    if not comparison.metrics:
        return element("p.note", "None of the runs was scored.")
    parts = []
    for metric in comparison.metrics:
        scale = _scale(comparison, metric)
        columns = [
            Column("run"),
            *(Column(title, "number") for title in ("before", "constant", "after")),
            Column(f"after − {comparison.names[0]}'s", "number"),
            Column(f"after, {number(scale.low, 0)} to {number(scale.high, 0)}", "strip-cell"),
        ]
        rows = [
            _score_row(comparison, place, metric, scale) for place in range(len(comparison.runs))
        ]
        parts.append(joined(element("h3", metric), table(columns, rows)))
    note = (
        "Below each score, its 95 % bootstrap interval over rows (percentiles; Efron, 1979). The "
        "difference is paired by rows, and only given where both runs answered the same rows."
    )
    return joined(*parts, element("p.note", note))


def _scale(comparison: Comparison, metric: str) -> Scale:
    values = [0.0]
    for run in comparison.runs:
        value = run.scores.get("after", {}).get(metric)
        if value is not None:
            values += run.interval("after", metric) or (value,)
    return rounded(min(values), max(values) or 1.0)


def _score_row(comparison: Comparison, place: int, metric: str, scale: Scale) -> list[Content]:
    run = comparison.runs[place]
    cells: list[Content] = [_name(comparison, place)]
    for column in ("before", "constant", "after"):
        value = run.scores.get(column, {}).get(metric)
        cells.append(_cell(number(value), run.interval(column, metric) if run.metrics else None))
    gain = comparison.gain(place, metric)
    cells.append(_gain(gain))
    after = run.scores.get("after", {}).get(metric)
    marks = [] if after is None else [(_colour(place), after, run.interval("after", metric))]
    cells.append(strip(marks, scale))
    return cells


def _cell(value: str, interval: Interval | None) -> Html:
    shown = element("span.value", value)
    return shown if interval is None else joined(shown, element("span.range", span(interval)))


def _gain(gain: Interval | None) -> Html:
    if gain is None:
        return element("span.value", "–")
    kind = "up" if gain.low > 0 else "down" if gain.high < 0 else "flat"
    return joined(
        element(f"span.value.{kind}", number(gain.value, signed=True)),
        element("span.range", span(gain, signed=True)),
    )


def _loss(comparison: Comparison) -> Html:
    lines, rules = [], []
    for place, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True)):
        train, validation = run.losses("train"), run.losses("validation")
        smooth = smoothed([loss for _, loss in train])
        points = list(zip([step for step, _ in train], smooth, strict=True))
        style = "faint" if validation else "plain"
        lines.append(Line("" if validation else name, points, _colour(place), style))
        lines.append(Line(name, validation, _colour(place), "dots"))
        rules += [
            Rule(f"{name} untuned, {loss:.2f}", loss, _colour(place))
            for _, loss in run.losses("untuned")[:1]
        ]
    if len({rule.y for rule in rules}) == 1:
        rules = [Rule(f"untuned, {rules[0].y:.2f}", rules[0].y)]
    chart = line_chart(
        lines, rules, x_label="optimiser step", y_label="loss, nats", title="Loss over training"
    )
    note = (
        "Dots: validation loss. Thin lines: training loss, smoothed. Dashed: the untuned model's."
    )
    return joined(chart, element("p.note", note))


def _differences(comparison: Comparison) -> Html:
    rows = comparison.differences
    if not rows:
        return element("p.note", "The recipes are the same.")
    columns = [Column("setting"), *map(Column, comparison.names)]
    cells = [
        [element("code", row.key), *(element("code", value) for value in row.values)]
        for row in rows
    ]
    return table(columns, cells)
