"""One decoding step for many rows on a static cache: in place, without a look at any value.

A slot is a line of the cache that holds one row. A prompt's keys and values are written there by a
packed forward pass (`PrefillRows`), a new token's by each step (`DecodeRows`). Prefixes are not
copied into slots: all rows score the same keys. Shapes depend on the number of slots and the room
in use alone, so that a GPU can replay a step as a CUDA graph (`Replay`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptkit.engine.attention import KeyValue, Layout, PackedRows, Scores
from ptkit.engine.blocks import block_table, has_kernels
from ptkit.engine.transfer import to_device
from ptkit.isolation import out_of_memory
from ptkit.records import Sampling

if TYPE_CHECKING:
    from ptkit.engine.model import Model

_log = logging.getLogger(__name__)


class Cache:
    """The keys and values of every layer, [slots, g, room, d], each as the layer makes them."""

    def __init__(self, slots: int, room: int) -> None:
        self.slots = slots
        self.room = room
        self.layers: list[KeyValue] = []

    def layer(self, index: int, key: Tensor, value: Tensor) -> KeyValue:
        """Those of a layer; made like ``key`` and ``value`` [b, g, s, d] the first time."""
        if index == len(self.layers):
            # zeros, since a key that is masked still takes part in a product: 0 · NaN is NaN
            new = (t.new_zeros(self.slots, t.shape[1], self.room, t.shape[3]) for t in (key, value))
            self.layers.append((next(new), next(new)))
        return self.layers[index]

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy slots onto others; no slot is both."""
        for tensors in self.layers:
            for tensor in tensors:
                tensor[targets] = tensor[sources]


class PrefillRows(PackedRows):
    """Packed prompts whose keys and values go into slots too, a slot a row, from its beginning."""

    def __init__(
        self,
        lengths: Sequence[int],
        prefix_of_row: Sequence[int],
        cache: Cache,
        slot_of_token: Tensor,
        positions: Tensor,
    ) -> None:
        blocks = None
        if has_kernels(positions.device):
            blocks = to_device(block_table(lengths, prefix_of_row), positions.device)
        super().__init__(lengths, prefix_of_row, causal=True, blocks=blocks)
        self._cache = cache
        self._slots, self._positions = slot_of_token, positions  # [t]
        self._layer = 0

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        keys, values = self._cache.layer(self._layer, key, value)
        count = len(self._slots)  # whatever a pack is filled up with is behind its rows
        keys[self._slots, :, self._positions] = key[0, :, :count].transpose(0, 1)
        values[self._slots, :, self._positions] = value[0, :, :count].transpose(0, 1)
        self._layer += 1
        return super().attend(query, key, value, prefix, scores)


class DecodeRows(Layout):
    """One new token for each of the first ``rows`` slots: tensors of [rows, n, 1, d].

    ``positions``, [rows]: that of the token in its row. ``prefix_index``, [rows]: the row's prefix,
    negative for none. ``room``: how far into a slot a row reaches at most, its new token included.
    Made anew for each forward pass, since it counts layers.
    """

    def __init__(self, cache: Cache, room: int, positions: Tensor, prefix_index: Tensor) -> None:
        super().__init__((), causal=True)
        self._cache = cache
        self._room = room
        self._positions = positions
        self._prefix_index = prefix_index
        self._lines = torch.arange(len(positions), device=positions.device)
        self._kernel = has_kernels(positions.device)
        self._layer = 0

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: KeyValue | None, scores: Scores
    ) -> Tensor:
        keys, values = self._cache.layers[self._layer]
        self._layer += 1
        keys[self._lines, :, self._positions] = key[:, :, 0]
        values[self._lines, :, self._positions] = value[:, :, 0]
        if self._kernel and query.dtype != torch.float64 and keys.shape == values.shape:
            attended = attend_slots(
                query[:, :, 0], keys, values, prefix, self._positions, self._prefix_index, scores
            )
            return attended[:, None]
        return self.attend_plainly(query, keys, values, prefix, scores)

    def attend_plainly(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        prefix: KeyValue | None,
        scores: Scores,
    ) -> Tensor:
        """[b, 1, n, d] by torch's operators, of slots [slots, g, room, d] that hold the new tokens
        too."""
        rows, groups = len(self._positions), keys.shape[1]
        keys, values = (t[:rows, :, : self._room] for t in (keys, values))
        query = query.reshape(rows, groups, -1, query.shape[-1])  # [b, g, n / g, d]
        logits = _product(query, keys.transpose(2, 3))  # [b, g, n / g, room]
        length = 0
        if prefix is not None:
            length = prefix[0].shape[2]
            seen = self._prefix(prefix[0].transpose(2, 3), query)
            logits = torch.cat((seen, logits), dim=-1)
        bias = self._bias(length, scores.window)
        if scores.softcap is None:
            logits = torch.add(bias, logits, alpha=scores.scaling)
        else:
            capped = torch.tanh(logits * (scores.scaling / scores.softcap))
            logits = torch.add(bias, capped, alpha=scores.softcap)
        weights = logits.softmax(-1).to(values.dtype)
        attended = weights[..., length:] @ values
        if prefix is not None:
            attended = attended + self._prefix(prefix[1], weights[..., :length], exact=False)
        return attended.reshape(rows, 1, -1, attended.shape[-1])

    def _prefix(self, prefix: Tensor, rows: Tensor, *, exact: bool = True) -> Tensor:
        """[b, g, n / g, k]: each row's ``rows`` [b, g, n / g, m] times its prefix, of [a, g, m, k].

        A single prefix is one factor for all rows; of several, each row's own is gathered.
        """
        product = _product if exact else torch.matmul
        if prefix.shape[0] > 1:
            return product(rows, prefix[self._prefix_index.clamp_min(0)])
        b, g, n, m = rows.shape
        flat = product(rows.transpose(0, 1).reshape(g, b * n, m), prefix[0])
        return flat.view(g, b, n, -1).transpose(0, 1)

    def _bias(self, prefix: int, window: int | None) -> Tensor:
        """[b, 1, 1, prefix + room]: 0 for what a row's new token sees, and −inf."""
        name = (prefix, window)
        if name not in self._masks:
            key = torch.arange(self._room, device=self._positions.device)
            distance = self._positions[:, None] - key
            seen = distance >= 0
            if window is not None:
                seen &= distance < window
            has_prefix = (self._prefix_index >= 0)[:, None].expand(-1, prefix)
            seen = torch.cat((has_prefix, seen), dim=1)[:, None, None]
            bias = torch.zeros(seen.shape, device=seen.device)
            self._masks[name] = bias.masked_fill_(~seen, float("-inf"))
        return self._masks[name]


def attend_slots(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: KeyValue | None,
    positions: Tensor,
    prefix_index: Tensor,
    scores: Scores,
) -> Tensor:
    """[b, n, d] of ``query`` [b, n, d], by a Triton kernel; see `slot_kernels.slot_attention`."""
    from ptkit.engine.slot_kernels import slot_attention

    return slot_attention(query, keys, values, prefix, positions, prefix_index, scores)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32, not rounded to half precision on the way where a kernel can."""
    if not a.is_cuda or a.dtype == torch.float32:
        return (a @ b).float()
    if a.ndim == 3:
        return torch.bmm(a, b, out_dtype=torch.float32)
    flat = torch.bmm(a.flatten(0, 1), b.flatten(0, 1), out_dtype=torch.float32)
    return flat.view(*a.shape[:2], *flat.shape[1:])


def choose(logits: Tensor, sampling: Sampling, drawn: Tensor | None) -> Tensor:
    """The next token [b] for logits [b, v]: the best one, or the one at ``drawn`` [b, 1], uniform
    in [0, 1), of the distribution that `Sampling` leaves."""
    if drawn is None:
        return logits.argmax(-1)
    scores, order = (logits.float() / sampling.temperature).sort(
        dim=-1, descending=True, stable=True
    )
    if sampling.top_k:
        scores[:, sampling.top_k :] = float("-inf")
    probabilities = scores.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    reached = probabilities.cumsum(-1)
    place = (reached <= drawn * reached[:, -1:]).sum(-1).clamp_max(logits.shape[-1] - 1)
    chosen: Tensor = order.gather(-1, place[:, None])[:, 0]
    return chosen


class Decoder:
    """Slots and what a step reads and writes of them; all of it stays on the device.

    ``room``: the longest prompt + answer, without the answer's last token, which is never fed.
    ``ahead``: steps at most between two looks of the host.
    """

    def __init__(
        self, model: Model, sampling: Sampling, *, slots: int, room: int, ahead: int
    ) -> None:
        device = model.device
        self.model = model
        self.sampling = sampling
        self.cache = Cache(slots, room)
        self._tokens = torch.zeros(slots, dtype=torch.long, device=device)  # to be fed next
        self._positions = torch.zeros_like(self._tokens)
        self._prefixes = torch.full_like(self._tokens, -1)
        self._made = torch.zeros_like(self._tokens)  # tokens of the answer so far
        self._draws: Tensor | None = None
        if sampling.temperature:
            self._draws = torch.zeros(slots, sampling.max_new_tokens, device=device)
        self._out = torch.zeros(ahead, slots, dtype=torch.long, device=device)
        self._turn = torch.zeros(1, dtype=torch.long, device=device)
        # a hook, such as one that brings several processes together, is not called by a replay
        hooked = bool(model.body._forward_pre_hooks or model.body._forward_hooks)
        graphs = device.type == "cuda" and not hooked
        self._step = Replay(self._one_step) if graphs else self._one_step

    @property
    def graph_failure(self) -> str | None:
        """Why steps are not replayed as a graph although they could be; None: they are."""
        return self._step.failure if isinstance(self._step, Replay) else None

    @property
    def graphs(self) -> int:
        """How many graphs were captured."""
        return self._step.captured if isinstance(self._step, Replay) else 0

    def prefill(
        self,
        slots: Sequence[int],
        rows: Sequence[Sequence[int]],
        prefixes: Sequence[int],
        draws: Sequence[Tensor],
        made: Sequence[int],
    ) -> list[int]:
        """Put rows into slots, and return the token that follows each.

        ``draws``: for each row uniform numbers, one a token of its answer; ``made``: how many of
        its answer's tokens are in the row already.
        """
        model, device = self.model, self.model.device
        lengths = torch.tensor([len(row) for row in rows])
        positions = to_device(torch.cat([torch.arange(len(row)) for row in rows]), device)
        owner = torch.tensor(slots)
        owner_of_token = to_device(owner.repeat_interleave(lengths), device)
        layout = PrefillRows(lengths.tolist(), prefixes, self.cache, owner_of_token, positions)
        hidden = model.body(
            input_ids=to_device([token for row in rows for token in row], device)[None],
            position_ids=(positions + model.first_position)[None],
            use_cache=False,
            ptkit_layout=layout,
        ).last_hidden_state[0, to_device(lengths.cumsum(0) - 1, device)]
        owner, counts = to_device(owner, device), to_device(made, device)
        drawn = None
        if self._draws is not None:
            self._draws[owner] = to_device(torch.stack(list(draws)), device)
            drawn = self._draws[owner, counts][:, None]
        assert model.lm_head is not None
        chosen = choose(model.lm_head(hidden), self.sampling, drawn)
        self._tokens[owner] = chosen
        self._positions[owner] = to_device(lengths, device)
        self._prefixes[owner] = to_device(prefixes, device)
        self._made[owner] = counts + 1
        tokens: list[int] = chosen.tolist()
        return tokens

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy slots onto free ones."""
        a, b = (to_device(slots, self.model.device) for slots in (sources, targets))
        self.cache.move(a, b)
        buffers = [self._tokens, self._positions, self._prefixes, self._made]
        for buffer in [*buffers, *([] if self._draws is None else [self._draws])]:
            buffer[b] = buffer[a]

    def steps(self, count: int, rows: int, room: int) -> list[list[int]]:
        """[count][rows]: the next tokens of the first ``rows`` slots.

        ``room`` is at least the position of any token that counts, + 1. A free slot, or one whose
        row has come to its end, gives tokens that mean nothing; it does no harm to the others.
        """
        self._turn.zero_()
        for _ in range(count):
            self._step(rows, room)
        tokens: list[list[int]] = self._out[:count, :rows].tolist()
        return tokens

    def logits(self, rows: int, room: int) -> Tensor:
        """[rows, v] behind the tokens that are to be fed, which thereby get their places in the
        cache."""
        model = self.model
        # a row beyond its end stays where it sees at least itself: no NaN for a later row to read
        positions = self._positions[:rows].clamp_max(room - 1)
        layout = DecodeRows(self.cache, room, positions, self._prefixes[:rows])
        hidden = model.body(
            input_ids=self._tokens[:rows, None],
            position_ids=(positions + model.first_position)[:, None],
            use_cache=False,
            ptkit_layout=layout,
        ).last_hidden_state[:, -1]
        self._positions[:rows].add_(1)
        assert model.lm_head is not None
        logits: Tensor = model.lm_head(hidden)
        return logits

    def feed(self, tokens: Tensor) -> None:
        """Go on with ``tokens``, [rows], whatever was chosen before."""
        self._tokens[: len(tokens)].copy_(tokens)

    def _one_step(self, rows: int, room: int) -> None:
        logits = self.logits(rows, room)
        drawn, made = None, self._made[:rows]
        if self._draws is not None:
            place = made.clamp_max(self._draws.shape[1] - 1)
            drawn = self._draws[:rows].gather(1, place[:, None])
        chosen = choose(logits, self.sampling, drawn)
        self.feed(chosen)
        made.add_(1)
        self._out[:, :rows].index_copy_(0, self._turn, chosen[None])
        self._turn.add_(1)


class Replay:
    """A step as a CUDA graph for each pair of its arguments, from the second call with them on.

    The first call runs kernel by kernel, which loads what a capture may not load. A step that can't
    be captured goes on like that; ``failure`` then says why.
    """

    def __init__(self, step: Callable[[int, int], None]) -> None:
        self.failure: str | None = None
        self._step = step
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def captured(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, rows: int, room: int) -> None:
        name = (rows, room)
        if self.failure is not None or name not in self._graphs:
            self._graphs[name] = None
            self._step(rows, room)
            return
        graph = self._graphs[name]
        if graph is None:
            graph = self._graphs[name] = self._capture(rows, room)
        if graph is None:
            self._step(rows, room)
        else:
            graph.replay()

    def _capture(self, rows: int, room: int) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may use the device meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(rows, room)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            # what ends the capture fails too, and hides the reason
            self.failure = " ".join(str(error.__context__ or error).split())[:200]
            _log.warning("decoding goes on without CUDA graphs: %s", self.failure)
            return None
        return graph
