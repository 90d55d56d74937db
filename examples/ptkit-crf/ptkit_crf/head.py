"""The task head ``crf-entities``: entities from BIO tags that are chosen together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import ptkit
from pydantic import Field, ValidationInfo, field_validator

from ptkit_crf.bio import barred, bio_labels
from ptkit_crf.chain import Chain, best_path, log_partition, path_score

if TYPE_CHECKING:
    from torch import Tensor, nn

INITIALIZER_RANGE = 0.02  # standard deviation of weights, as in BERT


class RowScores(NamedTuple):
    """The output for a row: [w, n] scores of its words, and the chain that joins them.

    The tags of a text are chosen over all its rows, in `CrfEntities.decode`.
    """

    emissions: Tensor
    chain: Chain


class CrfEntities(ptkit.TaskHead):
    """A linear layer on a token of every word, and a CRF over the words of a text.

    A text that is longer than a row is read in windows; the chain runs through all of
    them. So its rows share a loss, and no border of a window splits an entity.
    """

    name = "crf-entities"
    accepts = ptkit.TaggedRecord
    predicts = "entities"
    rows_share_loss = True

    class Settings(ptkit.Settings):
        max_tokens: int = Field(256, ge=1)
        """Longest row, specials included; a longer text is read in several."""
        overlap: int | None = Field(None, ge=0)
        """Tokens that two rows of a text share at most; a quarter of max_tokens if not
        given."""
        subword: Literal["auto", "first", "last"] = "auto"
        """Which token stands for a word of several; auto: the first on encoders, the
        last on causal models, which has seen the whole word."""
        types: tuple[str, ...] | None = None
        """The types of entities; those of the training data if not given."""
        transition_rate: float = Field(10.0, gt=0)
        """How many times as fast as the layer the scores between tags learn."""

        @field_validator("overlap")
        @classmethod
        def _check_overlap(cls, value: int | None, info: ValidationInfo) -> int | None:
            most = info.data.get("max_tokens")
            if value is not None and most is not None and value >= most:
                raise ValueError(f"must be less than max_tokens ({most}), got {value}")
            return value

        @field_validator("types")
        @classmethod
        def _check_types(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
            if value is not None and (not all(value) or len(set(value)) < len(value)):
                raise ValueError(
                    f"must be different names, none empty, got {', '.join(value)}"
                )
            if value == ():
                raise ValueError("must be one name or more, got []")
            return value

    settings: Settings

    # ------------------------------------------------------------------ labels

    def collect_labels(self, records: Iterable[ptkit.Record]) -> Sequence[str]:
        """O, then B- and I- of every type, also where its entities are one word long.

        Raises `ptkit.DataError` for tags that are not BIO, or where there is no entity.
        """
        if self.settings.types is not None:
            return bio_labels(self.settings.types)
        types: set[str] = set()
        file = ""
        for record in records:
            assert isinstance(record, ptkit.TaggedRecord)
            file = file or record.origin.file
            types.update(span.type for span in _spans(record))
        if not types:
            raise ptkit.DataError(
                f"{file}: no word is tagged as an entity, so there is nothing to "
                "learn; tag some, or set task.types"
            )
        return bio_labels(sorted(types))

    def _label_ids(self, record: ptkit.TaggedRecord) -> list[int]:
        """The labels of a record's words; none where they aren't known.

        Tags are made well-formed: an I-x that continues nothing begins an entity.
        """
        if record.tags is None:
            return []
        if len(record.tags) != len(record.words):
            raise ptkit.DataError(
                f"{record.origin}: {len(record.tags)} tags for "
                f"{len(record.words)} words; give every word one"
            )
        spans = _spans(record)
        types = [label[2:] for label in self.labels if label.startswith("B-")]
        for span in spans:
            if span.type not in types:
                raise ptkit.DataError(
                    f"{record.origin}: type {span.type!r} is not among "
                    f"{', '.join(types)}{ptkit.suggestion(span.type, types)}; "
                    "correct it, or train with it"
                )
        ids = {label: index for index, label in enumerate(self.labels)}
        return [ids[tag] for tag in ptkit.bio_tags(len(record.words), spans)]

    # ------------------------------------------------------------------ rows

    def limits(self) -> ptkit.HeadLimits:
        return ptkit.HeadLimits(source="max_tokens")

    def encode(
        self, record: ptkit.Record, tokenizer: ptkit.Tokenizer
    ) -> list[ptkit.Row]:
        """The rows of `ptkit.word_rows`: every word has a label, also one without a token."""
        return self.encode_batch([record], tokenizer)[0]

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        given = [x for x in records if isinstance(x, ptkit.TaggedRecord)]
        assert len(given) == len(records)
        return ptkit.word_rows(
            given,
            [self._label_ids(record) for record in given],
            tokenizer,
            max_tokens=self.settings.max_tokens,
            overlap=self.settings.overlap,
        )

    # ------------------------------------------------------------------ states

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        """The layer ``emissions``, and ``chain``, the scores of tags, 0 at first."""
        import torch
        from torch import nn

        tags = len(self.labels)
        emissions = nn.Linear(info.hidden_size, tags, dtype=torch.float32)
        generator = torch.Generator().manual_seed(info.seed)
        with torch.no_grad():
            emissions.weight.normal_(0, INITIALIZER_RANGE, generator=generator)
            emissions.bias.zero_()
        shapes = {"first": (tags,), "after": (tags, tags), "last": (tags,)}
        chain = {name: torch.zeros(shape) for name, shape in shapes.items()}
        return nn.ModuleDict({"emissions": emissions, "chain": nn.ParameterDict(chain)})

    def _chain(self, module: nn.Module) -> Chain:
        """The scores of tags, -inf where BIO has no such tag there.

        AdamW moves every number by about the learning rate, so numbers that count
        ``transition_rate`` fold learn so many times as fast.
        """
        import torch

        rate, names = self.settings.transition_rate, ("first", "after", "last")
        first, after, last = (rate * module.get_parameter(f"chain.{x}") for x in names)
        no_first, no_after = (
            torch.tensor(mask, device=first.device) for mask in barred(self.labels)
        )
        infinite = float("-inf")
        return Chain(
            first.masked_fill(no_first, infinite),
            after.masked_fill(no_after, infinite),
            last,
        )

    def _emissions(
        self,
        module: nn.Module,
        states: ptkit.States,
        rows: Sequence[ptkit.EncodedRow],
    ) -> list[Tensor]:
        """[w, n] a row: scores of the words that it is asked for.

        0 for a word without a token: its neighbours decide.
        """
        import torch

        layer = module.get_submodule("emissions")
        subword = self.settings.subword
        last = states.causal if subword == "auto" else subword == "last"
        places = [row.places[int(last) :: 2] for row in rows]
        read = [[place for place in own if place >= 0] for own in places]
        # hidden states may have fewer bits than the layer
        scores = layer(states.at(read).to(module.get_parameter("chain.last").dtype))
        has_token = torch.tensor(
            [place >= 0 for own in places for place in own],
            dtype=torch.bool,
            device=states.device,
        )
        every = scores.new_zeros(len(has_token), len(self.labels))
        every = every.masked_scatter(has_token[:, None], scores)
        return list(every.split([len(own) for own in places]))

    def loss(
        self,
        module: nn.Module | None,
        states: ptkit.States,
        rows: Sequence[ptkit.EncodedRow],
    ) -> ptkit.Loss:
        """Per text, the negative log-likelihood of its tags in nats, and its words."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        assert module is not None
        # a record may come twice in a step, so part 0 and not the record begins a text
        starts = [index for index, row in enumerate(rows) if row.part == 0]
        ends = [*starts[1:], len(rows)]
        texts = [slice(*bounds) for bounds in zip(starts, ends, strict=True)]
        emissions = self._emissions(module, states, rows)
        padded = pad_sequence([torch.cat(emissions[text]) for text in texts], True)
        lengths, tags = [], []
        for text in texts:
            labels = [label for row in rows[text] for label in row.labels]
            lengths.append(len(labels))  # none where they aren't known
            tags.append(labels + [0] * (padded.shape[1] - len(labels)))
        counts = torch.tensor(lengths, device=states.device)
        given = torch.tensor(tags, dtype=torch.long, device=states.device)
        chain = self._chain(module)
        sums = log_partition(padded, counts, chain)
        sums = sums - path_score(padded, counts, given, chain)
        return ptkit.Loss(sums, counts.to(sums.dtype))

    def outputs(
        self,
        module: nn.Module | None,
        states: ptkit.States,
        rows: Sequence[ptkit.EncodedRow],
    ) -> list[RowScores]:
        assert module is not None
        chain = Chain(*(scores.detach().cpu() for scores in self._chain(module)))
        emissions = self._emissions(module, states, rows)
        return [RowScores(scores.detach().cpu(), chain) for scores in emissions]

    # ------------------------------------------------------------------ predictions

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> list[ptkit.Entity]:
        """The entities of the best tags of the whole text."""
        import torch

        assert isinstance(record, ptkit.TaggedRecord)
        emissions = torch.cat([output.emissions for output in outputs])
        best = best_path(emissions, outputs[0].chain)
        return ptkit.entities(record, [self.labels[label] for label in best])

    def reference(self, record: ptkit.Record) -> list[ptkit.Entity] | None:
        assert isinstance(record, ptkit.TaggedRecord)
        return None if record.tags is None else ptkit.entities(record, record.tags)

    def constants(
        self, records: Sequence[ptkit.Record], *, seed: int
    ) -> Sequence[list[ptkit.Entity]]:
        """No entity at all: one at the same characters of every text makes no sense."""
        return [[]]


def _spans(record: ptkit.TaggedRecord) -> list[ptkit.Span]:
    """The entities of a record. Raises `ptkit.DataError` for tags that are not BIO."""
    try:
        return ptkit.entity_spans(record.tags or ())
    except ValueError as error:
        raise ptkit.DataError(
            f"{record.origin}: {error}; set the scheme of the data in [dataset]"
        ) from None
