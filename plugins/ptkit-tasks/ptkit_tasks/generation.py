"""The head ``generation``: learn to answer a prompt, through the backbone's own LM head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

import ptkit

if TYPE_CHECKING:
    from torch import nn


class SamplingSettings(ptkit.Settings):
    """How answers are decoded; greedy unless a temperature is set."""

    temperature: float = Field(0.0, ge=0)
    """0 takes the best token; above, tokens are drawn from the distribution divided by it."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the smallest set of tokens whose probabilities add up to this."""
    top_k: int = Field(0, ge=0)
    """Draw from the so many best tokens; 0: all."""
    seed: int = 0
    max_new_tokens: int | None = Field(None, ge=1)
    """Where an answer ends if eos doesn't come; default: max_target_tokens."""


class Generation(ptkit.TaskHead):
    """Prompt in, text out: the loss is on the answer and the eos behind it, the prompt is only
    read."""

    name = "generation"
    accepts = ptkit.GenerationRecord
    predicts = "text"
    needs_lm_head = True

    class Settings(ptkit.Settings):
        max_source_tokens: int = Field(256, ge=1)
        """Longest prompt, specials and template included; a longer one is cut."""
        max_target_tokens: int = Field(256, ge=1)
        """Longest answer, eos not included; a longer one is cut."""
        truncation: Literal["query", "published"] = "query"
        """Where a prompt is cut: inside the query, keeping the template, or its tail, as
        published."""
        train_on: Literal["answer", "all-answers"] = "answer"
        """Which answers the loss is on: the last one, as published, or those of the history too."""
        sampling: SamplingSettings = SamplingSettings()

    settings: Settings

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        """One row: prompt, answer, eos; the labels are the answer and eos.

        Example (start ids 8 9, prompt 5 6, answer 7, eos 2)::

            tokens (8, 9, 5, 6, 7, 2)   labels (-100, -100, -100, -100, 7, 2)

        With ``train_on = "all-answers"`` the tokens are the same, and the answers of the history
        are labels too: the tokens wholly inside an answer, neither what the template puts behind it
        nor an eos, which is behind the last one only (5 asks, 6 answers, 3 asks)::

            tokens (8, 9, 5, 6, 3, 7, 2)   labels (-100, -100, -100, 6, -100, 7, 2)
        """
        return self.encode_batch([record], tokenizer)[0]

    def encode_batch(
        self, records: Sequence[ptkit.Record], tokenizer: ptkit.Tokenizer
    ) -> list[list[ptkit.Row]]:
        """All prompts, then all answers, go through the tokenizer at once."""
        given = [record for record in records if isinstance(record, ptkit.GenerationRecord)]
        assert len(given) == len(records)
        prompts = tokenizer.encode_prompts([tokenizer.prompt(r.prompt, r.history) for r in given])
        answers = iter(
            tokenizer.encode_batch([r.response for r in given if r.response is not None])
        )
        return [
            [
                self._row(
                    record,
                    prompt,
                    None if record.response is None else next(answers),
                    tokenizer,
                )
            ]
            for record, prompt in zip(given, prompts, strict=True)
        ]

    def _row(
        self,
        record: ptkit.GenerationRecord,
        whole: list[int],
        answer: list[int] | None,
        tokenizer: ptkit.Tokenizer,
    ) -> ptkit.Row:
        """``whole``: the ids of the prompt, however long."""
        prompt, history = self._fitting(record, whole, tokenizer)
        cut = len(whole) - len(prompt)
        if answer is None:
            return ptkit.Row(tuple(prompt), (ptkit.IGNORE,) * len(prompt), cut=cut)
        left_out = max(0, len(answer) - self.settings.max_target_tokens)
        answer = [*answer[: self.settings.max_target_tokens], tokenizer.eos_id]
        labels = self._past_labels(prompt, record.prompt, history, tokenizer)
        targets_cut = left_out
        if cut:
            every = self._past_labels(whole, record.prompt, record.history, tokenizer)
            targets_cut += _trained(every) - _trained(labels)
        return ptkit.Row(
            (*prompt, *answer), (*labels, *answer), cut=cut + left_out, cut_targets=targets_cut
        )

    def _past_labels(
        self,
        prompt: list[int],
        query: str,
        history: Sequence[tuple[str, str]],
        tokenizer: ptkit.Tokenizer,
    ) -> list[int]:
        """A label a token of ``prompt``: the answers of the history, if they are trained on.

        ``prompt`` may be the beginning of the prompt only. Its last token has no label, so that the
        last run of labels in a row is its own answer.
        """
        labels = [ptkit.IGNORE] * len(prompt)
        if self.settings.train_on == "answer" or not history:
            return labels
        parts = tokenizer.prompt(query, history)
        ids, spans = tokenizer.prompt_offsets(parts)
        if ids[: len(prompt)] != prompt:
            raise ptkit.RecipeError(
                'task.train_on = "all-answers" needs a tokenizer whose prompt_offsets() gives the '
                f"ids of encode_prompts(); {type(tokenizer).__name__}'s doesn't"
            )
        answers = iter(_past_answers(query, history, tokenizer))
        start, stop = next(answers)
        for position, (first, behind) in enumerate(spans[: len(prompt) - 1]):
            while first >= stop:
                start, stop = next(answers, (len(parts.text), len(parts.text) + 1))
            if position and 0 < start <= first and behind <= stop:
                labels[position] = prompt[position]
        return labels

    def limits(self) -> ptkit.HeadLimits:
        answer = self.settings.sampling.max_new_tokens or self.settings.max_target_tokens
        return ptkit.HeadLimits("max_source_tokens", "max_target_tokens", answer)

    def _fitting(
        self, record: ptkit.GenerationRecord, whole: list[int], tokenizer: ptkit.Tokenizer
    ) -> tuple[list[int], Sequence[tuple[str, str]]]:
        """The ids of the prompt, which are ``whole``, within its limit; the turns left in it."""
        limit = self.settings.max_source_tokens

        def ids(parts: ptkit.PromptParts, kept: int) -> list[int]:
            return tokenizer.encode_prompts([replace(parts, query=parts.query[:kept])])[0]

        if len(whole) <= limit:
            return whole, record.history
        if self.settings.truncation == "published":
            return whole[:limit], record.history
        fitting, history = whole, record.history
        parts = tokenizer.prompt(record.prompt, history)
        while history and len(fitting) > limit:  # the oldest turns go first
            history = history[1:]
            parts = tokenizer.prompt(record.prompt, history)
            fitting = ids(parts, len(parts.query))
        low, high = 0, len(parts.query)
        if len(fitting) > limit:
            fitting = ids(parts, 0)
            if len(fitting) > limit:
                raise ptkit.RecipeError(
                    f"task.max_source_tokens = {limit} leaves no room for a query: "
                    f"the prompt template alone has {len(fitting)} tokens"
                )
            while low < high:  # the longest beginning of the query that fits
                middle = (low + high + 1) // 2
                tried = ids(parts, middle)
                if len(tried) <= limit:
                    low, fitting = middle, tried
                else:
                    high = middle - 1
        return fitting, history

    def loss(
        self, module: nn.Module | None, states: ptkit.States, rows: Sequence[ptkit.EncodedRow]
    ) -> ptkit.Loss:
        """Per row, the summed negative log-likelihood of its labels in nats, and their number."""
        import torch

        losses, owners = states.token_loss([row.labels for row in rows])
        zeros = losses.new_zeros(len(rows))
        sums = zeros.index_add(0, owners, losses)
        counts = zeros.index_add(0, owners, torch.ones_like(losses))
        return ptkit.Loss(sums, counts)

    def predict(
        self, model: ptkit.Model, module: nn.Module | None, rows: Sequence[ptkit.EncodedRow]
    ) -> list[list[int]]:
        """The generated ids of each row."""
        sampling = self.settings.sampling
        prompts = [row.tokens[: _answer_start(row.labels)] for row in rows]
        return model.generate(
            prompts,
            ptkit.Sampling(
                max_new_tokens=sampling.max_new_tokens or self.settings.max_target_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=sampling.seed,
            ),
            keys=[row.record for row in rows],
        )

    def decode(
        self,
        record: ptkit.Record,
        rows: Sequence[ptkit.Row],
        outputs: Sequence[Any],
        tokenizer: ptkit.Tokenizer,
    ) -> str:
        return tokenizer.decode(outputs[0]).strip()

    def reference(self, record: ptkit.Record) -> str | None:
        assert isinstance(record, ptkit.GenerationRecord)
        return record.response

    def constants(self, records: Sequence[ptkit.Record], *, seed: int) -> list[str]:
        """The eight training answers that share most with the others.

        Of up to 400 answers picked by ``seed``, those with the highest mean Dice overlap of their
        characters and character pairs with all of them.
        """
        import numpy as np

        answers = sorted({a for record in records if (a := self.reference(record)) is not None})
        chosen = np.random.default_rng(seed).permutation(len(answers))[:400]
        texts = [answers[i] for i in chosen]
        if not texts:
            return []
        grams = [{*text, *map("".join, pairwise(text))} for text in texts]
        place = {gram: i for i, gram in enumerate(sorted(set().union(*grams)))}
        held = np.zeros((len(texts), len(place)), dtype=np.float32)
        for line, found in enumerate(grams):
            held[line, [place[gram] for gram in found]] = 1
        sizes = held.sum(1)
        overlap = (2 * held @ held.T / (sizes[:, None] + sizes[None])).mean(1)
        best = np.argsort(-overlap, kind="stable")[:8]
        return [texts[i] for i in best]


def _trained(labels: Sequence[int]) -> int:
    return len(labels) - labels.count(ptkit.IGNORE)


def _answer_start(labels: Sequence[int]) -> int:
    """Where the last run of labels begins, which is the row's own answer."""
    start = len(labels)
    while start and labels[start - 1] != ptkit.IGNORE:
        start -= 1
    return start


def _past_answers(
    query: str, history: Sequence[tuple[str, str]], tokenizer: ptkit.Tokenizer
) -> Iterator[tuple[int, int]]:
    """Where the answers of the history stand in the prompt's text, as half-open spans.

    An answer stands where it would be written: behind the prompt of its own turn. White space may
    come between.
    """
    text = tokenizer.prompt(query, history).text
    for turn, (asked, answered) in enumerate(history):
        before = tokenizer.prompt(asked, history[:turn]).text
        start = text.find(answered, len(before))
        if not text.startswith(before) or start < 0 or text[len(before) : start].strip():
            raise ptkit.RecipeError(
                'task.train_on = "all-answers" needs a prompt template in which an earlier answer '
                f"stands behind its own prompt; that of {type(tokenizer).__name__} has none"
            )
        yield start, start + len(answered)
