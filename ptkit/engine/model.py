"""A frozen backbone with a prefix: forward passes over rows, and generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from ptkit.engine.attention import (
    IMPLEMENTATION,
    NO_PREFIX,
    KeyValue,
    Layout,
    PackedRows,
    PaddedRows,
    RecordedRow,
    by_layer,
    set_prefix,
)
from ptkit.engine.blocks import block_table, has_kernels
from ptkit.engine.feeding import Rows
from ptkit.engine.graphs import Graphs, Pack
from ptkit.engine.repeated import RepeatedLayers
from ptkit.engine.rowdropout import RowDropouts, step_keys
from ptkit.engine.states import States
from ptkit.engine.stem import Laid, spread
from ptkit.engine.transfer import to_device
from ptkit.errors import PtkitError
from ptkit.models import LoadedBackbone
from ptkit.records import EncodedRow, Geometry, Row, Sampling
from ptkit.sections import TrainSettings

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
    stem: tuple[int, ...] = ()
    """Tokens that rows begin with; where all rows of a pass do and have one prefix, the pass gets
    them once (`ptkit.engine.stem`)."""

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
        self._repeated = RepeatedLayers(self.body)
        self._graphs: Graphs | None = None
        self._dropouts: RowDropouts | None = None
        self._dropping: tuple[float, int, int] | None = None  # share, seed and step
        self.set_prefix(None)

    def frozen_modules(self) -> Iterator[torch.nn.Module]:
        yield self.body
        if self.lm_head is not None:
            yield self.lm_head

    @property
    def device(self) -> torch.device:
        return next(self.attentions[0].parameters()).device  # embeddings may be on the host

    @property
    def dtype(self) -> torch.dtype:
        return next(self.body.parameters()).dtype

    # ---------------------------------------------------------------------------------- prefix

    def set_prefix(self, prefix: Sequence[KeyValue] | Tensor | None) -> None:
        """Use these keys and values, [a, g, p, d] a layer, from now on; None: the untouched
        model.

        A tensor has them all, [2l, a, g, p, d], the keys of layer i at 2i and its values at 2i + 1.
        """
        self._stacked: Tensor | None = None
        if isinstance(prefix, Tensor):
            self._stacked = prefix.to(self.dtype)
            prefix = by_layer(self._stacked)
        self.prefix = prefix
        cast = None
        if prefix is not None:
            cast = [(key.to(self.dtype), value.to(self.dtype)) for key, value in prefix]
        set_prefix(self.attentions, cast)

    @contextmanager
    def using(self, prefix: Sequence[KeyValue] | Tensor | None) -> Iterator[None]:
        """Use another prefix, or none, inside a with block; a backward pass belongs inside it
        too."""
        before = self.prefix
        self.set_prefix(prefix)
        if self._graphs is not None:
            self._graphs.reset()
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

    # ---------------------------------------------------------------------------------- dropout

    def make_dropouts(self, share: float) -> RowDropouts | None:
        """The body's own dropouts, ready to drop ``share``; None if that is 0.

        Raises `PtkitError` for a model that has none.
        """
        if share == 0:
            return None
        if self._dropouts is None:
            self._dropouts = RowDropouts(self.body, self._repeated.layers, self.device)
        if not self._dropouts.modules:
            raise PtkitError(
                f"train.backbone_dropout = {share:g}: {type(self.body).__name__} has no dropout "
                "between its layers; remove the setting, or use prefix.dropout"
            )
        return self._dropouts

    @contextmanager
    def dropping(self, settings: TrainSettings, step: int) -> Iterator[None]:
        """Drop train.backbone_dropout of what goes through the body's dropouts inside a with block;
        a backward pass belongs inside it too, and before the next forward pass."""
        share = settings.backbone_dropout
        made = self.make_dropouts(share)
        if made is None:
            yield
            return
        self._dropping = share, settings.seed, step
        try:
            yield
        finally:
            self._dropping = None
            made.set_keys(None)

    def _keys(self, rows: Rows) -> Tensor | None:
        if self._dropping is None:
            return None
        _, seed, step = self._dropping
        return step_keys(rows.identities, seed, step)

    def _drop_by(self, keys: Tensor | None) -> None:
        """``keys``: [b, s], on the device."""
        if keys is not None and self._dropouts is not None and self._dropping is not None:
            self._dropouts.set_keys(keys, self._dropping[0])

    # ---------------------------------------------------------------------------------- forward

    def recompute_layers(self, count: int) -> None:
        """Keep only the input of the first ``count`` repeated layers, and compute them again in the
        backward pass; the memory of their activations is saved for their time."""
        self._repeated.recomputed = count

    def enable_checkpointing(self) -> None:
        """`recompute_layers` for all of them."""
        self.recompute_layers(len(self._repeated))

    def compile_layers(self, **options: Any) -> None:
        """Compile the repeated layers' forward and backward passes, when they next run."""
        self._repeated.compile(**options)

    def use_graphs(self) -> None:
        """Run packed rows with gradients through CUDA graphs from now on, which takes their launch
        off the host; the graphs keep the memory of one pass."""
        self._graphs = Graphs(self._pass_with)

    def drop_graphs(self) -> None:
        """Give back what `use_graphs` keeps."""
        self._graphs = None

    def states(
        self, rows: Sequence[EncodedRow], prefix_of_row: Sequence[int] | None = None
    ) -> States:
        """The hidden states of ``rows``. ``prefix_of_row`` picks one of several prefixes a row, −1
        none."""
        rows = Rows.of(rows)
        chosen = self._prefix_of_rows(len(rows), prefix_of_row)
        forward = self._packed if self.layout == "packed" else self._padded
        return States(
            forward(rows, chosen), rows.lengths, self.lm_head, causal=self.geometry.causal
        )

    def _packed(self, rows: Rows, chosen: Sequence[int]) -> Tensor:
        laid = rows.laid(self._stem_of(rows, chosen))
        if laid.places is None:
            return self._laid(laid, rows, chosen)
        states = self._laid(laid, rows, (chosen[0],) * len(laid.lengths))
        return spread(states, laid, to_device(laid.places, self.device))

    def _stem_of(self, rows: Rows, chosen: Sequence[int]) -> tuple[int, ...]:
        """What `stem` says, where it may count: not if rows differ besides their tokens."""
        if self.prefix is None or not self.geometry.causal or NO_PREFIX in chosen:
            return ()
        alike = len(set(chosen)) == 1 and self._dropping is None and rows.token_types is None
        return self.stem if alike else ()

    def _laid(self, laid: Laid, rows: Rows, chosen: Sequence[int]) -> Tensor:
        blocks = block_table(laid.lengths, chosen) if has_kernels(self.device) else None
        positions = laid.positions + self.first_position
        pack = Pack(laid.ids, positions, blocks, rows.token_types, self._keys(rows), laid.stem)
        graphs, prefix = self._graphs, self._stacked
        if graphs is not None and prefix is not None and prefix.requires_grad:
            alone = not graphs.busy and all(index == 0 for index in chosen)
            if alone and torch.is_grad_enabled():
                return graphs(pack, prefix)
        return self._pass(pack.to(self.device), laid.lengths, chosen)

    def _pass_with(self, pack: Pack, prefix: Tensor) -> Tensor:
        """[t, h]: the states of a pack on the device whose rows all have ``prefix``."""
        set_prefix(self.attentions, by_layer(prefix))
        return self._pass(pack)

    def _pass(self, pack: Pack, lengths: Sequence[int] = (), chosen: Sequence[int] = ()) -> Tensor:
        """``lengths`` and ``chosen``, a prefix a row, are not needed where there are blocks."""
        layout = PackedRows(
            lengths, chosen, causal=self.geometry.causal, blocks=pack.blocks, stem=pack.stem
        )
        types = None if pack.token_types is None else pack.token_types[None]
        self._drop_by(None if pack.keys is None else pack.keys[None])
        return self._forward(pack.ids[None], pack.positions[None], layout, types)[0]

    def _padded(self, rows: Rows, chosen: Sequence[int]) -> Tensor:
        longest = max(rows.lengths)
        real = torch.arange(longest) < torch.tensor(rows.lengths)[:, None]  # [b, s]

        def lines(values: Tensor, fill: int) -> Tensor:
            filled = torch.full(real.shape, fill).masked_scatter(real, values)
            return to_device(filled, self.device)

        positions = torch.arange(longest).expand(len(rows), -1) + self.first_position
        types = None if rows.token_types is None else lines(rows.token_types, 0)
        keys = self._keys(rows)
        self._drop_by(None if keys is None else lines(keys, 0))
        layout = PaddedRows(real, chosen, causal=self.geometry.causal)
        hidden = self._forward(
            lines(rows.ids, self.pad_id), to_device(positions, self.device), layout, types
        )
        return hidden[real.to(self.device)]

    def _forward(
        self, ids: Tensor, positions: Tensor, layout: Layout, types: Tensor | None
    ) -> Tensor:
        more = {} if types is None else {"token_type_ids": types}
        hidden: Tensor = self.body(
            input_ids=ids, position_ids=positions, use_cache=False, ptkit_layout=layout, **more
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
        prefix_of_row: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """The continuation of each prompt, in order, without eos; see `ptkit.engine.generate`.

        ``batch_tokens``: the model's own if not given. ``prefix_of_row`` as in `states`.
        """
        from ptkit.engine.generate import generate

        return generate(
            self,
            prompts,
            sampling,
            batch_tokens=self.batch_tokens if batch_tokens is None else batch_tokens,
            keys=keys,
            progress=progress,
            prefix_of_row=prefix_of_row,
        )
