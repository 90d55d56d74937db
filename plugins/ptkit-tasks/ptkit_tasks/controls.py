"""The transforms ``shuffle-responses`` and ``shuffle-labels``: the control runs that show what was
learnt from the pairs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import ptkit


class ShuffleResponses(ptkit.Transform):
    """Gives every training prompt the response of another row.

    An adapter trained on such pairs can learn the style of the answers, but nothing about which
    answer belongs to which prompt. What a normal run scores above it was learnt from the pairs.
    """

    name = "shuffle-responses"

    def apply(self, records: Sequence[ptkit.Record], *, seed: int) -> Iterator[ptkit.Record]:
        """The records in order, with the responses moved on by one place of a seeded random
        cycle."""
        for record, other in _with_another(records, seed):
            if not isinstance(record, ptkit.GenerationRecord) or not isinstance(
                other, ptkit.GenerationRecord
            ):
                raise ptkit.RecipeError(
                    f"{record.origin}: transform {self.name!r} takes GenerationRecord, "
                    f"got {type(record).__name__}"
                )
            yield replace(record, response=other.response)


class ShuffleLabels(ptkit.Transform):
    """Gives every training record the label of another row; of a question, one of its choices.

    An adapter trained on such rows can learn how frequent the labels are, and nothing about which
    text has which. What a normal run scores above it was learnt from the pairs.
    """

    name = "shuffle-labels"

    def apply(self, records: Sequence[ptkit.Record], *, seed: int) -> Iterator[ptkit.Record]:
        """The records in order, with the labels moved on by one place of a seeded random cycle.

        The index of another question's answer says nothing of a record's own choices, so that the
        answer to a question is drawn from them.
        """
        draw = random.Random(seed)
        for record, other in _with_another(records, seed):
            if isinstance(record, ptkit.ChoiceRecord):
                yield replace(record, answer=draw.randrange(len(record.choices)))
            elif isinstance(record, ptkit.LabelledRecord) and isinstance(
                other, ptkit.LabelledRecord
            ):
                yield replace(record, label=other.label)
            else:
                raise ptkit.RecipeError(
                    f"{record.origin}: transform {self.name!r} takes LabelledRecord or "
                    f"ChoiceRecord, got {type(record).__name__}; remove it from the recipe"
                )


def _with_another(
    records: Sequence[ptkit.Record], seed: int
) -> Iterator[tuple[ptkit.Record, ptkit.Record]]:
    """Every record, in order, with the one behind it in a seeded random cycle of all."""
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    source = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    for index, record in enumerate(records):
        yield record, records[source[index]]
