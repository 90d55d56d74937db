"""The rows that a report shows: the best, the worst and some at random, by the first row score."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from ptkit.engine.page import Html, counted, element, joined, number, shortened
from ptkit.engine.runfolder import FinishedRun

EACH = 5  # rows of a kind
LONGEST = 600  # characters of a text that are shown
SEED = 0


def chosen(scores: list[float | None]) -> dict[str, list[int]]:
    """Row indices by what they are shown as; a row is shown once, and few rows are all shown.

    ``scores``: one a row, None for rows without. Equal scores keep the order of the rows.
    """
    rows = range(len(scores))
    ranked = sorted(
        (row for row in rows if scores[row] is not None),
        key=lambda row: (-(scores[row] or 0.0), row),
    )
    if len(scores) <= 3 * EACH:
        return {"all": [*ranked, *(row for row in rows if scores[row] is None)]}
    groups = {"best": ranked[:EACH], "worst": ranked[-EACH:][::-1]} if ranked else {}
    shown = {row for group in groups.values() for row in group}
    rest = [row for row in rows if row not in shown]
    picked = random.Random(SEED).sample(rest, min(EACH if ranked else 3 * EACH, len(rest)))
    return {**groups, "random": sorted(picked)}


def samples(run: FinishedRun) -> Html:
    if not run.predictions:
        return element("p.note", "There are no predictions: nothing was scored.")
    after = run.row_scores("after")
    metric = next((m for m in run.metrics if any(m in row for row in after)), None)
    scores = [row.get(metric) if metric is not None else None for row in after]
    groups = chosen(scores)
    shown = sum(map(len, groups.values()))
    total = len(run.predictions)
    note = f"{shown} of {total:,} rows" if shown < total else counted(total, "row")
    if metric is not None:
        note += f", by {metric} after training" if shown < total else f", the best {metric} first"
    return joined(
        element("p.note", f"{note}. predictions.jsonl has them all."),
        [
            joined(
                element("h3", title.capitalize()) if len(groups) > 1 else "",
                [_sample(run.predictions[row], metric) for row in rows],
            )
            for title, rows in groups.items()
            if rows
        ],
    )


def _sample(row: Mapping[str, Any], metric: str | None) -> Html:
    prompt = row.get("prompt")
    scores = row.get("scores", {})
    answers = [_answer("reference", row.get("reference"), "")]
    for column in ("before", "after"):
        value = scores.get(column, {}).get(metric)
        shown = "" if value is None else f"{metric} {number(value)}"
        answers.append(_answer(column, row.get(column), shown))
    return element(
        "article.sample",
        element("p.meta", str(row.get("origin", ""))),
        "" if prompt is None else element("p.text.prompt", shortened(str(prompt), LONGEST)),
        element("div.answers", answers),
    )


def _answer(title: str, value: Any, score: str) -> Html:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if value is None:
        shown = element("p.text.empty", "none")
    elif not text.strip():
        shown = element("p.text.empty", "empty")
    else:
        shown = element("p.text", shortened(text, LONGEST))
    heading = element("h4", title, joined("  ", element("b", score)) if score else "")
    return element(f"div.{title}", heading, shown)
