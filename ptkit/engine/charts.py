"""Charts as inline SVG that stretches with the page, with labels in HTML that keep their size.

Lines don't stretch (``vector-effect``), and a dot is a line without length and with round ends, so
that the same chart reads well on a phone. Colours are classes, c1 to c6, that the style sheet
defines for light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from ptkit.engine.bootstrap import Interval
from ptkit.engine.page import Html, element, joined, number

POINTS = 400  # of a line; longer ones are averaged in as many buckets
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart. ``style``: "plain", "faint" (the noise behind another line) or "dots"."""

    label: str
    points: Sequence[Point]
    colour: str
    style: str = "plain"


@dataclass(frozen=True)
class Rule:
    """A dashed line across a chart at a height of y."""

    label: str
    y: float
    colour: str = "rule"


@dataclass(frozen=True)
class Scale:
    """From values to 0–1000, the coordinates of every drawing here."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        return 1000 * (value - self.low) / (self.high - self.low)


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """At most ``most`` points: the means of equal buckets."""
    if len(points) <= most:
        return list(points)
    bounds = [len(points) * i // most for i in range(most + 1)]
    buckets = [points[a:b] for a, b in pairwise(bounds)]
    return [
        (sum(x for x, _ in bucket) / len(bucket), sum(y for _, y in bucket) / len(bucket))
        for bucket in buckets
    ]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``.

    >>> ticks(0, 23)
    [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def rounded(low: float, high: float) -> Scale:
    """A scale from ``low`` to ``high``, at least, that begins and ends at round numbers."""
    marks = ticks(low, high)
    step = marks[1] - marks[0]
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def _range(values: Sequence[float]) -> Scale:
    """A scale around values, from 0 if that wastes little of the height."""
    low, high = min(values), max(values)
    if 0 <= low < 0.4 * high:
        return Scale(0.0, high * 1.06)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - margin, high + margin)


def line_chart(
    lines: Sequence[Line], rules: Sequence[Rule] = (), *, x_label: str, y_label: str, title: str
) -> Html:
    """Lines over a shared x from 0; empty ones and values that aren't finite are left out."""
    drawn = [
        (line, points)
        for line in lines
        if (points := [p for p in thinned(line.points) if math.isfinite(p[1])])
    ]
    rules = [rule for rule in rules if math.isfinite(rule.y)]
    if not drawn:
        return element("p.note", "There is nothing to draw: no step was recorded.")
    calm = [y for line, points in drawn if line.style != "faint" for _, y in points]
    heights = [*(calm or [y for _, y in drawn[0][1]]), *(rule.y for rule in rules)]
    # single steps may be far off: they widen the range by half at most
    room = (max(heights) - min(heights)) / 2
    noise = [y for line, points in drawn if line.style == "faint" for _, y in points]
    heights += [min(max(y, min(heights) - room), max(heights) + room) for y in noise]
    x = Scale(0, max(x for _, points in drawn for x, _ in points) or 1)
    y = _range(heights)
    marks: list[Html] = [_grid(y(tick)) for tick in ticks(y.low, y.high)]
    marks += [_horizontal(y(rule.y), f"rule.{rule.colour}") for rule in rules]
    for line, points in drawn:
        place = [(x(a), 1000 - min(1000.0, max(0.0, y(b)))) for a, b in points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in place)
        marks.append(element(f"path.line.{line.style}.{line.colour}", attributes={"d": path}))
        if line.style == "dots":
            for (a, b), (step, value) in zip(place, points, strict=True):
                hint = element("title", f"{line.label}, {x_label} {step:g}: {value:.4f}")
                dot = {"d": f"M{a:.1f} {b:.1f}h0"}
                marks.append(element(f"path.dot.{line.colour}", hint, attributes=dot))
    legend = [_key(line.label, f"{line.style}.{line.colour}") for line, _ in drawn if line.label]
    legend += [_key(rule.label, f"rule.{rule.colour}") for rule in rules]
    return _figure(marks, _x_labels(x), _y_labels(y), legend, title, x_label, y_label)


@dataclass(frozen=True)
class Bars:
    """A histogram: bin i holds ``counts[i]`` of values from i x width up to (i + 1) x width."""

    label: str
    counts: Sequence[int]
    width: int
    colour: str

    @property
    def end(self) -> int:
        return self.width * len(self.counts)


def histogram(
    groups: Sequence[Bars], *, limit: tuple[str, int] | None, x_label: str, title: str
) -> Html:
    """Histograms over each other, as a share of their rows for each x.

    ``limit``: a label, and the first value that is too large, where a dashed line stands.
    """
    end = max([*(bars.end for bars in groups), *(() if limit is None else (limit[1],))])
    x = Scale(0, end * 1.02)
    shares = [
        [100 * count / sum(bars.counts) / bars.width for count in bars.counts] for bars in groups
    ]
    y = Scale(0, max(chain(*shares)) * 1.08)
    marks = [_grid(y(tick)) for tick in ticks(0, y.high, 3)]
    for place, (bars, heights) in enumerate(zip(groups, shares, strict=True)):
        path = "M0 1000"
        for i, height in enumerate(heights):
            top = 1000 - y(height)
            path += f"L{x(i * bars.width):.1f} {top:.1f}L{x((i + 1) * bars.width):.1f} {top:.1f}"
        path += f"L{x(bars.end):.1f} 1000"
        style = "area" if place == 0 else "plain"
        marks.append(element(f"path.line.{style}.{bars.colour}", attributes={"d": path}))
    legend = [
        _key(bars.label, f"{'area' if place == 0 else 'plain'}.{bars.colour}")
        for place, bars in enumerate(groups)
    ]
    if limit is not None:
        marks.append(element("path.line.rule", attributes={"d": f"M{x(limit[1]):.1f} 0V1000"}))
        legend.append(_key(limit[0], "rule"))
    labels = _y_labels(y, about=3, unit=" %")
    return _figure(
        marks, _x_labels(x), labels, legend, title, x_label, "rows per token", kind="small"
    )


def strip(entries: Sequence[tuple[str, float, Interval | None]], scale: Scale) -> Html:
    """Scores as dots along one scale, with their intervals; ``entries``: class, score, interval."""
    room = (scale.high - scale.low) / 30  # so that a dot at an end lies inside
    scale = Scale(scale.low - room, scale.high + room)
    marks = []
    for place, (kind, value, interval) in enumerate(entries):
        height = 500 + 250 * (place - (len(entries) - 1) / 2)
        if interval is not None:
            reach = f"M{scale(interval.low):.1f} {height:.0f}H{scale(interval.high):.1f}"
            marks.append(element(f"path.reach.{kind}", attributes={"d": reach}))
        dot = {"d": f"M{scale(value):.1f} {height:.0f}h0"}
        hint = element("title", f"{kind}: {number(value)}")
        marks.append(element(f"path.dot.{kind}", hint, attributes=dot))
    return element("div.strip", _svg(marks, "scores on one line"))


# ------------------------------------------------------------------------------------------ parts


def _grid(height: float) -> Html:
    return _horizontal(height, "grid")


def _horizontal(height: float, kind: str) -> Html:
    return element(f"path.line.{kind}", attributes={"d": f"M0 {1000 - height:.1f}H1000"})


def _svg(marks: Sequence[Html], title: str) -> Html:
    return element(
        "svg",
        *marks,
        attributes={
            "viewBox": "0 0 1000 1000",
            "preserveAspectRatio": "none",
            "role": "img",
            "aria-label": title,
        },
    )


def _key(label: str, kind: str) -> Html:
    sample = element(
        "svg",
        element(f"path.line.{kind}", attributes={"d": "M2 6H22"}),
        attributes={"viewBox": "0 0 24 12", "aria-hidden": "true"},
    )
    return element("span.key", sample, label)


def _x_labels(scale: Scale) -> list[Html]:
    return [
        element("span.x", f"{tick:,g}", attributes={"style": f"left:{scale(tick) / 10:.2f}%"})
        for tick in ticks(scale.low, scale.high)
    ]


def _y_labels(scale: Scale, *, about: int = 5, unit: str = "") -> list[Html]:
    return [
        element(
            "span.y", f"{tick:g}{unit}", attributes={"style": f"bottom:{scale(tick) / 10:.2f}%"}
        )
        for tick in ticks(scale.low, scale.high, about)
    ]


def _figure(
    marks: Sequence[Html],
    x_labels: Sequence[Html],
    y_labels: Sequence[Html],
    legend: Sequence[Html],
    title: str,
    x_label: str,
    y_label: str,
    *,
    kind: str = "large",
) -> Html:
    plot = element("div.plot", _svg(marks, title), *y_labels, *x_labels)
    return element(
        f"figure.chart.{kind}",
        element("figcaption", element("span.caption", title), joined(legend)),
        element("div.y-label", y_label),
        plot,
        element("div.x-label", x_label),
    )
