"""The plain way to decode, which the engine's is compared with: padded batches and transformers'
growing cache, a look at every token, and no row takes another's place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from ptkit.engine.attention import NO_PREFIX, PaddedRows
from ptkit.engine.decoding import choose
from ptkit.engine.generate import generator
from ptkit.engine.model import Model
from ptkit.records import Sampling


class Plain:
    """Rows that are left-padded to the longest, and never leave.

    ``logits``: [b, v] in float32, behind the last token of each.
    """

    def __init__(
        self, model: Model, prompts: Sequence[Sequence[int]], prefixes: Sequence[int] | None = None
    ) -> None:
        self.model = model
        if prefixes is None:
            prefixes = [NO_PREFIX if model.prefix is None else 0] * len(prompts)
        self.prefixes = prefixes
        self.cache = DynamicCache()
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        self.real = torch.arange(longest) >= longest - lengths[:, None]  # [b, k]
        ids = torch.tensor([[model.pad_id] * (longest - len(p)) + list(p) for p in prompts])
        self._forward(ids, (torch.arange(longest) - (longest - lengths[:, None])).clamp_min(0))
        self.next = lengths  # positions of the tokens to come

    @torch.no_grad()
    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        model = self.model
        hidden = model.body(
            input_ids=ids.to(model.device),
            position_ids=(positions + model.first_position).to(model.device),
            past_key_values=self.cache,
            use_cache=True,
            ptkit_layout=PaddedRows(self.real, self.prefixes, causal=True),
        ).last_hidden_state[:, -1]
        assert model.lm_head is not None
        self.logits: Tensor = model.lm_head(hidden).float()

    def feed(self, tokens: Tensor) -> None:
        self.real = torch.cat((self.real, torch.ones(len(tokens), 1, dtype=torch.bool)), dim=1)
        self._forward(tokens[:, None], self.next[:, None])
        self.next = self.next + 1


def simple(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    prefix_of_row: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """What `ptkit.engine.generate.generate` returns, by way of `Plain`."""
    plain = Plain(model, prompts, prefix_of_row)
    draws = [generator(sampling.seed, key) for key in range(len(prompts))]
    columns = []
    for step in range(sampling.max_new_tokens):
        drawn = None
        if sampling.temperature:
            drawn = torch.stack([torch.rand(1, generator=draw) for draw in draws])
            drawn = drawn.to(model.device)
        columns.append(choose(plain.logits, sampling, drawn))
        if step + 1 < sampling.max_new_tokens:
            plain.feed(columns[-1])
    answers: list[list[int]] = []
    for index, answer in enumerate(torch.stack(columns, dim=1).tolist()):
        ends = [answer.index(stop) for stop in (model.eos_id, *model.stop_ids) if stop in answer]
        limit = sampling.max_new_tokens if limits is None else limits[index]
        answers.append(answer[: min([limit, *ends])])
    return answers
