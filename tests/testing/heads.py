"""Three small heads of other shapes than generation, written with the public API alone.

Multiple choice: several rows share a loss. Extraction: several rows, each with its own loss, make
one prediction. Tagging with a CRF: padded states, a loss and a decoding of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import ptkit

if TYPE_CHECKING:
    from torch import Tensor, nn


def _linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    """A linear layer whose weights follow from ``seed``."""
    import torch

    linear = torch.nn.Linear(inputs, outputs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(0, inputs**-0.5, generator=generator)
        linear.bias.zero_()
    return linear


# ------------------------------------------------------------------------------------ choices


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord(ptkit.Record):
    """A question, its possible answers, and the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int | None = None


class MultipleChoice(ptkit.TaskHead):
    """A score for every choice, a softmax over the choices of a record."""

    name = "toy-choice"
    accepts = ChoiceRecord
    predicts = "choice"
    rows_share_loss = True

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """A row a choice; its label is 1 for the right one, else 0.

        Example (start id 2): question 5 6, choices 7 and 8, the second is right::

            tokens (2, 5, 6, 7)   labels (0,)   token_types (0, 0, 0, 1)
            tokens (2, 5, 6, 8)   labels (1,)   token_types (0, 0, 0, 1)
        """
        assert isinstance(record, ChoiceRecord)
        question = [*tokenizer.start_ids, *tokenizer.encode(record.question)]
        rows = []
        for index, text in enumerate(record.choices):
            choice = tokenizer.pieces(text)
            types = (0,) * len(question) + (1,) * len(choice)
            labels = () if record.answer is None else (int(index == record.answer),)
            rows.append(ptkit.Row((*question, *choice), labels, types))
        return rows

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        return _linear(info.hidden_size, 1, info.seed)

    def _scores(self, module: nn.Module | None, states: ptkit.States) -> Tensor:
        """[b]: the score of each row, on the state that has seen all of it."""
        assert module is not None
        scores: Tensor = module((states.last if states.causal else states.first).float())[:, 0]
        return scores

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        import torch

        scores = self._scores(module, states)
        starts = [i for i, row in enumerate(rows) if row.part == 0]
        sums, weights = [], []
        for start, end in pairwise([*starts, len(rows)]):
            right = [i for i in range(start, end) if rows[i].labels == (1,)]
            weights.append(float(len(right)))
            sums.append(scores[start:end].logsumexp(0) * len(right) - scores[right].sum())
        return ptkit.Loss(torch.stack(sums), torch.tensor(weights, device=states.device))

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> list[float]:
        scores: list[float] = self._scores(module, states).detach().tolist()
        return scores

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> int:
        return max(range(len(outputs)), key=outputs.__getitem__)

    def reference(self, record: ptkit.Record) -> int | None:
        assert isinstance(record, ChoiceRecord)
        return record.answer


# ------------------------------------------------------------------------------------ extraction


@dataclass(frozen=True, kw_only=True)
class SpanRecord(ptkit.Record):
    """A question, the words of a context, and the half-open span of words that answers it."""

    question: str
    words: tuple[str, ...]
    answer: tuple[int, int] | None = None


class Extraction(ptkit.TaskHead):
    """Pointers to the first and last token of the answer; a long context gives several windows."""

    name = "extraction"
    accepts = SpanRecord
    predicts = "text"

    class Settings(ptkit.Settings):
        window: int = 6
        """Context tokens a row."""
        stride: int = 4
        """Context tokens between the beginnings of two windows."""

    settings: Settings

    def _windows(
        self, record: SpanRecord, tokenizer: ptkit.Tokenizer
    ) -> tuple[list[int], list[list[tuple[int, int]]]]:
        """The tokens before the context, and for each window its tokens with their words."""
        before = [*tokenizer.start_ids, *tokenizer.encode(record.question)]
        pieces = [(t, i) for i, word in enumerate(record.words) for t in tokenizer.pieces(word)]
        window, stride = self.settings.window, self.settings.stride
        starts = range(0, max(1, len(pieces) - window + stride), stride)
        return before, [pieces[start : start + window] for start in starts]

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """A row a window; its labels are the places of the answer's first and last token.

        A window without the whole answer points to its first token, twice. Example (start id 2):
        question 5, words 7 8 9 with the answer 8 9, windows of two tokens with stride 1::

            tokens (2, 5, 7, 8)   labels (0, 0)   token_types (0, 0, 1, 1)
            tokens (2, 5, 8, 9)   labels (2, 3)   token_types (0, 0, 1, 1)
        """
        assert isinstance(record, SpanRecord)
        before, windows = self._windows(record, tokenizer)
        rows = []
        for window in windows:
            labels: tuple[int, ...] = ()
            if record.answer is not None:
                first, end = record.answer
                at = [i for i, (_, word) in enumerate(window, len(before)) if first <= word < end]
                whole = {word for _, word in window} >= set(range(first, end))
                labels = (at[0], at[-1]) if whole else (0, 0)
            types = (0,) * len(before) + (1,) * len(window)
            rows.append(ptkit.Row((*before, *(token for token, _ in window)), labels, types))
        return rows

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        return _linear(info.hidden_size, 2, info.seed)

    def _pointers(self, module: nn.Module | None, states: ptkit.States) -> Tensor:
        """[b, 2, s]: log-probabilities of the first and the last token's place."""
        assert module is not None
        padded, mask = states.padded()
        scores = module(padded.float()).transpose(1, 2)
        pointers: Tensor = scores.masked_fill(~mask[:, None], float("-inf")).log_softmax(-1)
        return pointers

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        import torch

        known = torch.tensor([float(bool(row.labels)) for row in rows], device=states.device)
        places = torch.tensor([row.labels or (0, 0) for row in rows], device=states.device)
        found = self._pointers(module, states).gather(2, places[..., None])  # [b, 2, 1]
        return ptkit.Loss(-found.sum((1, 2)) * known, known)

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> list[tuple[float, int, int]]:
        """For each row its best span inside the context: log-probability, first and last place."""
        found = []
        for row, (first, last) in zip(rows, self._pointers(module, states).tolist(), strict=True):
            context = [i for i, kind in enumerate(row.row.token_types) if kind == 1]
            spans = [(first[i] + last[j], i, j) for i in context for j in context if i <= j]
            found.append(max(spans))
        return found

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> str:
        """The words of the best span of all windows."""
        assert isinstance(record, SpanRecord)
        before, windows = self._windows(record, tokenizer)
        best = max(range(len(outputs)), key=outputs.__getitem__)
        _, first, last = outputs[best]
        words = [word for _, word in windows[best]]
        return " ".join(record.words[words[first - len(before)] : words[last - len(before)] + 1])

    def reference(self, record: ptkit.Record) -> str | None:
        assert isinstance(record, SpanRecord)
        return None if record.answer is None else " ".join(record.words[slice(*record.answer)])


# ------------------------------------------------------------------------------------ tagging

UNKNOWN = -1  # the label of a word whose tag isn't known


@dataclass(frozen=True, kw_only=True)
class TagRecord(ptkit.Record):
    """Words and a tag for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None


def log_partition(emissions: Tensor, mask: Tensor, transitions: Tensor) -> Tensor:
    """[b]: the log of the sum, over all tag sequences, of exp(score), by the forward algorithm.

    ``emissions`` [b, s, n] and ``mask`` [b, s], True on the places that have a tag (at least one a
    row, not necessarily next to each other); ``transitions`` [n, n], from row to column.
    """
    alpha = emissions[:, 0]
    begun = mask[:, 0, None]
    for place in range(1, emissions.shape[1]):
        here = mask[:, place, None]
        onward = (alpha[:, :, None] + transitions).logsumexp(1) + emissions[:, place]
        alpha = onward.where(begun, emissions[:, place]).where(here, alpha)
        begun = begun | here
    return alpha.logsumexp(-1)


def viterbi(emissions: Tensor, transitions: Tensor) -> list[int]:
    """The best tag sequence for ``emissions`` [s, n] of the tagged places of one row."""
    best, back = emissions[0], []
    for emission in emissions[1:]:
        scores, before = (best[:, None] + transitions).max(0)
        best = scores + emission
        back.append(before)
    tags = [int(best.argmax())]
    for before in reversed(back):
        tags.append(int(before[tags[-1]]))
    return tags[::-1]


class CrfTagger(ptkit.TaskHead):
    """A tag a word, with scores for a tag after another (Lafferty, McCallum and Pereira, 2001)."""

    name = "crf-tagger"
    accepts = TagRecord
    predicts = "tags"

    def collect_labels(self, records: Iterable[ptkit.Record]) -> list[str]:
        return sorted({tag for r in records if isinstance(r, TagRecord) for tag in r.tags or ()})

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """One row; a word's label is at its first token, `UNKNOWN` if the record has no tags.

        Example (start id 2; words 5 6 | 7; tags B and O are labels 0 and 1)::

            tokens (2, 5, 6, 7)   labels (-100, 0, -100, 1)
        """
        assert isinstance(record, TagRecord)
        tokens, labels = list(tokenizer.start_ids), [ptkit.IGNORE] * len(tokenizer.start_ids)
        for index, word in enumerate(record.words):
            pieces = tokenizer.pieces(word)
            tag = UNKNOWN if record.tags is None else self.labels.index(record.tags[index])
            tokens += pieces
            labels += [tag, *[ptkit.IGNORE] * (len(pieces) - 1)]
        return [ptkit.Row(tuple(tokens), tuple(labels))]

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        import torch
        from torch import nn

        tags = len(self.labels)
        emissions = _linear(info.hidden_size, tags, info.seed)
        crf = nn.ParameterDict({"transitions": torch.zeros(tags, tags)})
        return nn.ModuleDict({"emissions": emissions, "crf": crf})

    def _scores(
        self, module: nn.Module | None, states: ptkit.States
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Emissions [b, s, n], the mask of real tokens [b, s], and transitions [n, n]."""
        from torch import nn

        assert isinstance(module, nn.ModuleDict)
        padded, mask = states.padded()
        transitions: Any = module["crf"]["transitions"]  # type: ignore[index]
        return module["emissions"](padded.float()), mask, transitions

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per row, the negative log-likelihood of its tags, and the number of its words."""
        import torch

        emissions, mask, transitions = self._scores(module, states)
        labels = torch.full(mask.shape, ptkit.IGNORE, device=states.device)
        labels[mask] = torch.tensor([x for row in rows for x in row.labels], device=states.device)
        tagged = labels >= 0
        gold = emissions.gather(2, labels.clamp_min(0)[..., None])[..., 0].where(tagged, 0.0).sum(1)
        steps = []
        for line in labels:
            tags = line[line >= 0]
            steps.append(transitions[tags[:-1], tags[1:]].sum())
        known = tagged.any(1)
        losses = log_partition(emissions, tagged, transitions) - gold - torch.stack(steps)
        return ptkit.Loss(losses.where(known, 0.0), tagged.sum(1).float())

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> list[list[int]]:
        emissions, _, transitions = self._scores(module, states)
        return [
            viterbi(line[[i for i, x in enumerate(row.labels) if x != ptkit.IGNORE]], transitions)
            for line, row in zip(emissions, rows, strict=True)
        ]

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> tuple[str, ...]:
        return tuple(self.labels[tag] for tag in outputs[0])

    def reference(self, record: ptkit.Record) -> tuple[str, ...] | None:
        assert isinstance(record, TagRecord)
        return record.tags
