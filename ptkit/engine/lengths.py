"""lengths.json: how long the encoded rows of a run are, as histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

from ptkit.components import TaskHead
from ptkit.data import Part
from ptkit.records import IGNORE, EncodedRow
from ptkit.rowstore import RowStore

BINS = 40  # at most, in a histogram
LOOKED_AT = 200_000  # rows; of a larger part every second, third, … is counted


def describe_lengths(head: TaskHead, parts: Iterable[Part]) -> dict[str, Any]:
    """``limits`` on tokens that the head's settings set, and ``parts``: how long their rows are.

    A part's ``series`` has the tokens of prompt and target where rows are trained on tokens of
    their own, as in generation, and else of the input. A histogram counts rows: bin i holds lengths
    from i x ``width`` up to, not including, (i + 1) x ``width``. ``cut_targets`` of the
    ``cut_tokens`` were to be trained on.
    """
    keys = head.limits()
    found = {"prompt": keys.source, "target": keys.target, "input": keys.source}
    limits = {name: getattr(head.settings, key) for name, key in found.items() if key is not None}
    return {"limits": limits, "parts": {part.name: _describe(part.rows) for part in parts}}


def _describe(store: RowStore) -> dict[str, Any]:
    every = max(1, -(-len(store) // LOOKED_AT))
    cuts = store.cuts
    counted: dict[str, Counter[int]] = {}
    for index in range(0, len(store), every):
        for name, length in row_lengths(store[index]).items():
            counted.setdefault(name, Counter())[length] += 1
    return {
        "rows": len(store),
        "cut_rows": int((cuts > 0).sum()),
        "cut_tokens": int(cuts.sum()),
        "cut_targets": int(store.target_cuts.sum()),
        "counted_every": every,
        "series": {name: histogram(counter) for name, counter in counted.items()},
    }


def row_lengths(row: EncodedRow) -> dict[str, int]:
    """Tokens of a row by what they are for.

    Example (start 8 9, prompt 5 6, answer 7, eos 2, trained on the last two): prompt 4, target 2.
    """
    tokens, labels = row.tokens, row.labels
    if len(labels) == len(tokens):
        target = sum(label != IGNORE for label in labels)
        own = all(a in (IGNORE, token) for a, token in zip(labels, tokens, strict=True))
        if 0 < target < len(labels) and own:
            return {"prompt": len(labels) - target, "target": target}
    return {"input": len(tokens)}


def histogram(lengths: Counter[int]) -> dict[str, Any]:
    """Counts by length as bins of a round width, with the mean, median and maximum in tokens."""
    longest = max(lengths)
    width = next(
        digit * 10**power
        for power in range(12)
        for digit in (1, 2, 5)
        if longest // (digit * 10**power) < BINS
    )
    counts = [0] * (longest // width + 1)
    for length, rows in lengths.items():
        counts[length // width] += rows
    total = lengths.total()
    return {
        "width": width,
        "counts": counts,
        "mean": sum(length * rows for length, rows in lengths.items()) / total,
        "median": median(sorted(lengths.elements())),
        "max": longest,
    }
