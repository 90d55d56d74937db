"""The one error family: a ``PtkitError`` is bad input, one clear line a problem, exit code 2.

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from ptkit.records import BadRow

DEBUG_VARIABLE = "PTKIT_DEBUG"
"""If set, errors that are told in a line show their traceback too."""
REPORT = f"report it to the plugin's author with the traceback that {DEBUG_VARIABLE}=1 shows"
"""What to do about a fault of a plugin."""


class PtkitError(Exception):
    """Input that can't be used. ``lines`` holds a line a problem: where, what, got, what to do."""

    exit_code: int = 2

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: tuple[str, ...] = lines


class RecipeError(PtkitError):
    """A recipe, or what it names, doesn't fit together; one line a problem."""


class PluginError(PtkitError):
    """A plugin that a recipe needs is missing, broken, or shares a name with another."""


class CheckpointError(PtkitError):
    """Weights, a tokenizer or an adapter on disk that don't fit what was expected."""


class DataError(PtkitError):
    """Rows that can't be read; ``bad_rows`` holds those found before reading stopped."""

    SHOWN_AT_ONCE = 20

    def __init__(self, *lines: str, bad_rows: Sequence[BadRow] = ()) -> None:
        super().__init__(*lines)
        self.bad_rows = tuple(bad_rows)


def closest(got: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``got`` was probably meant to be; case doesn't matter."""
    by_folded = {name.casefold(): name for name in known}
    folded = got.casefold()
    # letters in another order: in short words difflib finds that far off ("tyni")
    swapped = [name for name in by_folded if sorted(name) == sorted(folded)]
    close = swapped or difflib.get_close_matches(folded, list(by_folded), n=1, cutoff=0.6)
    return by_folded[close[0]] if close else None


def suggestion(got: str, known: Iterable[str]) -> str:
    """``' (did you mean 'x'?)'`` for the closest of ``known``, or an empty string.

    Up to three that ``got`` is a part of are all named: of two that end in ``-classification``
    neither is the closer one.
    """
    names = list(dict.fromkeys(known))
    folded = got.casefold()
    close = [name for name in names if len(folded) > 2 and folded in name.casefold()]
    if not 1 <= len(close) <= 3:
        one = closest(got, names)
        close = [] if one is None else [one]
    return f" (did you mean {_either(close)}?)" if close else ""


def _either(names: Sequence[str]) -> str:
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def names_in(folder: Path) -> list[str]:
    """Names in ``folder`` for `suggestion`, up to a thousand; none where it can't be read."""
    try:
        return [path.name for path in islice(folder.iterdir(), 1000)]
    except OSError:
        return []


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error that is told in a line, if ``PTKIT_DEBUG`` asks for it."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
