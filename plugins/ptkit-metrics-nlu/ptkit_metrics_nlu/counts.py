"""How many things are wanted, given, and right: the base of F1 of sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeVar

from ptkit_metrics_nlu.checked import ratio

T = TypeVar("T")


@dataclass
class Counts:
    """Things by kind: those of references, of predictions, and of both; scores are percent.

    Worked example: a row wants a and b and is given b and c; wanted 2, given 2, right 1. Precision
    (right / given), recall (right / wanted) and F1 (2 right / (wanted + given)) are 50; b has F1
    100, a and c have 0, macro 33.3.
    """

    wanted: Counter[str] = field(default_factory=Counter)
    given: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(
        cls, rows: Iterable[tuple[AbstractSet[T], AbstractSet[T]]], kind: Callable[[T], str]
    ) -> Counts:
        """``rows``: what is wanted and what is given in each; things of two rows are different."""
        counts = cls()
        for wanted, given in rows:
            counts.wanted.update(map(kind, wanted))
            counts.given.update(map(kind, given))
            counts.right.update(map(kind, wanted & given))
        return counts

    @property
    def kinds(self) -> list[str]:
        """Those of references and predictions together, sorted."""
        return sorted({*self.wanted, *self.given})

    @property
    def only_given(self) -> set[str]:
        return self.given.keys() - self.wanted.keys()

    def f1(self, kind: str) -> float:
        return ratio(2 * self.right[kind], self.wanted[kind] + self.given[kind])

    @property
    def macro_f1(self) -> float:
        """The mean over kinds; 0 without any."""
        return fmean(map(self.f1, self.kinds)) if self.kinds else 0.0

    @property
    def micro_f1(self) -> float:
        return ratio(2 * self.right.total(), self.wanted.total() + self.given.total())

    @property
    def precision(self) -> float:
        return ratio(self.right.total(), self.given.total())

    @property
    def recall(self) -> float:
        return ratio(self.right.total(), self.wanted.total())
