"""The head ``sequence-regression``: a number for a text, or for two."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import ptkit
from ptkit_tasks.linear import build, scores
from ptkit_tasks.texts import TextHead, labelled

if TYPE_CHECKING:
    from torch import nn


class SequenceRegression(TextHead):
    """A number a record, learnt by its squared error, in the label's own unit."""

    name = "sequence-regression"
    predicts = "number"
    label_type = "number"
    wanted = "a number"

    def targets(self, record: ptkit.LabelledRecord) -> tuple[int, ...]:
        """The number as the bits of a float32, since labels are whole numbers; () if it is
        unknown."""
        number = self.reference(record)
        if number is None:
            return ()
        try:
            packed = struct.pack("<f", number)
        except OverflowError:
            packed = b""
        if not packed or not math.isfinite(number):
            raise ptkit.DataError(
                f"{record.origin}: label {number} is not a number that can be learnt; give a "
                "finite one below 3e38, or leave the row out"
            )
        return struct.unpack("<i", packed)

    def label_text(self, label: int) -> str:
        return f"{next(_numbers((label,))):g}"

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        """The layers; the bias of the last one begins at the mean of the training labels."""
        import torch

        module = build(info, 1, self.settings)
        labels = [number for row in info.rows for number in _numbers(row.labels)]
        if labels:
            with torch.no_grad():
                module.get_parameter("output.bias").fill_(fmean(labels))
        return module

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per row its squared error, and 1; over all rows torch's `MSELoss`."""
        import torch

        found = scores(module, states, rows, self.settings)[:, 0]
        numbers = [next(_numbers(row.labels), math.nan) for row in rows]
        targets = ptkit.to_device(torch.tensor(numbers, dtype=found.dtype), found.device)
        known = ~targets.isnan()
        return ptkit.Loss((found - targets.where(known, found)) ** 2, known.to(found.dtype))

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> float:
        return float(outputs[0][0])

    def reference(self, record: ptkit.Record) -> float | None:
        label = labelled(record).label
        if label is None:
            return None
        if isinstance(label, bool) or not isinstance(label, int | float):
            raise self.wrong(labelled(record))
        return float(label)

    def constants(self, records: Sequence[ptkit.Record], *, seed: int) -> list[float]:
        """The mean and the median of the training labels, best by squared and absolute error."""
        numbers = [n for record in records if (n := self.reference(record)) is not None]
        return [fmean(numbers), median(numbers)] if numbers else []


def _numbers(labels: Sequence[int]) -> Iterator[float]:
    """The number of a regression row, if it has one."""
    for bits in labels:
        yield from struct.unpack("<f", struct.pack("<i", bits))
