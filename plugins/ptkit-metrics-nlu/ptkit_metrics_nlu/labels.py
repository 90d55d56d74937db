"""F1 and Matthews correlation of labels, F1 of sets of labels; scikit-learn's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from ptkit import Metric, Pair, suggestion
from ptkit_metrics_nlu.checked import (
    CheckedMetric,
    CheckedRowMetric,
    is_names,
    named,
    only_predicted,
    ratio,
)
from ptkit_metrics_nlu.counts import Counts


class _LabelMetric(CheckedMetric):
    scores: ClassVar[str] = "label"
    wants: ClassVar[str] = "a label (str)"

    def fits(self, value: Any) -> bool:
        return isinstance(value, str)

    def columns(self, pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
        """References and predictions, in scikit-learn's order of arguments."""
        scored = self.scored(pairs)
        return [pair.reference for pair in scored], [pair.prediction for pair in scored]


class F1(_LabelMetric):
    """F1 of labels: 2 tp / (2 tp + fp + fn), per label and averaged, or of one label.

    As scikit-learn's ``f1_score(zero_division=0)``: the labels are those of references and
    predictions together, so that one which is only predicted counts as 0 in the macro average.

    Worked example: references a a a b, predictions a a b b. F1 of a is 4 / (4 + 0 + 1) = 0.8, of b
    2 / (2 + 1 + 0) = 0.667; ``f1-macro`` 73.3, ``f1-weighted`` (3 * 0.8 + 0.667) / 4 = 76.7,
    ``f1-micro`` 75.0.
    """

    name = "f1"

    class Settings(Metric.Settings):
        average: Literal["macro", "micro", "weighted", "binary"] = "macro"
        """The mean over labels (macro), over rows (micro: accuracy), over labels by their number of
        rows (weighted), or the F1 of the label `positive` alone (binary)."""
        positive: str | None = None
        """The label whose F1 is wanted, with `average = "binary"`."""

        @model_validator(mode="after")
        def _check_positive(self) -> Self:
            if self.average == "binary" and self.positive is None:
                raise ValueError(
                    'average = "binary" needs positive, the label whose F1 is wanted, got none; '
                    'set it, or average = "macro"'
                )
            if self.average != "binary" and self.positive is not None:
                raise ValueError(
                    f'positive is for average = "binary", got average = "{self.average}"; '
                    "set that, or remove positive"
                )
            return self

    settings: Settings

    @property
    def key(self) -> str:
        return f"f1-{self.settings.average}"

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        wanted, given = self.columns(pairs)
        if not wanted:
            return {}
        from sklearn.metrics import f1_score  # type: ignore[import-untyped]

        if self.settings.average == "binary":
            positive = self.settings.positive
            ours, theirs = ([label == positive for label in column] for column in (wanted, given))
            value = f1_score(ours, theirs, zero_division=0)
        else:
            value = f1_score(wanted, given, average=self.settings.average, zero_division=0)
        return {self.key: 100.0 * float(value)}

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        wanted, given = map(set, self.columns(pairs))
        positive = self.settings.positive
        if positive is not None and wanted and positive not in wanted:
            lines.append(
                f"no reference is {positive!r}{suggestion(positive, wanted)}, so {self.key} is 0; "
                f"set positive of the metric 'f1' to one of {named(wanted)}"
            )
        if self.settings.average == "macro":
            lines += only_predicted(given - wanted, noun="label", key=self.key)
        return lines


class Matthews(_LabelMetric):
    """Matthews correlation coefficient x 100 (Matthews, 1975; Gorodkin, 2004, for more labels).

    It is 0 / 0 where all references, or all predictions, are one label, and given as 0.
    """

    name = "matthews"
    unit = "correlation × 100, -100–100"

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        wanted, given = self.columns(pairs)
        if not wanted:
            return {}
        if len(set(wanted)) == 1 or len(set(given)) == 1:
            return {"mcc": 0.0}
        from sklearn.metrics import matthews_corrcoef

        return {"mcc": 100.0 * float(matthews_corrcoef(wanted, given))}

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        wanted, given = self.columns(pairs)
        for what, labels in (("reference", wanted), ("prediction", given)):
            if len(set(labels)) == 1:
                lines.append(f"every {what} is {labels[0]!r}: mcc is 0 / 0, given as 0")
        return lines


class MultiLabelF1(CheckedRowMetric):
    """F1 of sets of labels, and the share of rows whose set is exactly right.

    ``f1-micro`` counts the labels of all rows together, ``f1-macro`` is the mean over labels (of
    references and predictions together), ``f1-samples`` the mean over rows. All as scikit-learn's
    ``f1_score``; a row that should have no label and gets none is right, 100, in ``f1-samples``
    (``zero_division=1`` there). The order of labels and repeats make no difference.
    """

    name = "multi-label-f1"
    scores: ClassVar[str] = "labels"
    wants: ClassVar[str] = "labels (str) in a tuple or list"

    def fits(self, value: Any) -> bool:
        return is_names(value)

    def compare(self, pair: Pair) -> dict[str, float]:
        wanted, given = set(pair.reference), set(pair.prediction)
        both = len(wanted) + len(given)
        return {
            "f1-samples": ratio(2 * len(wanted & given), both) if both else 100.0,
            "exact-match": 100.0 * (wanted == given),
        }

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        scored = self.scored(pairs)
        if not scored:
            return {}
        counts = _counts(scored)
        over_labels = {"f1-micro": counts.micro_f1, "f1-macro": counts.macro_f1}
        return {**over_labels, **super().score(scored)}

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        scored = self.scored(pairs)
        counts = _counts(scored)
        if scored and not counts.kinds:
            lines.append(
                "no row has a label or is given one: f1-micro and f1-macro are 0 / 0, given as 0"
            )
        return lines + only_predicted(counts.only_given, noun="label", key="f1-macro")


def _counts(pairs: Sequence[Pair]) -> Counts:
    return Counts.of(((set(p.reference), set(p.prediction)) for p in pairs), kind=str)
