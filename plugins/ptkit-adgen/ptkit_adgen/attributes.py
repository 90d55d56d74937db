"""How much of an attribute list is found in the text that was written from it."""

from __future__ import annotations

from typing import ClassVar

from ptkit import GenerationRecord, Pair, RowMetric


class AttributeShare(RowMetric):
    """The share of a prompt's attribute values that occur, letter for letter, in the prediction.

    A control, not a measure of quality: a text that copies its prompt scores 100, and a good text
    that paraphrases scores less. Fluent text that ignores its prompt scores low here, whatever
    BLEU and ROUGE say. Only prompts that are attribute lists count.

    Worked example::

        prompt      类型#裙*版型#宽松*图案#条纹
        prediction  这条宽松的连衣裙……
        score       2 of 3 values (裙, 宽松): 66.7
    """

    name = "attribute-share"
    scores: ClassVar[str] = "text"

    def score_row(self, pair: Pair) -> dict[str, float] | None:
        if not isinstance(pair.record, GenerationRecord):
            return None
        values = attribute_values(pair.record.prompt)
        if not values:
            return None
        found = sum(value in pair.prediction for value in values)
        return {self.name: 100 * found / len(values)}


def attribute_values(prompt: str) -> list[str]:
    """The values of ``key#value*key#value``, in order, repeats included; [] for other text."""
    pairs = [part.split("#") for part in prompt.strip().split("*")]
    if all(len(pair) == 2 and all(text.strip() for text in pair) for pair in pairs):
        return [value.strip() for _, value in pairs]
    return []
