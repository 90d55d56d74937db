"""The head ``span-extraction``: the piece of a context that answers a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from pydantic import Field

import ptkit
from ptkit_tasks.linear import linear
from ptkit_tasks.windows import token_windows

if TYPE_CHECKING:
    from torch import Tensor, nn

NO_ANSWER = "no-answer"
"""The one label of the head, if its training data has questions without an answer."""

Spans = tuple[Sequence[int], Sequence[tuple[int, int]]]  # ids and their characters


class Candidate(TypedDict):
    """A piece of the context and its log-probability in nats; "" at -1 says that there is none."""

    text: str
    start: int
    score: float


class Extraction(Candidate):
    """The prediction: the best candidate, and up to ``n_best`` of them, best first."""

    n_best: list[Candidate]


class SpanExtraction(ptkit.TaskHead):
    """Pointers to the first and the last token of the answer, or to none; long contexts give
    windows.

    As in BERT (Devlin et al., 2019) two softmaxes choose among the tokens of the context and a
    place that stands for "not here": on encoders the first token's state, on causal models, whose
    first token has seen nothing, the last one's. That place has weights of its own, because on
    causal models it is a token of the context at the same time. A causal model points at a first
    token before it has seen what follows, which costs quality.
    """

    name = "span-extraction"
    accepts = ptkit.ExtractionRecord
    predicts = "answer"

    class Settings(ptkit.Settings):
        max_tokens: int = Field(384, ge=1)
        """Longest row, question and specials included; a longer context is read in windows."""
        stride: int = Field(128, ge=1)
        """Context tokens between the beginnings of two windows; fewer where an answer of
        max_answer_tokens could lie across all of their borders."""
        max_question_tokens: int = Field(64, ge=1)
        """Longest question; a longer one is cut at its end."""
        max_answer_tokens: int = Field(30, ge=1)
        """Longest answer that is predicted."""
        n_best: int = Field(3, ge=1, le=100)
        """How many candidates a prediction lists."""
        no_answer: Literal["auto"] | bool = "auto"
        """Whether a prediction may be that there is no answer; auto: if the training data has such
        questions."""
        no_answer_threshold: float = 0.0
        """By how many nats having no answer must score above the best answer to be predicted."""

    settings: Settings

    def collect_labels(self, records: Iterable[ptkit.Record]) -> Sequence[str]:
        """`NO_ANSWER` if it may be predicted, else nothing."""
        allowed = self.settings.no_answer
        if allowed == "auto":
            allowed = any(self.reference(record) == [] for record in records)
        return [NO_ANSWER] if allowed else []

    def limits(self) -> ptkit.HeadLimits:
        return ptkit.HeadLimits("max_tokens")

    # -------------------------------------------------------------------------------- rows

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """A row a window: the question and a piece of the context.

        ``labels``: the first and the last token of the answer, counted from 1 in the window's
        context; 0 and 0 if the window doesn't hold all of the first answer. ``places``: the token
        of the row at which the context begins, the token of the context that it begins with, and
        how many it has.

        Example (start id 2, no token between the texts): question 5, context 7 8 9 with the answer
        8 9, ``max_tokens = 4`` and ``max_answer_tokens = 2``, so that windows begin 1 apart::

            tokens (2, 5, 7, 8)   labels (0, 0)   places (2, 0, 2)
            tokens (2, 5, 8, 9)   labels (1, 2)   places (2, 1, 2)

        An answer that is longer than ``max_answer_tokens`` and whole in no window is not trained
        on; its tokens are counted as cut.
        """
        return self.encode_batch([record], tokenizer)[0]

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        """Questions go through the tokenizer at once, and a context of several records once."""
        given = [record for record in records if isinstance(record, ptkit.ExtractionRecord)]
        assert len(given) == len(records)
        questions = tokenizer.encode_batch([record.question for record in given])
        contexts = {text: tokenizer.offsets(text) for text in {r.context for r in given}}
        return [
            self._rows(record, question, contexts[record.context], tokenizer)
            for record, question in zip(given, questions, strict=True)
        ]

    def _rows(
        self,
        record: ptkit.ExtractionRecord,
        question: Sequence[int],
        context: Spans,
        tokenizer: ptkit.Tokenizer,
    ) -> list[ptkit.Row]:
        settings = self.settings
        asked = question[: settings.max_question_tokens]
        around = len(tokenizer.join(asked, ()).tokens)
        room = settings.max_tokens - around
        if room < 1:
            raise ptkit.RecipeError(
                f"{record.origin}: task.max_tokens = {settings.max_tokens} leaves no room for a "
                f"context: the question and the specials take {around}; raise it, or lower "
                "task.max_question_tokens"
            )
        ids, spans = context
        answer = None
        here = [answer for answer in record.answers or () if answer.start >= 0]
        if here:
            answer = answer_tokens(here[0], spans)
        windows = token_windows(len(ids), room, settings.stride, settings.max_answer_tokens)
        targets = [() if record.answers is None else _target(answer, window) for window in windows]
        lost = 0
        if record.answers and not any(target != (0, 0) for target in targets):
            lost = 0 if answer is None else len(answer)
            targets = [() for _ in windows]  # "not here" would be wrong
        rows = []
        for part, (window, target) in enumerate(zip(windows, targets, strict=True)):
            joined = tokenizer.join(asked, ids[window.start : window.stop])
            rows.append(
                ptkit.Row(
                    joined.tokens,
                    target,
                    joined.token_types,
                    cut=0 if part else len(question) - len(asked) + lost,
                    cut_targets=0 if part else lost,
                    places=(joined.second, window.start, len(window)),
                )
            )
        return rows

    # -------------------------------------------------------------------------------- states

    def build(self, info: ptkit.HeadInfo) -> nn.Module:
        """Four scores a token: first, last, and the same two of "not here"."""
        return linear(info.hidden_size, 4, info.seed)

    def _pointers(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> Tensor:
        """[b, 2, 1 + c] log-probabilities of the first and the last token, in the module's type.

        Index 0 is "not here", index i the window's i-th context token; -inf behind its last.
        """
        import torch

        assert module is not None
        dtype = next(module.parameters()).dtype
        counts = ptkit.to_device([row.places[2] for row in rows], states.device)
        none = module((states.last if states.causal else states.first).to(dtype))[:, 2:]  # [b, 2]
        index = torch.arange(max(row.places[2] for row in rows), device=states.device)
        within = index < counts[:, None]  # [b, c]
        context = [range(row.places[0], row.places[0] + row.places[2]) for row in rows]
        found = module(states.at(context).to(dtype))[:, :2]  # [n, 2]
        pointers = found.new_full((2, *within.shape), float("-inf"))
        pointers = pointers.masked_scatter(within, found.T).transpose(0, 1)
        return torch.cat([none[..., None], pointers], -1).log_softmax(-1)

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per row, the mean of both pointers' cross-entropies in nats, and 1; 0 if unknown."""

        pointers = self._pointers(module, states, rows)
        known = ptkit.to_device([bool(row.labels) for row in rows], states.device)
        targets = ptkit.to_device([row.labels or (0, 0) for row in rows], states.device)
        found = pointers.gather(2, targets[..., None])[..., 0]  # [b, 2]
        return ptkit.Loss(-found.mean(1).where(known, 0.0), known.to(found.dtype))

    def outputs(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> list[tuple[float, list[tuple[float, int, int]]]]:
        """For each row the score of "not here" and its best spans, best first.

        A span is a score and its first and last token, counted from 0 in the window's context.
        """
        import torch

        pointers = self._pointers(module, states, rows).detach()
        none = pointers[..., 0].sum(1).tolist()
        first, last = pointers[..., 1:].unbind(1)  # [b, c]
        b, c = first.shape
        if c == 0:
            return [(score, []) for score in none]
        m = min(self.settings.max_answer_tokens, c)
        last = torch.cat([last, last.new_full((b, m - 1), float("-inf"))], 1)
        totals = (first[..., None] + last.unfold(1, m, 1)).flatten(1)  # [b, c x m]
        best = totals.topk(min(self.settings.n_best, c * m))
        found = []
        for score, values, places in zip(
            none, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            pairs = zip(values, places, strict=True)
            found.append((score, [(v, i // m, i // m + i % m) for v, i in pairs if isfinite(v)]))
        return found

    # -------------------------------------------------------------------------------- predictions

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> Extraction:
        """The best span of all windows, or none, as SQuAD 2's `run_squad.py` decides it.

        A span counts as its best window has it. There is no answer if the window that is least sure
        of "not here" is still surer of it than the best span, by ``no_answer_threshold``. Scores
        are log-probabilities of the window, where `run_squad.py` has logits, which two windows
        can't be compared by; for one window they decide the same.
        """
        assert isinstance(record, ptkit.ExtractionRecord)
        _, spans = tokenizer.offsets(record.context)
        scores: dict[tuple[int, int], float] = {}
        for row, (_, found) in zip(rows, outputs, strict=True):
            for score, first, last in found:
                at = characters(record.context, spans, row.places[1] + first, row.places[1] + last)
                if at is not None:
                    scores[at] = max(score, scores.get(at, score))
        ordered = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
        candidates = [
            Candidate(text=record.context[start:end], start=start, score=score)
            for (start, end), score in ordered
        ]
        none = Candidate(text="", start=-1, score=min(score for score, _ in outputs))
        threshold = self.settings.no_answer_threshold
        chosen = candidates[0] if candidates else none
        if NO_ANSWER in self.labels:
            if none["score"] - chosen["score"] > threshold:
                chosen = none
            candidates = sorted([*candidates, none], key=lambda found: -found["score"])
        return Extraction(**chosen, n_best=candidates[: self.settings.n_best])

    def reference(self, record: ptkit.Record) -> list[str] | None:
        """The texts of all answers; none at all if the question has none."""
        assert isinstance(record, ptkit.ExtractionRecord)
        return None if record.answers is None else [answer.text for answer in record.answers]

    def constants(self, records: Sequence[ptkit.Record], *, seed: int) -> Sequence[Extraction]:
        """No answer, and the most frequent one."""
        given = (references[0] for record in records if (references := self.reference(record)))
        texts = ["", *(text for text, _ in Counter(given).most_common(1))]
        return [Extraction(text=text, start=-1, score=0.0, n_best=[]) for text in texts]


def _target(answer: range | None, window: range) -> tuple[int, ...]:
    if answer and window.start <= answer.start and answer.stop <= window.stop:
        return answer.start - window.start + 1, answer.stop - window.start
    return 0, 0


def answer_tokens(answer: ptkit.Answer, spans: Sequence[tuple[int, int]]) -> range | None:
    """The fewest tokens that cover the characters of an answer; None if no token has any of them.

    ``spans``: the half-open characters of each token, in order. Several may share a character.

    >>> answer_tokens(ptkit.Answer("bc d", 1), [(0, 1), (1, 3), (4, 6), (6, 7)])
    range(1, 3)
    """
    end = answer.start + len(answer.text)
    inside = [i for i, (first, behind) in enumerate(spans) if first < end and behind > answer.start]
    return range(inside[0], inside[-1] + 1) if inside else None


def characters(
    context: str, spans: Sequence[tuple[int, int]], first: int, last: int
) -> tuple[int, int] | None:
    """The half-open characters of tokens ``first`` to ``last``, without white space around them.

    Tokens of some tokenizers have the blank before them. None if nothing else is there.
    """
    start, end = spans[first][0], spans[last][1]
    text = context[start:end]
    start += len(text) - len(text.lstrip())
    end = start + len(text.strip())
    return (start, end) if start < end else None
