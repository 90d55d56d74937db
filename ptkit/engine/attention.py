"""The attention function that carries the prefix, and the layouts in which rows reach it.

A prefix is a pair of tensors on each attention module (`set_prefix`), not a cache: transformers
drops ``past_key_values`` under gradient checkpointing, and prefixes looked up by layer index
recompile every layer. Rows arrive packed into one sequence or padded; a `Layout`, handed through
the model's forward as the keyword ``ptkit_layout``, says which, and which prefix each row sees. The
prefix takes no position: real tokens keep 0, 1, 2, …, and a token sees the whole prefix of its row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from ptkit.engine.blocks import attend_blocks, attend_merged_blocks
from ptkit.errors import CheckpointError

IMPLEMENTATION = "ptkit"
NO_PREFIX = -1
# What models hand through to the attention function that changes no result here.
_WITHOUT_EFFECT = frozenset(
    {
        "cache_position",
        "deterministic",  # of flash attention's backward pass
        "output_attentions",
        "output_hidden_states",
        "position_ids",  # already in the keys, or in the embeddings
        "return_dict",
        "token_type_ids",
        "use_cache",
    }
)
_KEY, _VALUE = "ptkit_prefix_key", "ptkit_prefix_value"

KeyValue = tuple[Tensor, Tensor]


def set_prefix(attentions: Iterable[nn.Module], prefix: Sequence[KeyValue] | None) -> None:
    """Put a layer's prefix on each module: keys and values, [a, g, p, d] for a adapters; None:
    none."""
    for index, module in enumerate(attentions):
        key, value = (None, None) if prefix is None else prefix[index]
        setattr(module, _KEY, key)
        setattr(module, _VALUE, value)


def by_layer(stacked: Tensor) -> list[KeyValue]:
    """[2l, a, g, p, d] as the keys and values of each layer."""
    tensors = stacked.unbind(0)
    return list(zip(tensors[::2], tensors[1::2], strict=True))


class Scores(NamedTuple):
    """How an attention module makes scores of queries and keys, besides who sees whom."""

    scaling: float
    window: int | None = None
    """A query sees so many keys at most, itself included; both ways if it is not causal."""
    softcap: float | None = None
    """c bends a score x to c·tanh(x / c) before the mask (Gemma 2)."""


class Merged(NamedTuple):
    """What one linear made for all heads, [b, s, (n + 2g)·d] of n queries, g keys and g values, not
    yet turned by their positions."""

    projected: Tensor
    heads: int
    groups: int
    cos: Tensor
    """[b, s, r], in equal halves: of the angle of each pair of neighbouring numbers, the first r of
    a head."""
    sin: Tensor

    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """[b, n, s, d] queries, [b, g, s, d] keys and values, by transformers' own code."""
        from transformers.models.glm.modeling_glm import apply_rotary_pos_emb

        lines = self.projected.unflatten(-1, (self.heads + 2 * self.groups, -1)).transpose(1, 2)
        query, key, value = lines.split((self.heads, self.groups, self.groups), 1)
        return *apply_rotary_pos_emb(query, key, self.cos, self.sin), value


class Layout(ABC):
    """How the rows of a forward pass lie in its tensors, and which prefix each row sees."""

    def __init__(self, prefix_of_row: Sequence[int], *, causal: bool) -> None:
        self.prefix_of_row = tuple(prefix_of_row)
        self.causal = causal
        self._masks: dict[Any, Tensor] = {}

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        """[b, n, s, d] queries, [b, g, k, d] keys and values -> [b, s, n, d] attended values."""

    def attend_merged(self, merged: Merged, prefix: KeyValue | None, scores: Scores) -> Tensor:
        """`attend` of what ``merged`` holds, after its rotary embedding."""
        return self.attend(*merged.turned(), prefix, scores)


def row_mask(queries: int, keys: int, prefix: int, *, causal: bool, window: int | None) -> Tensor:
    """What each query of a row sees: [queries, prefix + keys] of bool; its last key is its own.

    ``window``: a query sees so many keys at most, itself included (both ways without ``causal``);
    the prefix stays visible.

    >>> row_mask(2, 2, 1, causal=True, window=None).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    query = torch.arange(keys - queries, keys)[:, None]
    key = torch.arange(keys)[None]
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        seen &= key <= query
    if window is not None:
        seen &= (query - key).abs() < window
    return torch.cat((torch.ones(queries, prefix, dtype=torch.bool), seen), dim=1)


def _additive(seen: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen.to(like.device), float("-inf")
    )


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores, *, grouped: bool
) -> Tensor:
    """[b, n, q, d]: attention by torch's kernels, which know no softcap, or step by step.

    ``grouped``: keys and values have a head for several of the queries'.
    """
    if scores.softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scores.scaling, enable_gqa=grouped
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
    capped = torch.tanh(query @ key.transpose(2, 3) * (scores.scaling / scores.softcap))
    logits = capped * scores.softcap
    if mask is not None:
        logits = logits + mask
    return logits.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


class PackedRows(Layout):
    """Rows one after another in a single sequence: tensors of [1, n, t, d], t = the sum of
    ``lengths``.

    The linears run on all tokens at once. Attention runs row by row, or, on a GPU, in kernels that
    take all rows at once (`ptkit.engine.packed_attention`) and need nothing but ``blocks``, the
    `block_table` on the device.

    ``stem``: the length of the first row, if all others begin with its tokens and have the same
    prefix (causal rows only); theirs are left out, and seen in the first row.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        prefix_of_row: Sequence[int],
        *,
        causal: bool,
        blocks: Tensor | None = None,
        stem: int = 0,
    ) -> None:
        super().__init__(prefix_of_row, causal=causal)
        self.lengths = tuple(lengths)
        self.stem = stem
        self._blocks = blocks

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        if self._blocks is None or query.dtype == torch.float64:
            return self._attend_rows(query, key, value, prefix, scores)
        return attend_blocks(
            query, key, value, prefix, scores, self._blocks, causal=self.causal, stem=self.stem
        )

    def attend_merged(self, merged: Merged, prefix: KeyValue | None, scores: Scores) -> Tensor:
        if self._blocks is None or merged.projected.dtype == torch.float64:
            return super().attend_merged(merged, prefix, scores)
        return attend_merged_blocks(
            merged, prefix, scores, self._blocks, causal=self.causal, stem=self.stem
        )

    def _attend_rows(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        rows = zip(
            query.split(self.lengths, 2),
            key.split(self.lengths, 2),
            value.split(self.lengths, 2),
            self.prefix_of_row,
            strict=True,
        )
        attended = []
        for number, (q, k, v, index) in enumerate(rows):
            before = []  # keys and values that the row sees besides its own
            if prefix is not None and index != NO_PREFIX:
                before.append((prefix[0][index, None], prefix[1][index, None]))
            length = sum(seen.shape[2] for seen, _ in before)
            if self.stem and number:
                before.append((key[:, :, : self.stem], value[:, :, : self.stem]))
            if before:
                keys, values = zip(*before, strict=True)
                k, v = torch.cat((*keys, k), dim=2), torch.cat((*values, v), dim=2)
            mask = self._row_mask(q, k.shape[2] - length, length, scores.window)
            attended.append(_attention(q, k, v, mask, scores, grouped=True))
        return torch.cat(attended, dim=2).transpose(1, 2)

    def _row_mask(self, query: Tensor, keys: int, prefix: int, window: int | None) -> Tensor | None:
        if not self.causal and window is None:
            return None
        queries = query.shape[2]
        name = (queries, keys, prefix, window)
        if name not in self._masks:
            seen = row_mask(queries, keys, prefix, causal=self.causal, window=window)
            self._masks[name] = _additive(seen, query)
        return self._masks[name]


class RecordedRow(PackedRows):
    """One row without a prefix; keeps the keys and values of every layer, in order, in ``seen``."""

    def __init__(self, length: int, *, causal: bool) -> None:
        super().__init__((length,), (NO_PREFIX,), causal=causal)
        self.seen: list[KeyValue] = []

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        self.seen.append((key, value))
        return super().attend(query, key, value, prefix, scores)


class PaddedRows(Layout):
    """One row a line: tensors of [b, n, s, d]; ``real`` [b, k] marks the keys that are no padding.

    With a cache there are more keys than queries; the queries are the last of them.
    """

    def __init__(self, real: Tensor, prefix_of_row: Sequence[int], *, causal: bool) -> None:
        super().__init__(prefix_of_row, causal=causal)
        self.real = real

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        length = 0
        if prefix is not None:
            index = torch.tensor(self.prefix_of_row, device=query.device).clamp_min(0)
            length = prefix[0].shape[2]
            key = torch.cat((prefix[0][index], key), dim=2)
            value = torch.cat((prefix[1][index], value), dim=2)
        mask = self._mask(query, length, scores.window)
        if query.is_cuda:  # with a mask, grouped heads leave the fused kernels there
            repeats = query.shape[1] // key.shape[1]
            key, value = (t.repeat_interleave(repeats, dim=1) for t in (key, value))
        grouped = not query.is_cuda
        attended = _attention(query, key, value, mask, scores, grouped=grouped)
        return attended.transpose(1, 2)

    def _mask(self, query: Tensor, prefix: int, window: int | None) -> Tensor:
        name = (query.shape[2], prefix, window)
        if name not in self._masks:
            seen = row_mask(
                query.shape[2], self.real.shape[1], prefix, causal=self.causal, window=window
            )
            real = self.real.cpu()
            has_prefix = torch.tensor(self.prefix_of_row) != NO_PREFIX
            visible = torch.cat((has_prefix[:, None].expand(-1, prefix), real), dim=1)
            seen = seen[None] & visible[:, None]  # [b, q, p + k]
            # a query that is padding sees everything: nothing reads it, and an empty row would give
            # NaN
            seen |= ~real[:, real.shape[1] - query.shape[2] :, None]
            self._masks[name] = _additive(seen[:, None], query)
        return self._masks[name]


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    ptkit_layout: Layout | None = None,
    ptkit_holder: nn.Module | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over a row's prefix and its own tokens, as transformers' attention interface wants
    it.

    ``ptkit_holder``: the module that holds the layer's prefix, where layers share an attention
    module; else it is ``module``. transformers makes no mask for an implementation that has no mask
    function, so ``attention_mask`` is None; what a token sees comes from the layout alone. Raises
    `CheckpointError` for a model whose attention computes more than this.
    """
    layout = _checked(module, ptkit_layout, attention_mask, dropout, others)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scaling, sliding_window, softcap)
    holder = module if ptkit_holder is None else ptkit_holder
    return layout.attend(query, key, value, _prefix_of(holder), scores), None


def merged_attention(
    module: nn.Module,
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    groups: int,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    ptkit_layout: Layout | None = None,
    **others: Any,
) -> Tensor:
    """[b, s, n, d] attended values, for attention modules that project queries, keys and values by
    one linear and turn pairs of neighbouring numbers (GLM's rotary embedding).

    ``projected``: [b, s, (n + 2g)·d], n = ``heads`` queries, g = ``groups`` keys, g values. ``cos``
    and ``sin``: [b, s, r], whose first half is of the angle of each pair, as GLM's rotary module
    makes them; a head's numbers from r on stay as they are.
    ``module`` holds the layer's prefix; ``scaling``: d^-0.5 if not given. Pass on the keywords that
    the module's forward got. On a GPU the embedding and the attention are one operator. Raises
    `CheckpointError` for keywords that would change the result.
    """
    layout = _checked(module, ptkit_layout, attention_mask, 0.0, others)
    width = projected.shape[-1] // (heads + 2 * groups)
    scores = Scores(width**-0.5 if scaling is None else scaling)
    merged = Merged(projected, heads, groups, cos, sin)
    return layout.attend_merged(merged, _prefix_of(module), scores)


def _prefix_of(holder: nn.Module) -> KeyValue | None:
    key = getattr(holder, _KEY, None)
    return None if key is None else (key, getattr(holder, _VALUE))


def _checked(
    module: nn.Module,
    layout: Layout | None,
    attention_mask: Tensor | None,
    dropout: float,
    others: dict[str, Any],
) -> Layout:
    """``layout``; raise `CheckpointError` for what would change the result and is not computed
    here."""
    if layout is None:
        raise RuntimeError("a ptkit model is called through ptkit.Model, which lays its rows out")
    extra = [name for name, value in others.items() if value is not None]
    unknown = [name for name in extra if name not in _WITHOUT_EFFECT and name != "is_causal"]
    if attention_mask is not None:
        unknown.append("a mask of its own")
    if dropout:
        unknown.append(f"dropout {dropout:g}")
    kind = type(module).__name__
    if unknown:
        raise CheckpointError(
            f"{kind}: its attention takes {', '.join(unknown)}, which ptkit does not compute; "
            "use a model of another family"
        )
    causal = others.get("is_causal", getattr(module, "is_causal", None))
    if isinstance(causal, bool) and causal != layout.causal:
        is_, as_ = ("not ", "") if layout.causal else ("", "not ")
        raise CheckpointError(
            f"{kind}: is {is_}causal, but its backbone says that it is {as_}causal; use another "
            "backbone.kind"
        )
    return layout


AttentionInterface.register(IMPLEMENTATION, prefix_attention)
