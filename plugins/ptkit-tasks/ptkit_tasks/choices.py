"""The head ``multiple-choice``: a score for every choice, a softmax over those of a record."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import ptkit
from ptkit_tasks.fitting import fitting
from ptkit_tasks.linear import PooledSettings, build, scores

if TYPE_CHECKING:
    from torch import nn


class MultipleChoice(ptkit.TaskHead):
    """Which of the choices answers the question: every choice is read with the question, and one
    linear layer scores it."""

    name = "multiple-choice"
    accepts = ptkit.ChoiceRecord
    predicts = "choice"
    rows_share_loss = True

    class Settings(PooledSettings):
        pass

    settings: Settings

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """A row a choice, question first; its label is 1 for the right one, else 0.

        Where both are too long together, the question is cut, and the choice only when nothing of
        the question is left. Example (start id 2, a line break is token 3): question 5 6, choices
        7 and 8, the second is right::

            tokens (2, 5, 6, 3, 7)   labels (0,)
            tokens (2, 5, 6, 3, 8)   labels (1,)

        Raises `DataError` for fewer than two choices, or an answer that is none of them.
        """
        return self.encode_batch([record], tokenizer)[0]

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        """All texts go through the tokenizer at once."""
        given = [_checked(record) for record in records]
        ids = iter(
            tokenizer.encode_batch([text for r in given for text in (r.question, *r.choices)])
        )
        return [
            self._rows(record, next(ids), [next(ids) for _ in record.choices], tokenizer)
            for record in given
        ]

    def _rows(
        self,
        record: ptkit.ChoiceRecord,
        question: Sequence[int],
        choices: Sequence[Sequence[int]],
        tokenizer: ptkit.Tokenizer,
    ) -> list[ptkit.Row]:
        rows = []
        for index, choice in enumerate(choices):
            joined, cut = fitting(
                tokenizer, question, choice, self.settings.max_tokens, cut_first=True
            )
            labels = () if record.answer is None else (int(index == record.answer),)
            rows.append(ptkit.Row(joined.tokens, labels, joined.token_types, cut=cut))
        return rows

    def label_text(self, label: int) -> str:
        return "right" if label else "wrong"

    def limits(self) -> ptkit.HeadLimits:
        return ptkit.HeadLimits("max_tokens")

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        return build(info, 1, self.settings)

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per record the cross-entropy of its choices in nats, and 1."""
        import torch

        found = scores(module, states, rows, self.settings)[:, 0]
        starts = [index for index, row in enumerate(rows) if row.part == 0]
        sums, weights = [], []
        for start, end in pairwise([*starts, len(rows)]):
            right = [index for index in range(start, end) if rows[index].labels == (1,)]
            # no right one where the answer is unknown: a sum of nothing, and the weight 0
            sums.append(found[start:end].logsumexp(0) * len(right) - found[right].sum())
            weights.append(float(len(right)))
        return ptkit.Loss(torch.stack(sums), ptkit.to_device(weights, found.device))

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> list[float]:
        """The score of each row's choice."""
        found: list[float] = scores(module, states, rows, self.settings)[:, 0].detach().tolist()
        return found

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> int:
        """The index of the choice with the highest score; the first of equal ones."""
        return max(range(len(outputs)), key=outputs.__getitem__)

    def reference(self, record: ptkit.Record) -> int | None:
        return _checked(record).answer


def _checked(record: ptkit.Record) -> ptkit.ChoiceRecord:
    assert isinstance(record, ptkit.ChoiceRecord)
    count = len(record.choices)
    if count < 2:
        raise ptkit.DataError(
            f"{record.origin}: needs two choices or more, got {count}; add some, or leave the row "
            "out"
        )
    if record.answer is not None and not 0 <= record.answer < count:
        raise ptkit.DataError(
            f"{record.origin}: answer {record.answer} is none of its {count} choices, which count "
            f"from 0 to {count - 1}; correct it"
        )
    return record
