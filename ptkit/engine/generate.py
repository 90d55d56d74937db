"""Batched decoding with a cache: prompts sorted by length, finished rows leave their batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from ptkit.engine.attention import NO_PREFIX, PaddedRows
from ptkit.records import Sampling

if TYPE_CHECKING:
    from ptkit.engine.model import Model


def batches(lengths: Sequence[int], new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts to decode together: longest first, rows x (longest + new) within the
    budget."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        widest = lengths[batch[0] if batch else index] + new_tokens
        if batch and (len(batch) + 1) * widest > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_tokens: int,
    keys: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The continuation of each prompt up to eos (left out) or ``max_new_tokens``, in the prompts'
    order.

    Greedy and sampled draws of a row depend on the row alone, not on its batch, up to float
    rounding.
    ``keys``: what tells rows' draws apart besides the seed; default: their index in ``prompts``.
    ``batch_tokens`` bounds rows x (prompt + new tokens) of a batch; ``progress`` is called with the
    number of rows that were finished since the last call.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    answers: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    keys = range(len(prompts)) if keys is None else keys
    for batch in batches(lengths, sampling.max_new_tokens, batch_tokens):
        for index, answer in zip(
            batch,
            _decode(
                model, [prompts[i] for i in batch], [keys[i] for i in batch], sampling, progress
            ),
            strict=True,
        ):
            answers[index] = answer
    return answers


def _decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    keys: Sequence[int],
    sampling: Sampling,
    progress: Callable[[int], None] | None,
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    running = len(prompts)
    for tokens in _steps(model, prompts, keys, sampling):
        for index, token in tokens.items():
            answers[index].append(token)
            if model.watcher is not None:
                model.watcher(keys[index], token)
        if progress is not None and len(tokens) < running:
            progress(running - len(tokens))
        running = len(tokens)
    if progress is not None and running:
        progress(running)
    return answers


def _steps(
    model: Model, prompts: Sequence[Sequence[int]], keys: Sequence[int], sampling: Sampling
) -> Iterator[dict[int, int]]:
    """A dict a step: the new token of every prompt, by its index, that has not come to its end."""
    device, longest = model.device, max(len(prompt) for prompt in prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    draws = [_generator(sampling.seed, key) for key in keys] if sampling.temperature else []
    prefix_index = NO_PREFIX if model.prefix is None else 0

    real = torch.arange(longest) >= longest - lengths[:, None]  # [b, k], left-padded
    ids = torch.tensor([[model.pad_id] * (longest - len(p)) + list(p) for p in prompts])
    positions = (torch.arange(longest) - (longest - lengths[:, None])).clamp_min(0)
    cache = DynamicCache()
    stops = {model.eos_id, *model.stop_ids}
    alive = list(range(len(prompts)))  # the row of each line that is still in the batch
    for _ in range(sampling.max_new_tokens):
        layout = PaddedRows(real, [prefix_index] * len(alive), causal=True)
        hidden = model.body(
            input_ids=ids.to(device),
            position_ids=(positions + model.first_position).to(device),
            past_key_values=cache,
            use_cache=True,
            ptkit_layout=layout,
        ).last_hidden_state[:, -1]
        assert model.lm_head is not None
        drawn = [draws[i] for i in alive] if draws else []
        tokens = pick(model.lm_head(hidden).float(), sampling, drawn).tolist()
        running = [line for line, token in enumerate(tokens) if token not in stops]
        yield {alive[line]: tokens[line] for line in running}
        if not running:
            return
        if len(running) < len(alive):
            keep = torch.tensor(running)
            cache.batch_select_indices(keep.to(device))
            real, positions = real[keep], positions[keep]
            alive = [alive[line] for line in running]
        ids = torch.tensor([[tokens[line]] for line in running])
        positions = positions[:, -1:] + 1
        real = torch.cat((real, torch.ones(len(alive), 1, dtype=torch.bool)), dim=1)


def _generator(seed: int, key: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def pick(logits: Tensor, sampling: Sampling, draws: Sequence[torch.Generator]) -> Tensor:
    """The next token [b] for logits [b, v]: the best one, or one drawn with each row's own
    generator."""
    if not sampling.temperature:
        return logits.argmax(-1)
    scores, order = (logits / sampling.temperature).sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        scores[:, sampling.top_k :] = float("-inf")
    probabilities = scores.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    reached = probabilities.cumsum(-1)
    drawn = torch.stack([torch.rand(1, generator=g) for g in draws]).to(logits.device)  # [b, 1]
    place = (reached <= drawn * reached[:, -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)
    chosen: Tensor = order.gather(-1, place[:, None])[:, 0]
    return chosen
