"""The heads ``token-classification`` and ``tagging``: a tag for every word of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

import ptkit
from ptkit_tasks.linear import linear
from ptkit_tasks.tags import OUTSIDE, EveryWord, best_bio, fill_tags, is_bio

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 12  # labels in a message


class WordSettings(ptkit.Settings):
    """What both heads can be told."""

    max_tokens: int = Field(256, ge=1)
    """Longest row, specials included; a longer text is read in windows that overlap."""
    overlap: int | None = Field(None, ge=0)
    """Tokens that two windows share at most; a quarter of max_tokens if not given."""
    subword: Literal["auto", "first", "last"] = "auto"
    """Which token stands for a word of several; auto: the first on encoders, the last on causal
    models, which has seen the whole word."""
    labels: tuple[str, ...] | None = None
    """The tags, in the order of their ids; those of the training data if not given."""
    class_weights: dict[str, Annotated[float, Field(ge=0)]] = {}
    """How much words with a tag count in the loss, such as { O = 0.5 }; other tags count 1."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of each target that is spread over all tags."""

    @field_validator("overlap")
    @classmethod
    def _check_overlap(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = info.data.get("max_tokens")
        if value is not None and most is not None and value >= most:
            raise ValueError(f"must be less than max_tokens ({most}), got {value}")
        return value

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError(f"must be two or more different tags, got {', '.join(value) or '[]'}")
        return value


class WordHead(ptkit.TaskHead):
    """A linear layer on a token of every word; what both heads have in common."""

    accepts = ptkit.TaggedRecord

    class Settings(WordSettings):
        pass

    settings: WordSettings

    # -------------------------------------------------------------------------------- labels

    def collect_labels(self, records: Iterable[ptkit.Record]) -> Sequence[str]:
        """Those of the settings, or those of the training records: O first, the others sorted.

        Raises `DataError` if there is nothing to tell apart, `RecipeError` for a class weight of an
        unknown tag.
        """
        labels = self.settings.labels or self._labels_of(records)
        for name in self.settings.class_weights:
            if name not in labels:
                raise ptkit.RecipeError(
                    f"task.class_weights: {name!r} is not among {_shown(labels)}"
                    f"{ptkit.suggestion(name, labels)}"
                )
        return labels

    def _labels_of(self, records: Iterable[ptkit.Record]) -> list[str]:
        tags: set[str] = set()
        name = ""
        for record in records:
            assert isinstance(record, ptkit.TaggedRecord)
            name = name or record.origin.file
            if record.tags is not None and not tags.issuperset(record.tags):
                tags.update(record.tags)
                self._check_tags(record)
        if len(tags) < 2:
            what = f"every word is tagged {next(iter(tags))!r}" if tags else "no word has a tag"
            raise ptkit.DataError(f"{name}: {what}, so there is nothing to learn; label some words")
        return self._ordered(tags)

    def _ordered(self, tags: set[str]) -> list[str]:
        return sorted(tags, key=lambda tag: (tag != OUTSIDE, tag))

    def _check_tags(self, record: ptkit.TaggedRecord) -> None:
        """Raises `DataError` for tags that the head doesn't take."""

    def _label_ids(self, record: ptkit.TaggedRecord, ids: dict[str, int]) -> list[int]:
        """The labels of a record's words; none where they aren't known."""
        if record.tags is None:
            return []
        if len(record.tags) != len(record.words):
            raise ptkit.DataError(
                f"{record.origin}: {len(record.tags)} tags for {len(record.words)} words; "
                "give every word one"
            )
        for tag in record.tags:
            if tag not in ids:
                self._check_tags(record)
                raise ptkit.DataError(
                    f"{record.origin}: tag {tag!r} is not among {_shown(self.labels)}"
                    f"{ptkit.suggestion(tag, self.labels)}; correct it, or train with it"
                )
        return [ids[tag] for tag in record.tags]

    # -------------------------------------------------------------------------------- rows

    def limits(self) -> ptkit.HeadLimits:
        return ptkit.HeadLimits("max_tokens")

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """The rows of `ptkit.word_rows`; the label of a word without a token is `IGNORE`."""
        return self.encode_batch([record], tokenizer)[0]

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        """The different words of all records go through the tokenizer once."""
        given = [record for record in records if isinstance(record, ptkit.TaggedRecord)]
        assert len(given) == len(records)
        ids = {label: index for index, label in enumerate(self.labels)}
        rows = ptkit.word_rows(
            given,
            [self._label_ids(record, ids) for record in given],
            tokenizer,
            max_tokens=self.settings.max_tokens,
            overlap=self.settings.overlap,
        )
        return [[_trained(row) for row in own] for own in rows]

    # -------------------------------------------------------------------------------- states

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        return linear(info.hidden_size, len(self.labels), info.seed)

    def _scores(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> tuple[Tensor, list[int]]:
        """[w, n] scores of the words with a token, in the module's type, and how many a row has."""
        assert module is not None
        subword = self.settings.subword
        last = states.causal if subword == "auto" else subword == "last"
        places = [[place for place in row.places[int(last) :: 2] if place >= 0] for row in rows]
        scores: Tensor = module(states.at(places).to(next(module.parameters()).dtype))
        return scores, [len(own) for own in places]

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per row, the class-weighted cross-entropy of its words in nats, and their class weights.

        Sum / weight is what torch's `CrossEntropyLoss` with the same ``weight`` and
        ``label_smoothing`` gives.
        """
        import torch
        from torch.nn.functional import cross_entropy

        scores, counts = self._scores(module, states, rows)
        labels: list[int] = []
        for row, count in zip(rows, counts, strict=True):
            known = zip(row.labels, row.places[::2], strict=True) if row.labels else ()
            labels += [x for x, place in known if place >= 0] or [ptkit.IGNORE] * count
        weights = [self.settings.class_weights.get(label, 1.0) for label in self.labels]
        weight = ptkit.to_device(torch.tensor(weights, dtype=scores.dtype), scores.device)
        target = ptkit.to_device(torch.tensor(labels, dtype=torch.long), scores.device)
        losses = cross_entropy(
            scores,
            target,
            weight,
            reduction="none",
            ignore_index=ptkit.IGNORE,
            label_smoothing=self.settings.label_smoothing,
        )
        counted = weight[target.clamp_min(0)].where(target != ptkit.IGNORE, 0.0)
        owner = torch.arange(len(rows)).repeat_interleave(torch.tensor(counts))
        owners = ptkit.to_device(owner, scores.device)
        zeros = scores.new_zeros(len(rows))
        return ptkit.Loss(zeros.index_add(0, owners, losses), zeros.index_add(0, owners, counted))

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> Sequence[Any]:
        """For each row the best label of every word that has a token."""
        scores, counts = self._scores(module, states, rows)
        best = iter(scores.argmax(-1).tolist())
        return [[next(best) for _ in range(count)] for count in counts]

    # -------------------------------------------------------------------------------- predictions

    def _tags(self, rows: Sequence[ptkit.Row], best: Sequence[int]) -> tuple[str, ...]:
        """A tag a word; ``best``: the labels of those words of all rows that have a token."""
        found = iter(best)
        known = [
            None if place < 0 else self.labels[next(found)]
            for row in rows
            for place in row.places[::2]
        ]
        return fill_tags(known, self.labels)


class Tagging(WordHead):
    """A tag for every word, whatever the tags are: parts of speech, languages, punctuation."""

    name = "tagging"
    predicts = "tags"

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> tuple[str, ...]:
        return self._tags(rows, [label for output in outputs for label in output])

    def reference(self, record: ptkit.Record) -> tuple[str, ...] | None:
        assert isinstance(record, ptkit.TaggedRecord)
        return record.tags

    def constants(self, records: Sequence[ptkit.Record], *, seed: int) -> Sequence[EveryWord]:
        """The most frequent tag of the training records' words, for every word."""
        tags = Counter(tag for record in records for tag in self.reference(record) or ())
        return [EveryWord(tag) for tag, _ in tags.most_common(1)]


class TokenClassification(WordHead):
    """The entities of a text, from BIO tags."""

    name = "token-classification"
    predicts = "entities"

    class Settings(WordSettings):
        constrained: bool = False
        """Whether tags are chosen together, so that no I-x follows anything but B-x or I-x; else
        each word takes its best tag, and an I-x that continues nothing begins an entity."""

        @field_validator("labels")
        @classmethod
        def _check_bio(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
            if value is not None:
                wrong = next((tag for tag in value if not is_bio(tag)), None)
                if wrong is not None:
                    raise ValueError(f"must be BIO tags (O, B-type, I-type), got {wrong!r}")
                if OUTSIDE not in value:
                    raise ValueError(f"must hold {OUTSIDE!r}, the tag of words in no entity")
            return value

    settings: Settings

    def _ordered(self, tags: set[str]) -> list[str]:
        """O, then B- and I- of every type; a type whose entities are one word long has both."""
        kinds = sorted({tag[2:] for tag in tags if tag != OUTSIDE})
        return [OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in "BI")]

    def _check_tags(self, record: ptkit.TaggedRecord) -> None:
        for tag in record.tags or ():
            if not is_bio(tag):
                raise ptkit.DataError(
                    f"{record.origin}: tag {tag!r} is not BIO (O, B-type, I-type), which task "
                    f'{self.name!r} needs; task.kind = "{Tagging.name}" takes any tags'
                )

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> Sequence[Any]:
        """As `WordHead.outputs`; if constrained, the words' log-probabilities [words, labels]."""
        if not self.settings.constrained:
            return super().outputs(module, states, rows)
        scores, counts = self._scores(module, states, rows)
        found: list[Tensor] = list(scores.log_softmax(-1).detach().cpu().split(counts))
        return found

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> list[ptkit.Entity]:
        assert isinstance(record, ptkit.TaggedRecord)
        if self.settings.constrained:
            best = best_bio(np.concatenate([output.numpy() for output in outputs]), self.labels)
        else:
            best = [label for output in outputs for label in output]
        return ptkit.entities(record, self._tags(rows, best))

    def reference(self, record: ptkit.Record) -> list[ptkit.Entity] | None:
        assert isinstance(record, ptkit.TaggedRecord)
        return None if record.tags is None else ptkit.entities(record, record.tags)

    def constants(
        self, records: Sequence[ptkit.Record], *, seed: int
    ) -> Sequence[list[ptkit.Entity]]:
        """No entity at all; an entity at the same characters of every text makes no sense."""
        return [[]]


def _trained(row: ptkit.Row) -> ptkit.Row:
    """The row without the labels of words that have no token to train on."""
    if not row.labels or min(row.places) >= 0:
        return row
    known = zip(row.labels, row.places[::2], strict=True)
    return replace(row, labels=tuple(x if place >= 0 else ptkit.IGNORE for x, place in known))


def _shown(labels: Sequence[str]) -> str:
    more = ", …" if len(labels) > SHOWN else ""
    return f"the {len(labels)} labels: {', '.join(labels[:SHOWN])}{more}"
