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

from ptkit.engine.operators import has_triton
from ptkit.errors import CheckpointError

IMPLEMENTATION = "ptkit"
NO_PREFIX = -1
BLOCK = 64  # queries or keys of one row that a kernel takes at a time
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
    """

    def __init__(
        self,
        lengths: Sequence[int],
        prefix_of_row: Sequence[int],
        *,
        causal: bool,
        blocks: Tensor | None = None,
    ) -> None:
        super().__init__(prefix_of_row, causal=causal)
        self.lengths = tuple(lengths)
        self._blocks = blocks

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        if self._blocks is None or query.dtype == torch.float64:
            return self._attend_rows(query, key, value, prefix, scores)
        return attend_blocks(query, key, value, prefix, scores, self._blocks, causal=self.causal)

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
        for q, k, v, index in rows:
            if prefix is not None and index != NO_PREFIX:
                k = torch.cat((prefix[0][index, None], k), dim=2)  # [1, g, p + s, d]
                v = torch.cat((prefix[1][index, None], v), dim=2)
            mask = self._row_mask(q, k.shape[2] - q.shape[2], scores.window)
            attended.append(_attention(q, k, v, mask, scores, grouped=True))
        return torch.cat(attended, dim=2).transpose(1, 2)

    def _row_mask(self, query: Tensor, prefix: int, window: int | None) -> Tensor | None:
        if not self.causal and window is None:
            return None
        length = query.shape[2]
        name = (length, prefix, window)
        if name not in self._masks:
            seen = row_mask(length, length, prefix, causal=self.causal, window=window)
            self._masks[name] = _additive(seen, query)
        return self._masks[name]


def block_table(lengths: Sequence[int], prefix_of_row: Sequence[int]) -> Tensor:
    """[blocks, 4] of int32: where a block starts, its row's end, its row's start, its prefix.

    >>> block_table([3, 65], [0, -1]).tolist()
    [[0, 3, 0, 0], [3, 68, 3, -1], [67, 68, 3, -1]]
    """
    blocks = []
    first = 0
    for length, prefix in zip(lengths, prefix_of_row, strict=True):
        end = first + length
        blocks += [(start, end, first, prefix) for start in range(first, end, BLOCK)]
        first = end
    return torch.tensor(blocks, dtype=torch.int32)


def has_kernels(device: torch.device) -> bool:
    """Whether packed rows on ``device`` go through Triton, which torch brings along on Linux."""
    return device.type == "cuda" and has_triton()


def attend_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: KeyValue | None,
    scores: Scores,
    blocks: Tensor,
    *,
    causal: bool,
) -> Tensor:
    """[1, n, t, d] queries of packed rows -> [1, t, n, d] attended values, by Triton kernels."""
    from ptkit.engine.packed_attention import packed_attention

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [t, n, d]
    if prefix is None:
        none = key.new_empty(1, key.shape[1], 0, key.shape[3])
        prefix = none, none
    window, softcap = scores.window or 0, scores.softcap or 0.0
    out: Tensor
    out, _ = packed_attention(q, k, v, *prefix, blocks, scores.scaling, window, softcap, causal)
    return out[None]


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
    if ptkit_layout is None:
        raise RuntimeError("a ptkit model is called through ptkit.Model, which lays its rows out")
    _check_plain(module, ptkit_layout, attention_mask, dropout, others)
    holder = module if ptkit_holder is None else ptkit_holder
    key_prefix = getattr(holder, _KEY, None)
    prefix = None if key_prefix is None else (key_prefix, getattr(holder, _VALUE))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scaling, sliding_window, softcap)
    attended = ptkit_layout.attend(query, key, value, prefix, scores)
    return attended, None


def _check_plain(
    module: nn.Module,
    layout: Layout,
    attention_mask: Tensor | None,
    dropout: float,
    others: dict[str, Any],
) -> None:
    """Raise `CheckpointError` for what would change the result and is not computed here."""
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


AttentionInterface.register(IMPLEMENTATION, prefix_attention)
