"""The transform ``shuffle-responses``: the control run that shows what was learnt from the
pairs."""

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
        order = list(range(len(records)))
        random.Random(seed).shuffle(order)
        source = dict(zip(order, [*order[1:], *order[:1]], strict=True))
        for index, record in enumerate(records):
            other = records[source[index]]
            if not isinstance(record, ptkit.GenerationRecord) or not isinstance(
                other, ptkit.GenerationRecord
            ):
                raise ptkit.RecipeError(
                    f"{record.origin}: transform {self.name!r} takes GenerationRecord, "
                    f"got {type(record).__name__}"
                )
            yield replace(record, response=other.response)
