"""Precision, recall and F1 of entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ptkit import Metric, Pair
from ptkit_metrics_nlu.checked import CheckedMetric, is_index, only_predicted
from ptkit_metrics_nlu.counts import Counts


class EntityF1(CheckedMetric):
    """Strict entity scores: type and both borders must be right; a repeated entity counts once.

    The numbers are seqeval's in its default mode: ``entity-f1``, ``entity-precision`` and
    ``entity-recall`` count the entities of all rows together (micro), ``entity-f1-macro`` is the
    mean of the F1 of every type of references and predictions. 0 / 0 is given as 0.

    Worked example: a row has PER 0–2 and LOC 5–7, the prediction PER 0–2 and LOC 5–6. One of two
    is found, so precision, recall and F1 are 50; PER has 100 and LOC 0, macro 50.
    """

    name = "entity-f1"
    scores: ClassVar[str] = "entities"
    wants: ClassVar[str] = "a list of entities (ptkit.Entity: type, start, end, text)"

    class Settings(Metric.Settings):
        by_type: bool = False
        """Give the F1 of every type too, as `entity-f1/PER`."""

    settings: Settings

    def fits(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and all(map(_is_entity, value))

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        scored = self.scored(pairs)
        if not scored:
            return {}
        counts = _counts(scored)
        scores = {
            "entity-f1": counts.micro_f1,
            "entity-precision": counts.precision,
            "entity-recall": counts.recall,
            "entity-f1-macro": counts.macro_f1,
        }
        if self.settings.by_type:
            scores |= {f"entity-f1/{kind}": counts.f1(kind) for kind in counts.kinds}
        return scores

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        scored = self.scored(pairs)
        counts = _counts(scored)
        if not scored:
            return lines
        if not counts.kinds:
            lines.append(
                "no reference and no prediction has an entity: scores are 0 / 0, given as 0"
            )
        elif not counts.given:
            lines.append("no prediction has an entity: entity-precision is 0 / 0, given as 0")
        elif not counts.wanted:
            lines.append("no reference has an entity: entity-recall is 0 / 0, given as 0")
        return lines + only_predicted(counts.only_given, noun="type", key="entity-f1-macro")


def _counts(pairs: Sequence[Pair]) -> Counts:
    rows = ((_spans(pair.reference), _spans(pair.prediction)) for pair in pairs)
    return Counts.of(rows, kind=lambda span: span[0])


def _spans(entities: Sequence[Mapping[str, Any]]) -> set[tuple[str, int, int]]:
    return {(entity["type"], entity["start"], entity["end"]) for entity in entities}


def _is_entity(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("type"), str)
        and is_index(value.get("start"))
        and is_index(value.get("end"))
    )
