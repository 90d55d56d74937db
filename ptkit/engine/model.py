"""A frozen backbone with a prefix: forward passes over rows, and generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ptkit.components import LoadedBackbone
from ptkit.engine.attention import (
    IMPLEMENTATION,
    NO_PREFIX,
    KeyValue,
    Layout,
    PackedRows,
    PaddedRows,
    RecordedRow,
    set_prefix,
)
from ptkit.engine.states import States
from ptkit.errors import PtkitError
from ptkit.records import EncodedRow, Geometry, Row, Sampling

BATCH_TOKENS = 16384  # rows x (tokens + new tokens) that are predicted together
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str) -> str:
    """``auto`` as the best device that is there. Raises `PtkitError` for a GPU that isn't."""
    available = torch.cuda.is_available()
    if device.startswith("cuda") and not available:
        raise PtkitError(
            "device 'cuda': torch sees no CUDA GPU here; use --device cpu, or a torch build with "
            "CUDA"
        )
    return ("cuda" if available else "cpu") if device == "auto" else device


def pick_dtype(dtype: str, device: str) -> str:
    """``auto`` as bfloat16 on a GPU and float32 on a CPU; anything else unchanged."""
    return ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype


class Model:
    """The frozen model as heads and the engine use it.

    ``layout``: "packed" lays rows into one sequence, "padded" one row a line; both give the same
    states.
    ``batch_tokens`` bounds rows x (tokens + new tokens) of a batch that is predicted.
    An answer ends at ``eos_id`` or one of ``stop_ids``.
    ``watcher``, if set, gets the key of a prompt and its new token as `generate` decodes.
    """

    batch_tokens: int = BATCH_TOKENS
    watcher: Callable[[int, int], None] | None = None

    def __init__(
        self,
        loaded: LoadedBackbone,
        geometry: Geometry,
        *,
        pad_id: int,
        eos_id: int,
        stop_ids: Sequence[int] = (),
        layout: Literal["packed", "padded"] = "packed",
    ) -> None:
        self.body = loaded.body
        self.attentions = loaded.attentions
        self.lm_head = loaded.lm_head
        self.first_position = loaded.first_position
        self.position_table = loaded.position_table
        self.geometry = geometry
        self.pad_id = pad_id
        self.eos_id = eos_id
        self.stop_ids = tuple(stop_ids)
        self.layout = layout
        self.body.set_attn_implementation(IMPLEMENTATION)
        for module in self.frozen_modules():
            module.eval().requires_grad_(False)
        self._checkpointed: list[torch.nn.Module] = []
        self.set_prefix(None)

    def frozen_modules(self) -> Iterator[torch.nn.Module]:
        yield self.body
        if self.lm_head is not None:
            yield self.lm_head

    @property
    def device(self) -> torch.device:
        return next(self.body.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.body.parameters()).dtype

    # ---------------------------------------------------------------------------------- prefix

    def set_prefix(self, prefix: Sequence[KeyValue] | None) -> None:
        """Use these keys and values, [a, g, p, d] a layer, from now on; None: the untouched
        model."""
        self.prefix = prefix
        cast = None
        if prefix is not None:
            cast = [(key.to(self.dtype), value.to(self.dtype)) for key, value in prefix]
        set_prefix(self.attentions, cast)

    @contextmanager
    def using(self, prefix: Sequence[KeyValue] | None) -> Iterator[None]:
        """Use another prefix, or none, inside a with block; a backward pass belongs inside it
        too."""
        before = self.prefix
        self.set_prefix(prefix)
        try:
            yield
        finally:
            self.set_prefix(before)

    def _prefix_of_rows(self, rows: int, chosen: Sequence[int] | None) -> Sequence[int]:
        if chosen is not None:
            return chosen
        return (NO_PREFIX if self.prefix is None else 0,) * rows

    @torch.no_grad()
    def keys_and_values(self, tokens: Sequence[int]) -> list[KeyValue]:
        """What the frozen model itself computes for ``tokens`` placed before position 0.

        With p tokens, the keys are those at positions −p…−1, [1, g, p, d] a layer: as a prefix they
        reproduce the logits of tokens + row exactly, because rotary attention sees distances only.
        A model with a table of positions has none before 0: there they are those of a row of its
        own, at 0…p−1.
        """
        layout = RecordedRow(len(tokens), causal=self.geometry.causal)
        first = self.first_position if self.position_table else -len(tokens)
        with self.using(None):
            ids = torch.tensor([list(tokens)], device=self.device)
            self.body(
                input_ids=ids,
                position_ids=torch.arange(first, first + len(tokens), device=self.device)[None],
                use_cache=False,
                ptkit_layout=layout,
            )
        return [(key.float(), value.float()) for key, value in layout.seen]

    # ---------------------------------------------------------------------------------- forward

    def enable_checkpointing(self) -> None:
        """Recompute a layer's activations in the backward pass instead of keeping them."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        body = self.body  # transformers renamed the method and warns about the old name
        new = getattr(body, "activation_checkpointing_enable", None)
        (new or body.gradient_checkpointing_enable)({"use_reentrant": False})
        if hasattr(self.body, "disable_input_require_grads"):
            self.body.disable_input_require_grads()
        self._checkpointed = [
            module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)
        ]

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """The layers' own training flag, which switches checkpointing on, during a forward pass
        with gradients.

        The modules inside them stay in eval mode. Without gradients it stays off: a layer that
        checkpoints drops its cache, and generation would go on without its past.
        """
        on = torch.is_grad_enabled()
        for module in self._checkpointed:
            module.training = on
        try:
            yield
        finally:
            for module in self._checkpointed:
                module.training = False

    def states(
        self, rows: Sequence[EncodedRow], prefix_of_row: Sequence[int] | None = None
    ) -> States:
        """The hidden states of ``rows``. ``prefix_of_row`` picks one of several prefixes a row, −1
        none."""
        tokens = [row.tokens for row in rows]
        types = None
        if any(row.row.token_types for row in rows):
            types = [row.row.token_types or (0,) * len(row.tokens) for row in rows]
        chosen = self._prefix_of_rows(len(rows), prefix_of_row)
        lengths = [len(row) for row in tokens]
        forward = self._packed if self.layout == "packed" else self._padded
        return States(
            forward(tokens, types, lengths, chosen),
            lengths,
            self.lm_head,
            causal=self.geometry.causal,
        )

    def _packed(
        self,
        tokens: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        lengths: Sequence[int],
        chosen: Sequence[int],
    ) -> Tensor:
        layout = PackedRows(lengths, chosen, causal=self.geometry.causal)
        ids = torch.tensor([[token for row in tokens for token in row]])
        positions = torch.cat([torch.arange(length) for length in lengths])[None]
        extra = {} if types is None else {"token_type_ids": [[t for row in types for t in row]]}
        return self._forward(ids, positions, layout, extra)[0]

    def _padded(
        self,
        tokens: Sequence[Sequence[int]],
        types: Sequence[Sequence[int]] | None,
        lengths: Sequence[int],
        chosen: Sequence[int],
    ) -> Tensor:
        longest = max(lengths)
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]  # [b, s]
        ids = torch.tensor([[*row, *[self.pad_id] * (longest - len(row))] for row in tokens])
        positions = torch.arange(longest).expand(len(tokens), -1)
        extra = {}
        if types is not None:
            extra["token_type_ids"] = [[*row, *[0] * (longest - len(row))] for row in types]
        layout = PaddedRows(real, chosen, causal=self.geometry.causal)
        return self._forward(ids, positions, layout, extra)[real.to(self.device)]

    def _forward(
        self, ids: Tensor, positions: Tensor, layout: Layout, extra: dict[str, Any]
    ) -> Tensor:
        more = {name: torch.tensor(value, device=self.device) for name, value in extra.items()}
        with self._recomputing():
            hidden: Tensor = self.body(
                input_ids=ids.to(self.device),
                position_ids=(positions + self.first_position).to(self.device),
                use_cache=False,
                ptkit_layout=layout,
                **more,
            ).last_hidden_state
        return hidden

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """[s, v]: the LM head's logits, in float32, at every token of one row."""
        if self.lm_head is None:
            raise ValueError("this backbone has no LM head, so no logits")
        logits: Tensor = self.lm_head(self.states([EncodedRow(Row(tuple(tokens)), 0)]).hidden)
        return logits.float()

    # ---------------------------------------------------------------------------------- generation

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        batch_tokens: int | None = None,
        keys: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """The continuation of each prompt, in order, without eos; see `ptkit.engine.generate`.

        ``batch_tokens``: the model's own if not given.
        """
        from ptkit.engine.generate import generate

        bound = self.batch_tokens if batch_tokens is None else batch_tokens
        return generate(self, prompts, sampling, batch_tokens=bound, keys=keys, progress=progress)
