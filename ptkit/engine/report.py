"""report.html: a run on one page, made from its folder alone, so that it can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptkit.engine.bootstrap import Interval
from ptkit.engine.charts import Bars, Line, Rule, Scale, histogram, line_chart, rounded, strip
from ptkit.engine.files import write_text
from ptkit.engine.page import (
    Column,
    Html,
    counted,
    document,
    element,
    facts,
    joined,
    number,
    section,
    span,
    table,
)
from ptkit.engine.plot import smoothed
from ptkit.engine.runfolder import FinishedRun, read_run
from ptkit.engine.samples import samples
from ptkit.engine.usage import usage

REPORT = "report.html"
EXPLAINED = {
    "before": "the frozen model without a prefix",
    "constant": "the best of the training answers tried, given to every row",
    "after": "the same model with the trained prefix",
}
COLOURS = ("c1", "c2", "c3")
FEW = 100  # scored rows; below, percentile intervals cover less than they say


def write_report(folder: Path) -> None:
    """Make ``report.html`` of a finished run. Raises `PtkitError` if it is none."""
    write_text(folder / REPORT, render(read_run(folder)))


def render(run: FinishedRun) -> Html:
    kind, sentence = verdict(run)
    parts = [
        ("scores", "Scores", _scores(run)),
        ("loss", "Loss", _loss(run)),
        ("lengths", "Lengths", _lengths(run)),
        ("samples", "Samples", samples(run)),
        ("use", "Use the adapter", usage(run)),
        ("recipe", "Recipe", element("pre", run.recipe_text)),
        ("environment", "Data and environment", _environment(run)),
    ]
    links = [element("a", title, attributes={"href": f"#{key}"}) for key, title, _ in parts]
    lead = joined(element(f"p.lead.{kind}", sentence), _facts(run), element("nav", links))
    warnings = element("section.warnings", element("h2", "Before you rely on it"), _list(run))
    return document(
        run.name,
        warnings if list(_warnings(run)) else "",
        *(section(title, content, anchor=key) for key, title, content in parts),
        lead=lead,
        kicker="ptkit run",
    )


# ------------------------------------------------------------------------------------------ result


def verdict(run: FinishedRun) -> tuple[str, str]:
    """("good", "bad" or "open", a sentence): the first score, chance and constant considered."""
    if not run.metrics:
        best = run.best_validation
        found = "" if best is None else f" Its best validation loss is {best[1]:.4f}."
        return "open", f"The adapter was trained, but nothing was scored.{found}"
    metric = run.metrics[0]
    before, after = run.scores["before"].get(metric), run.scores["after"][metric]
    rows = counted(len(run.predictions), f"{run.scored_part} row")
    change = run.bootstrap.difference("after", "before", metric)
    verb, kind = _verb(change, before, after)
    text = f"On {rows}, the adapter {verb} {metric} from {number(before)} to {number(after)}"
    if change is not None:
        text += (
            f", a change of {number(change.value, signed=True)} (95 %: {span(change, signed=True)})"
        )
        if change.low <= 0 <= change.high:
            text += ", which could be chance"
    constant = run.scores.get("constant", {}).get(metric)
    if constant is None:
        return kind, f"{text}."
    over = run.bootstrap.difference("after", "constant", metric)
    if after <= constant or (over is not None and over.low <= 0):
        short = "is not above" if after <= constant else "is not clearly above"
        kind = "bad" if kind == "bad" else "open"
        return kind, f"{text}; that {short} one constant answer, which scores {number(constant)}."
    return kind, f"{text}; one constant answer scores {number(constant)}."


def _verb(change: Interval | None, before: float | None, after: float) -> tuple[str, str]:
    if change is not None and change.low > 0:
        return "raises", "good"
    if change is not None and change.high < 0:
        return "lowers", "bad"
    return ("leaves", "open") if before == after else ("takes", "open")


def _facts(run: FinishedRun) -> Html:
    environment, prefix = run.environment, run.recipe["prefix"]
    start = prefix.get("start")
    how = prefix.get("init") if start is None else f"from {Path(start).name}"
    best = run.best_validation
    frozen = environment.get("frozen_parameters")
    trained = environment["trainable_parameters"]
    share = f" ({trained / (trained + frozen):.2%})" if frozen else ""
    entries = [
        ("Backbone", f"{environment['backbone']['kind']} {environment['backbone']['name']}"),
        ("Prefix", f"{run.manifest['prefix']['length']} tokens a layer, {how}"),
        ("Trained parameters", f"{trained:,}{share}"),
        ("Steps", f"{run.steps:,}"),
        ("Best validation loss", "–" if best is None else f"{best[1]:.4f} at step {best[0]:,}"),
        ("Time in training", _duration(sum(e.get("seconds", 0) for e in run.events))),
    ]
    return facts(entries)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _warnings(run: FinishedRun) -> Iterator[str]:
    yield from run.scoring.get("warnings", ())
    for name, part in run.environment["data"].items():
        if part.get("skipped"):
            yield f"{counted(part['skipped'], 'bad row')} of the {name} data left out."
    for name, part in run.lengths.get("parts", {}).items():
        if part["cut_rows"]:
            yield (
                f"{part['cut_rows']:,} of {counted(part['rows'], f'{name} row')} lost "
                f"{counted(part['cut_tokens'], 'token')} to the length limits, "
                f"{part['cut_targets']:,} of them to be trained on."
            )
    if run.metrics and len(run.predictions) == 1:
        yield "A single row was scored, which says next to nothing."
    elif run.metrics and len(run.predictions) < FEW:
        yield (
            f"Only {len(run.predictions)} rows were scored: intervals from so few are rather too "
            "narrow."
        )
    untuned, best = run.losses("untuned"), run.best_validation
    if untuned and best is not None and best[1] >= untuned[0][1]:
        yield "The validation loss never fell below the untuned model's."


def _list(run: FinishedRun) -> Html:
    return element("ul", [element("li", text) for text in _warnings(run)])


def _scores(run: FinishedRun) -> Html:
    if not run.metrics:
        return element(
            "p.note",
            "Nothing was scored: the recipe names no metric, or no validation or test data.",
        )
    scale = _scale(run)
    columns = [
        Column("score"),
        *(Column(name, "number") for name in run.columns),
        Column("after − before", "number"),
        Column(f"{number(scale.low, 0)} to {number(scale.high, 0)}", "strip-cell"),
    ]
    rows = []
    for metric in run.metrics:
        known = {c: v for c in run.columns if (v := run.scores[c].get(metric)) is not None}
        change = run.bootstrap.difference("after", "before", metric)
        marks = [(c, value, run.interval(c, metric)) for c, value in known.items()]
        rows.append(
            [
                metric,
                *(_score(known.get(c), run.interval(c, metric)) for c in run.columns),
                _change(change, known),
                strip(marks, scale),
            ]
        )
    keys = [joined(element(f"span.swatch.{c}", c), f": {EXPLAINED[c]}. ") for c in run.columns]
    return joined(
        table(columns, rows, kind="scores"),
        element("p.note", *keys, _constant(run)),
        element("p.note", _about_intervals(run)),
    )


def _scale(run: FinishedRun) -> Scale:
    """One scale for all strips, 0 included."""
    values = [0.0]
    for column in run.columns:
        for metric, value in run.scores[column].items():
            interval = run.interval(column, metric) or Interval(value, value, value)
            values += [value, interval.low, interval.high]
    return rounded(min(values), max(values) or 1.0)


def _score(value: float | None, interval: Interval | None) -> Html:
    shown = element("span.value", number(value))
    return shown if interval is None else joined(shown, element("span.range", span(interval)))


def _change(change: Interval | None, known: dict[str, float]) -> Html:
    if change is None:
        both = "before" in known and "after" in known
        value = known["after"] - known["before"] if both else None
        return element("span.value", number(value, signed=True))
    kind = "up" if change.low > 0 else "down" if change.high < 0 else "flat"
    shown = element(f"span.value.{kind}", number(change.value, signed=True))
    return joined(shown, element("span.range", span(change, signed=True)))


def _constant(run: FinishedRun) -> str:
    answer = run.scoring.get("constant")
    return "" if answer is None else f"The constant answer: “{str(answer)[:200]}”."


def _about_intervals(run: FinishedRun) -> str:
    rows = len(run.predictions)
    units = sorted(set(run.scoring.get("units", {}).values()))
    unit = f"Scores are in {', '.join(units)}. " if units else ""
    if rows == 1:
        return f"{unit}One row was scored: from a single row there is no interval to estimate."
    without = [m for m in run.metrics if run.interval("after", m) is None]
    if len(without) == len(run.metrics):
        return f"{unit}There are no intervals: no score is a mean of scores of single rows."
    missing = f" {', '.join(without)}: not a mean over rows, so without one." if without else ""
    return (
        f"{unit}Below each score, its 95 % bootstrap interval: the rows drawn anew 2,000 times "
        "(percentiles; Efron, 1979). The difference is paired: both from the same drawn rows. "
        f"The intervals cover the choice of rows, not that of seed, data or recipe.{missing}"
    )


# ------------------------------------------------------------------------------------------ charts


def _loss(run: FinishedRun) -> Html:
    train = run.losses("train")
    steps = [step for step, _ in train]
    smooth = smoothed([loss for _, loss in train])
    chart = line_chart(
        [
            Line("training, each step", train, "c1", "faint"),
            Line("training, smoothed", list(zip(steps, smooth, strict=True)), "c1"),
            Line("validation", run.losses("validation"), "c2", "dots"),
        ],
        [Rule(f"untuned model, {loss:.2f}", loss) for _, loss in run.losses("untuned")[:1]],
        x_label="optimiser step",
        y_label="loss, nats",
        title="Loss over training",
    )
    note = (
        "The dashed line is the untuned model's validation loss; how far validation falls below it "
        "is what training brought."
        if run.losses("untuned")
        else "Without validation data there is no loss to compare with, and the last step is kept."
    )
    return joined(chart, element("p.note", note))


def _lengths(run: FinishedRun) -> Html:
    if not run.lengths:
        return element("p.note", "The lengths of this run's rows were not recorded.")
    parts = run.lengths["parts"]
    names = dict.fromkeys(name for part in parts.values() for name in part["series"])
    charts = []
    for name in names:
        bars = [
            Bars(part, found["counts"], found["width"], colour)
            for (part, data), colour in zip(parts.items(), COLOURS, strict=False)
            if (found := data["series"].get(name)) is not None
        ]
        title = f"Tokens of the {name}"
        charts.append(histogram(bars, limit=_limit(run, name), x_label="tokens", title=title))
    columns = [
        Column("part"),
        Column("rows", "number"),
        *(Column(f"{name}, median / longest", "number") for name in names),
        Column("rows cut to a limit", "number"),
    ]
    rows = [
        [
            part,
            f"{data['rows']:,}",
            *(_typical(data["series"].get(name)) for name in names),
            f"{data['cut_rows']:,}",
        ]
        for part, data in parts.items()
    ]
    return joined(
        element("div.pair", charts),
        table(columns, rows),
        element(
            "p.note", "Special tokens and the prompt template count; so does the end of an answer."
        ),
    )


def _limit(run: FinishedRun, name: str) -> tuple[str, int] | None:
    limit = run.lengths.get("limits", {}).get(name)
    if limit is None:
        return None
    if name == "target":
        return f"limit, {limit} and the end", limit + 2
    return f"limit, {limit}", limit + 1


def _typical(series: dict[str, Any] | None) -> str:
    return "–" if series is None else f"{series['median']:g} / {series['max']:,}"


# ------------------------------------------------------------------------------------------ ran on


def _environment(run: FinishedRun) -> Html:
    environment = run.environment
    data: list[list[Any]] = [
        [
            name,
            str(part.get("source")),
            f"{part.get('rows', 0):,}",
            f"{part.get('skipped', 0):,}",
            element("code", str(part.get("sha256"))[:16]),
        ]
        for name, part in environment["data"].items()
    ]
    columns = [
        Column("part"),
        Column("file"),
        Column("rows", "number"),
        Column("skipped", "number"),
        Column("sha256, first 16"),
    ]
    backbone = environment["backbone"]
    entries = [
        *_flat({k: v for k, v in environment.items() if k not in ("data", "backbone")}),
        ("backbone fingerprint", element("code", str(backbone.get("fingerprint")))),
        ("tokenizer fingerprint", element("code", str(backbone.get("tokenizer")))),
    ]
    return joined(table(columns, data), element("h3", "Environment"), facts(entries, kind="list"))


def _flat(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, entry in value.items():
        if isinstance(entry, dict):
            yield key, ", ".join(f"{name} {version}" for name, version in entry.items()) or "none"
        else:
            yield key.replace("_", " "), f"{entry:,}" if isinstance(entry, int) else str(entry)
