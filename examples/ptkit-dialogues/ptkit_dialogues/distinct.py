"""The metric ``distinct``: how varied the predictions are, taken together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import ptkit
from ptkit import Metric, Pair

Tokens = Literal["characters", "words"]
SIZES = (1, 2)


class Distinct(Metric):
    """Distinct n-grams among all n-grams of the predictions, percent, for n = 1 and 2.

    After Li et al., 2016, "A Diversity-Promoting Objective Function for Neural
    Conversation Models": the n-grams of all predictions are counted together, none
    reaches from one prediction into the next, and the number of different ones is
    divided by the number of all. So it is a score of the whole file and no mean over
    rows, and it falls with the number of predictions: compare it on the same rows only.
    References play no part.

    An empty prediction has no n-grams and changes nothing; without any n-gram at all
    the score is 0.
    """

    name = "distinct"
    scores: ClassVar[str] = "text"

    class Settings(ptkit.Settings):
        tokens: Tokens = "characters"
        """What n-grams are made of: characters, white space left out, as for Chinese,
        or words, as white space divides them. Case counts."""

    settings: Settings

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        if not pairs:
            return {}
        texts = [str(pair.prediction) for pair in pairs]
        return distinct(texts, self.settings.tokens)

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        empty = sum(not str(pair.prediction).strip() for pair in pairs)
        if not empty:
            return []
        return [f"{empty} of {len(pairs)} predictions are empty and don't count"]


def distinct(texts: Iterable[str], tokens: Tokens) -> dict[str, float]:
    """``distinct-1`` and ``distinct-2`` of ``texts`` taken together, percent.

    >>> distinct(["aab", "a"], "characters")  # a a b a; aa ab
    {'distinct-1': 50.0, 'distinct-2': 100.0}
    """
    split = [text.split() for text in texts]
    if tokens == "characters":
        split = [list("".join(words)) for words in split]
    scores = {}
    for n in SIZES:
        grams = [
            tuple(text[at : at + n])
            for text in split
            for at in range(len(text) - n + 1)
        ]
        scores[f"distinct-{n}"] = 100 * len(set(grams)) / len(grams) if grams else 0.0
    return scores
