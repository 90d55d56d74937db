"""What all metrics here do alike: rows without a reference, values of the wrong type, wording."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeGuard

from ptkit import Metric, Pair, PluginError, RowMetric

_SHOWN = 40  # characters of a value
_NAMES_SHOWN = 8


class CheckedMetric(Metric):
    """A metric that refuses predictions and references of a type that it can't compare.

    A row without a reference (None) has nothing to be compared with and is left out; `warnings`
    counts such rows.
    """

    wants: ClassVar[str]
    """What a prediction must be, for messages."""

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether ``value`` is of the type of a prediction."""

    @property
    def wants_reference(self) -> str:
        return self.wants

    def fits_reference(self, value: Any) -> bool:
        return self.fits(value)

    def scored(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The pairs that have a reference, checked. Raises `PluginError` for a wrong type."""
        found = [pair for pair in pairs if pair.reference is not None]
        for pair in found:
            if not self.fits(pair.prediction):
                raise self._error(pair, "prediction", self.wants, pair.prediction, "decode")
            if not self.fits_reference(pair.reference):
                raise self._error(
                    pair, "reference", self.wants_reference, pair.reference, "reference"
                )
        return found

    def _error(self, pair: Pair, what: str, wants: str, got: object, method: str) -> PluginError:
        shown = " ".join(repr(got).split())
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        return PluginError(
            f"{pair.record.origin}: metric {self.name!r}: the {what} must be {wants}, "
            f"got {shown} ({type(got).__name__}); mend {method}() of the task head"
        )

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        unscored = sum(pair.reference is None for pair in pairs)
        if not unscored:
            return []
        does = "has no reference and is" if unscored == 1 else "have no reference and are"
        return [f"{unscored} of {counted(len(pairs), 'row')} {does} not scored"]


class CheckedRowMetric(CheckedMetric, RowMetric):
    """A `CheckedMetric` that is the mean of a score a row."""

    def score_row(self, pair: Pair) -> dict[str, float] | None:
        return self.compare(pair) if self.scored([pair]) else None

    @abstractmethod
    def compare(self, pair: Pair) -> dict[str, float]:
        """The scores, percent, of a pair whose types are right."""


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def named(names: Iterable[str]) -> str:
    """Names in order, quoted, the first eight of them: ``'a', 'b' and 3 more``."""
    found = sorted(names)
    more = len(found) - _NAMES_SHOWN
    first = ", ".join(map(repr, found[:_NAMES_SHOWN]))
    return f"{first} and {more} more" if more > 0 else first


def only_predicted(names: set[str], *, noun: str, key: str) -> list[str]:
    """A warning of names that are predicted and in no reference, if there are any."""
    if not names:
        return []
    return [
        f"{counted(len(names), noun)} predicted that no reference has ({named(names)}): "
        f"F1 0 each in {key}"
    ]


def is_names(value: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def is_index(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def ratio(part: float, whole: float) -> float:
    """``part`` of ``whole`` in percent; 0 of 0 is 0."""
    return 100.0 * part / whole if whole else 0.0
