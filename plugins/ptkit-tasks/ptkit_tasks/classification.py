"""Heads for names of whole texts: ``sequence-classification``, ``multi-label-classification``."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

import ptkit
from ptkit_tasks.linear import build, scores
from ptkit_tasks.texts import TextHead, labelled

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMES_SHOWN = 20  # labels in a message
Weights = Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"has {twice[0]!r} more than once; name every label once")
    return names


class NamedHead(TextHead):
    """A head whose labels are names, from the recipe or else from the training data, sorted."""

    weights_key: ClassVar[str]
    """The setting that weighs labels, none, balanced, or a table."""

    class Settings(TextHead.Settings):
        labels: (
            Annotated[tuple[str, ...], AfterValidator(_distinct), Field(min_length=1)] | None
        ) = None
        """The labels in the order of their ids; by default those of the training data, sorted."""

    settings: Settings

    def __init__(self, settings: ptkit.Settings, labels: Sequence[str] = ()) -> None:
        super().__init__(settings, labels)
        self._ids = {name: index for index, name in enumerate(self.labels)}

    @property
    def _weights(self) -> Weights:
        found: Weights = getattr(self.settings, self.weights_key)
        return found

    @abstractmethod
    def named(self, record: ptkit.LabelledRecord) -> tuple[str, ...] | None:
        """The names that the record is labelled with; None if that is unknown."""

    def collect_labels(self, records: Iterable[ptkit.Record]) -> tuple[str, ...]:
        """The recipe's labels, or all that the records have, sorted.

        Raises `DataError` if the records have a label that is not the recipe's, or all the same,
        and `RecipeError` for the weight of a label that there is not.
        """
        given, found, first = self.settings.labels, set[tuple[str, ...]](), None
        for record in map(labelled, records):
            first = first or record
            names = self.named(record)
            if names is None:
                continue
            found.add(names)
            for name in names:
                if given is not None and name not in given:
                    raise ptkit.DataError(
                        f"{record.origin}: label {name!r} is not among the {_told(given)} of "
                        f"task.labels{ptkit.suggestion(name, given)}; add it there, or correct it"
                    )
        if first is not None and len(found) < 2:
            what = "no label"
            if found:
                (same,) = found
                what = f"the same {'label' if len(same) == 1 else 'labels'} "
                what += ", ".join(map(repr, same)) or "(none)"
            raise ptkit.DataError(
                f"{first.origin}: this and every other training row has {what}, so there is "
                "nothing to learn; see which column dataset.label_column names, and whether "
                "dataset.limit takes the beginning of a sorted file"
            )
        labels = given or tuple(sorted({name for names in found for name in names}))
        for name in self._weights if isinstance(self._weights, dict) else ():
            if name not in labels:
                raise ptkit.RecipeError(
                    f"task.{self.weights_key}: {name!r} is not among the {_told(labels)}"
                    f"{ptkit.suggestion(name, labels)}; remove or correct it"
                )
        return labels

    def targets(self, record: ptkit.LabelledRecord) -> tuple[int, ...]:
        """The labels' indices; `IGNORE` alone if they are unknown."""
        names = self.named(record)
        if names is None:
            return (ptkit.IGNORE,)
        for name in names:
            if name not in self._ids:
                raise ptkit.DataError(
                    f"{record.origin}: label {name!r} is not among the {_told(self.labels)} that "
                    f"the adapter was trained with{ptkit.suggestion(name, self.labels)}; correct "
                    "it, or train with task.labels that have it"
                )
        return tuple(sorted(self._ids[name] for name in names))

    def label_text(self, label: int) -> str:
        return "unknown" if label == ptkit.IGNORE else super().label_text(label)

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        """The layers, and the weights of the labels as a buffer ``label_weights`` [n].

        The buffer is not saved: an adapter that is only used has no loss.
        """
        import torch

        module = build(info, len(self.labels), self.settings)
        given = self._weights
        if given == "balanced":
            weights = self.balanced(row.labels for row in info.rows)
        else:
            table = given if isinstance(given, dict) else {}
            weights = [table.get(name, 1.0) for name in self.labels]
        module.register_buffer("label_weights", torch.tensor(weights), persistent=False)
        return module

    @abstractmethod
    def balanced(self, rows: Iterable[Sequence[int]]) -> list[float]:
        """A weight a label, made of the labels of all training rows; 1 where they say nothing."""


class SequenceClassification(NamedHead):
    """One label a record: a softmax over the labels."""

    name = "sequence-classification"
    predicts = "label"
    label_type = "name"
    wanted = "one name"
    weights_key = "class_weights"

    class Settings(NamedHead.Settings):
        class_weights: Weights = "none"
        """What a row of a label counts in the loss: a table, label to weight, in which missing
        labels have 1; or balanced, which gives all labels the same share."""
        label_smoothing: float = Field(0.0, ge=0, lt=1)
        """The share of the target that is spread over all labels."""

    settings: Settings

    def named(self, record: ptkit.LabelledRecord) -> tuple[str, ...] | None:
        label = self.reference(record)
        return None if label is None else (label,)

    def balanced(self, rows: Iterable[Sequence[int]]) -> list[float]:
        """Rows / (labels that occur x rows of the label), scikit-learn's class_weight="balanced".

        Three rows of one label and one of another: 4 / (2 x 3) and 4 / (2 x 1).
        """
        counts = _counts(rows, len(self.labels))
        occurring = sum(1 for count in counts if count)
        return [sum(counts) / (occurring * count) if count else 1.0 for count in counts]

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per row its cross-entropy in nats, times the weight of its label, and that weight.

        Over all rows the engine's sum(sums) / sum(weights) is torch's `CrossEntropyLoss` with the
        same weights and label smoothing.
        """
        from torch.nn import functional as F

        logits = scores(module, states, rows, self.settings)
        label_weights = _label_weights(module)
        targets = ptkit.to_device([row.labels[0] for row in rows], logits.device)
        sums = F.cross_entropy(
            logits,
            targets,
            label_weights,
            ignore_index=ptkit.IGNORE,
            label_smoothing=self.settings.label_smoothing,
            reduction="none",
        )
        weights = label_weights[targets.clamp_min(0)].where(targets != ptkit.IGNORE, 0.0)
        return ptkit.Loss(sums, weights)

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> str:
        logits = outputs[0]
        return self.labels[max(range(len(logits)), key=logits.__getitem__)]

    def reference(self, record: ptkit.Record) -> str | None:
        label = labelled(record).label
        if label is not None and not isinstance(label, str):
            raise self.wrong(labelled(record))
        return label


class MultiLabelClassification(NamedHead):
    """Any number of labels a record: a yes or no for each of them."""

    name = "multi-label-classification"
    predicts = "labels"
    label_type = "names"
    wanted = "a list of names"
    weights_key = "positive_weights"

    class Settings(NamedHead.Settings):
        positive_weights: Weights = "none"
        """What the rows that have a label count for it in the loss, against 1 for those that
        haven't: a table, label to weight, in which missing labels have 1; or balanced, which makes
        both sides even."""
        threshold: float = Field(0.5, gt=0, lt=1)
        """A label is predicted from this probability on."""

    settings: Settings

    def named(self, record: ptkit.LabelledRecord) -> tuple[str, ...] | None:
        label = record.label
        if label is not None and not isinstance(label, tuple):
            raise self.wrong(record)
        return None if label is None else tuple(sorted(set(label)))

    def balanced(self, rows: Iterable[Sequence[int]]) -> list[float]:
        """Rows without the label / rows with it. One row of four has it: 3 / 1."""
        known = [row for row in rows if tuple(row) != (ptkit.IGNORE,)]
        counts = _counts(known, len(self.labels))
        return [(len(known) - c) / c if 0 < c < len(known) else 1.0 for c in counts]

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per row the mean of its labels' binary cross-entropies in nats, and 1.

        Over all rows the engine's quotient is torch's `BCEWithLogitsLoss` with the same pos_weight.
        """
        import torch
        from torch.nn import functional as F

        logits = scores(module, states, rows, self.settings)
        targets = torch.zeros_like(logits)
        known = torch.ones_like(logits[:, 0])
        for index, row in enumerate(rows):
            if row.labels == (ptkit.IGNORE,):
                known[index] = 0
            else:
                targets[index, list(row.labels)] = 1
        losses = F.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=_label_weights(module), reduction="none"
        )
        return ptkit.Loss(losses.mean(1) * known, known)

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> tuple[str, ...]:
        """The labels whose probability reaches the threshold, in the order of their ids."""
        least = math.log(self.settings.threshold / (1 - self.settings.threshold))
        return tuple(n for n, logit in zip(self.labels, outputs[0], strict=True) if logit >= least)

    def reference(self, record: ptkit.Record) -> tuple[str, ...] | None:
        """The record's labels in the order of their ids; those that have none come last."""
        names = self.named(labelled(record))
        if names is None:
            return None
        return tuple(sorted(names, key=lambda name: self._ids.get(name, len(self._ids))))


def _told(labels: Sequence[str]) -> str:
    """``3 labels ('a', 'b', 'c')``."""
    names = ", ".join(map(repr, labels[:NAMES_SHOWN]))
    more = f" and {len(labels) - NAMES_SHOWN} more" if len(labels) > NAMES_SHOWN else ""
    return f"{len(labels)} {'label' if len(labels) == 1 else 'labels'} ({names}{more})"


def _counts(rows: Iterable[Sequence[int]], labels: int) -> list[int]:
    """How many rows have each label."""
    counts: Mapping[int, int] = Counter(label for row in rows for label in row)
    return [counts.get(index, 0) for index in range(labels)]


def _label_weights(module: nn.Module | None) -> Tensor:
    assert module is not None
    return module.get_buffer("label_weights")
