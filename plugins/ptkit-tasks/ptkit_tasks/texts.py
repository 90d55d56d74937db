"""What the heads for labelled texts share: a row a record, and its score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import ptkit
from ptkit_tasks.fitting import fitting
from ptkit_tasks.linear import PooledSettings, scores

if TYPE_CHECKING:
    from torch import nn


class TextHead(ptkit.TaskHead):
    """A row a record, scored by a linear layer on a pooled state."""

    accepts = ptkit.LabelledRecord

    label_type: ClassVar[str]
    """The value of dataset.label_type under which a format gives such labels."""
    wanted: ClassVar[str]
    """What a record's label has to be, in words."""

    class Settings(PooledSettings):
        pass

    settings: Settings

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """One row: the text, or both, joined as the backbone takes them; its labels are those of
        `targets`.

        Example (start id 2; texts 5 6 and 7; a line break is token 3; "no" is the first label)::

            tokens (2, 5, 6, 3, 7)   labels (0,)
        """
        return self.encode_batch([record], tokenizer)[0]

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        """All texts go through the tokenizer at once."""
        given = [labelled(record) for record in records]
        labels = [self.targets(record) for record in given]
        texts = [t for r in given for t in (r.text, r.second) if t is not None]
        ids = iter(tokenizer.encode_batch(texts))
        rows = []
        for record, own in zip(given, labels, strict=True):
            first = next(ids)
            second = None if record.second is None else next(ids)
            joined, cut = fitting(tokenizer, first, second, self.settings.max_tokens)
            rows.append([ptkit.Row(joined.tokens, own, joined.token_types, cut=cut)])
        return rows

    @abstractmethod
    def targets(self, record: ptkit.LabelledRecord) -> tuple[int, ...]:
        """The labels of the record's row. Raises `DataError` for a label that is not of this
        head."""

    def limits(self) -> ptkit.HeadLimits:
        return ptkit.HeadLimits("max_tokens")

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> list[list[float]]:
        """The scores of each row: a logit a label, or the number."""
        found: list[list[float]] = scores(module, states, rows, self.settings).detach().tolist()
        return found

    def wrong(self, record: ptkit.LabelledRecord) -> ptkit.DataError:
        """The error for a record with a label of another type."""
        label = record.label
        kind = "the names" if isinstance(label, tuple) else "the number"
        if isinstance(label, str):
            kind = "the name"
        return ptkit.DataError(
            f"{record.origin}: its label is {kind} {label!r}, but task {self.name!r} takes "
            f"{self.wanted}; set dataset.label_type = {self.label_type!r}, or task.kind to what "
            "fits the labels"
        )


def labelled(record: ptkit.Record) -> ptkit.LabelledRecord:
    assert isinstance(record, ptkit.LabelledRecord)
    return record
