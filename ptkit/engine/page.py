"""Self-contained HTML pages: all text is escaped unless it is `Html`; no script, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import NamedTuple

from ptkit.engine.bootstrap import Interval

VOID = {"meta", "path", "line", "rect"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A content security policy under which a browser neither loads nor runs anything."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | Iterable[str]


def element(
    tag: str, *content: Content, attributes: Mapping[str, str | float] | None = None
) -> Html:
    """An element; content that is not `Html` is escaped.

    >>> element("p.note", "1 < 2", attributes={"id": "n"})
    '<p class="note" id="n">1 &lt; 2</p>'
    """
    name, *classes = tag.split(".")
    given: dict[str, str | float] = {"class": " ".join(classes)} if classes else {}
    given |= attributes or {}
    written = "".join(f' {key}="{escape(str(value))}"' for key, value in given.items())
    inner = joined(*content)
    if name in VOID and not inner:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{inner}</{name}>")


def joined(*content: Content) -> Html:
    """Pieces in a row, those that are not `Html` escaped."""
    pieces = (p for part in content for p in ((part,) if isinstance(part, str) else part))
    return Html("".join(p if isinstance(p, Html) else escape(p) for p in pieces))


def section(title: str, *content: Content, anchor: str) -> Html:
    return element("section", element("h2", title), *content, attributes={"id": anchor})


class Column(NamedTuple):
    """A table's column: its title and a class for its cells, such as "number"."""

    title: str
    kind: str = ""


def table(columns: Iterable[Column], rows: Iterable[Iterable[Content]], *, kind: str = "") -> Html:
    """A table that becomes a card a row on narrow screens; the first cell is the row's heading."""
    columns = list(columns)
    head = element("tr", [element(f"th{_dot(c.kind)}", c.title) for c in columns])
    body = []
    for row in rows:
        cells = [
            element(
                f"{'th' if place == 0 else 'td'}{_dot(column.kind)}",
                cell,
                attributes={"data-label": column.title},
            )
            for place, (column, cell) in enumerate(zip(columns, row, strict=True))
        ]
        body.append(element("tr", cells))
    return element(f"table{_dot(kind)}", element("thead", head), element("tbody", body))


def _dot(kind: str) -> str:
    return f".{kind}" if kind else ""


def facts(entries: Iterable[tuple[str, Content]], *, kind: str = "facts") -> Html:
    """Names and values, side by side or below each other."""
    return element(
        f"dl.{kind}", [element("div", element("dt", n), element("dd", v)) for n, v in entries]
    )


def document(title: str, *content: Content, lead: Content = "", kicker: str) -> Html:
    """A whole page."""
    css = files("ptkit.engine").joinpath("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", attributes={"charset": "utf-8"}),
        element("meta", attributes={"http-equiv": "Content-Security-Policy", "content": POLICY}),
        element(
            "meta",
            attributes={"name": "viewport", "content": "width=device-width, initial-scale=1"},
        ),
        element("meta", attributes={"name": "color-scheme", "content": "light dark"}),
        element("title", f"{title} – {kicker}"),
        element("style", Html(css)),
    )
    header = element("header", element("p.kicker", kicker), element("h1", title), lead)
    body = element("body", element("main", header, *content))
    return Html(f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n')


# ------------------------------------------------------------------------------------------ text


def number(value: float | None, digits: int = 2, *, signed: bool = False) -> str:
    """With a true minus sign; "–" for what isn't known.

    >>> number(-0.5), number(0.5, signed=True), number(None)
    ('−0.50', '+0.50', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "−")


def span(interval: Interval | None, *, signed: bool = False) -> str:
    """The bounds of an interval, "–" if there is none.

    >>> span(Interval(1, 0.5, 1.5))
    '0.50 to 1.50'
    """
    if interval is None:
        return "–"
    return f"{number(interval.low, signed=signed)} to {number(interval.high, signed=signed)}"


def shortened(text: str, longest: int) -> str:
    """At most ``longest`` characters of a text, and how many are left out."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest:,} more characters)"


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "row"), counted(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
