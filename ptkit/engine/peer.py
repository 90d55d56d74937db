"""The same work by PEFT: prefix tuning of the same frozen weights, as a user of it would write it.

Rows are padded to the longest of their batch, every row has its own copy of the prefix, and the
loss of a language model is that of ``labels=``, with logits at every token. The prefix starts from
the same numbers, its keys moved to where PEFT has them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ptkit.components import TaskHead
from ptkit.engine.frozen import QuantizedLinear
from ptkit.engine.measuring import release_memory
from ptkit.engine.model import pick_dtype
from ptkit.engine.peft import moved_keys
from ptkit.engine.states import States
from ptkit.errors import CheckpointError, PtkitError
from ptkit.models import Backbone, LoadedBackbone
from ptkit.recipe import TrainSettings
from ptkit.records import IGNORE, EncodedRow
from ptkit.rowstore import RowStore

ANSWERED_AT_ONCE = 256  # prompts
Groups = Sequence[Sequence[int]]


class PeerError(PtkitError):
    """What PEFT can't do with this model or this memory; a line that begins with "PEFT"."""


def check_installed() -> None:
    """Raise `PtkitError` if there is no PEFT to compare with."""
    if find_spec("peft") is None:
        raise PtkitError(
            "--against peft: the package peft is not installed; install it (pip install peft), or "
            "leave the option out"
        )


class Peer:
    """A model with PEFT's prefix, on ``device``; ``flat`` [p, 2·l·g·d] is ptkit's prefix.

    ``rows_at_once``: how many of a step's rows go through the model together; it is halved when
    memory runs out, and then stays so.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: TaskHead,
        module: nn.Module | None,
        flat: Tensor,
        settings: TrainSettings,
        device: str,
        rows_at_once: int | None = None,
    ) -> None:
        import peft

        self.backbone, self.head, self.module = backbone, head, module
        self.device, self.settings, self.rows_at_once = device, settings, rows_at_once
        self.answered_at_once = ANSWERED_AT_ONCE
        self.pad_id = backbone.tokenizer.pad_id
        self.loaded = backbone.load(device, pick_dtype(backbone.settings.dtype, device))
        base: Any = self.loaded.body
        if head.needs_lm_head:
            base = whole_model(self.loaded)
        base.requires_grad_(False)
        shape = backbone.geometry
        width = shape.kv_groups * shape.head_size
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM" if head.needs_lm_head else "FEATURE_EXTRACTION",
            num_virtual_tokens=len(flat),
            num_layers=shape.layers,
            token_dim=width,
            num_attention_heads=shape.kv_groups,
            encoder_hidden_size=width,
        )
        try:
            with warnings.catch_warnings():  # about names of transformers that PEFT still uses
                warnings.simplefilter("ignore", FutureWarning)
                self.model: Any = peft.get_peft_model(base, config)
            self.model.to(device)  # its prefix is made on the CPU
            self._start_from(flat)
            self._try()
        except (AttributeError, IndexError, KeyError, NotImplementedError, TypeError) as error:
            raise _cannot(base, error) from error
        except (ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise _cannot(base, error) from error
        trained = [p for p in self.model.parameters() if p.requires_grad]
        trained += [] if module is None else list(module.parameters())
        self.trained = trained
        self.first_values = [p.detach().clone() for p in trained]
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    @torch.no_grad()
    def _start_from(self, flat: Tensor) -> None:
        """PEFT's real tokens begin at position p; keys that can't be moved there stay."""
        self.same_prefix = True
        try:
            moved = moved_keys(flat.float().cpu(), self.backbone, by=len(flat))
        except CheckpointError:
            moved, self.same_prefix = flat.float().cpu(), False
        prompt = self.model.prompt_encoder["default"].embedding.weight
        prompt.copy_(moved)

    def _try(self) -> None:
        """One short row, so that what can't be done is known before anything is measured."""
        ids = torch.tensor([[self.pad_id, self.pad_id + 1]], device=self.device)
        with torch.no_grad():
            self.model(input_ids=ids, attention_mask=torch.ones_like(ids))

    # ---------------------------------------------------------------------------------- training

    def step(self, store: RowStore, groups: Groups) -> float:
        """One optimiser step on the rows of ``groups``; the loss, each token counting the same.

        Raises `torch.OutOfMemoryError` once ``rows_at_once`` is 1.
        """
        self.model.train()
        if self.module is not None:
            self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = sum(self.weight([store[i] for i in group]) for group in groups)
        loss = torch.zeros((), device=self.device)
        for rows in self._batches(store, groups):
            part = self._sum(rows) / total
            part.backward()
            loss += part.detach()
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, self.settings.clip_norm)
        self.optimizer.step()
        return float(loss)

    @torch.no_grad()
    def reset(self) -> None:
        """What trains is again as it was before the first step."""
        for parameter, value in zip(self.trained, self.first_values, strict=True):
            parameter.copy_(value)

    def halve(self, groups: int) -> bool:
        """Let fewer rows go through the model at once; False if it is one already."""
        now = min(self.rows_at_once or groups, groups)
        if now == 1:
            return False
        self.rows_at_once = now // 2
        release_memory()
        return True

    @torch.no_grad()
    def loss(self, store: RowStore, groups: Groups) -> float:
        """The loss of ``groups`` without dropout, each token counting the same."""
        self.model.eval()
        if self.module is not None:
            self.module.eval()
        total = sum(self.weight([store[i] for i in group]) for group in groups)
        return sum(float(self._sum(rows)) for rows in self._batches(store, groups)) / total

    def _batches(self, store: RowStore, groups: Groups) -> list[list[EncodedRow]]:
        size = self.rows_at_once or len(groups)
        return [
            [store[i] for group in groups[start : start + size] for i in group]
            for start in range(0, len(groups), size)
        ]

    def weight(self, rows: Sequence[EncodedRow]) -> float:
        """What the loss of ``rows`` is divided by: their targets, or 1 for a head of its own."""
        if not self.head.needs_lm_head:
            return 1.0
        return float(sum(len(row.labels) - row.labels.count(IGNORE) for row in rows))

    def _sum(self, rows: Sequence[EncodedRow]) -> Tensor:
        """The summed loss of ``rows``, padded."""
        longest = max(len(row.tokens) for row in rows)
        ids = self._padded([row.tokens for row in rows], longest, self.pad_id)
        mask = self._padded([(1,) * len(row.tokens) for row in rows], longest, 0)
        if self.head.needs_lm_head:
            labels = self._padded([row.labels for row in rows], longest, IGNORE)
            made = self.model(input_ids=ids, attention_mask=mask, labels=labels)
            mean: Tensor = made.loss
            return mean.float() * self.weight(rows)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        lengths = [len(row.tokens) for row in rows]
        causal = self.backbone.geometry.causal
        states = States(hidden[mask.bool()], lengths, None, causal=causal)
        found = self.head.loss(self.module, states, rows)
        return (found.sums / found.weights.clamp_min(1e-9)).sum()

    def _padded(self, rows: Sequence[Sequence[int]], longest: int, fill: int) -> Tensor:
        lines = [[*row, *[fill] * (longest - len(row))] for row in rows]
        return torch.tensor(lines, device=self.device)

    # ---------------------------------------------------------------------------------- answers

    @torch.no_grad()
    def answer(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[list[int]]:
        """Greedy tokens for each prompt, in order, as many as ``lengths`` says; eos ends none.

        Prompts of like length go together, `ANSWERED_AT_ONCE` or as many as memory allows; a batch
        goes on until its longest answer is complete, and what is beyond an answer is cut off.
        """
        from transformers import GenerationConfig

        self.model.eval()
        for holder in (self.model, self.model.base_model):  # None would mean "as they say"
            holder.generation_config.eos_token_id = None
        answers: list[list[int]] = [[] for _ in prompts]
        left = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while left:
            batch = left[: self.answered_at_once]
            longest = max(len(prompts[i]) for i in batch)
            pads = [longest - len(prompts[i]) for i in batch]
            lines = [[self.pad_id] * n + [*prompts[i]] for n, i in zip(pads, batch, strict=True)]
            mask = [[0] * n + [1] * (longest - n) for n in pads]
            config = GenerationConfig(
                max_new_tokens=max(lengths[i] for i in batch),
                do_sample=False,
                pad_token_id=self.pad_id,
            )
            try:
                made = self.model.generate(
                    input_ids=torch.tensor(lines, device=self.device),
                    attention_mask=torch.tensor(mask, device=self.device),
                    generation_config=config,
                )
            except torch.OutOfMemoryError:
                if self.answered_at_once == 1:
                    raise
                made = None
            if made is None:  # outside the handler, which keeps the tensors of the failure
                self.answered_at_once = max(1, len(batch) // 2)
                release_memory()
                continue
            for i, ids in zip(batch, made[:, longest:].tolist(), strict=True):
                answers[i] = ids[: lengths[i]]
            left = left[len(batch) :]
        return answers


def whole_model(loaded: LoadedBackbone) -> Any:
    """transformers' causal language model around a loaded body and its LM head; no weight is
    copied. Raises `PeerError` if they don't make one."""
    from transformers import AutoModelForCausalLM

    body: Any = loaded.body
    name = type(body).__name__
    try:
        with torch.device("meta"):
            whole: Any = AutoModelForCausalLM.from_config(body.config)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise PeerError(f"PEFT: not compared: no causal model of {name} ({reason})") from None
    if type(whole.base_model) is not type(body) or not isinstance(
        loaded.lm_head, nn.Linear | QuantizedLinear
    ):
        head = type(loaded.lm_head).__name__
        raise PeerError(
            f"PEFT: not compared: {type(whole).__name__} is not made of {name} and {head}"
        )
    setattr(whole, whole.base_model_prefix, body)
    whole.set_output_embeddings(loaded.lm_head)
    return whole.eval()


def _cannot(base: Any, error: Exception) -> PeerError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return PeerError(f"PEFT: not compared: it can't tune {type(base).__name__} ({reason})")
