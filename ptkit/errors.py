"""The one error family: a ``PtkitError`` is bad input, one clear line a problem, exit code 2.

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """``' (did you mean 'x'?)'`` for the closest of ``known``, or an empty string."""
    close = closest(got, known)
    return "" if close is None else f" (did you mean {close!r}?)"


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error that is told in a line, if ``PTKIT_DEBUG`` asks for it."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
