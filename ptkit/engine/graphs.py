"""The forward and backward pass of packed rows as CUDA graphs: nothing is left for the host to do
in them but to start each.

A layer is some forty kernels; a host that has to launch them one by one is slower than the GPU that
runs them. Packs are padded to a few sizes, so that few graphs are needed, and all graphs share
their memory, because only one pass is under way at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptkit.engine.blocks import BLOCK
from ptkit.engine.transfer import to_device

TOKENS = 64  # a pack is padded to a multiple of
BLOCKS = 64  # likewise the table of its blocks
ROOM_EIGHTHS = 10  # of the first pack's tokens, so that most larger ones find room, too


class Pack(NamedTuple):
    """What a pass over packed rows reads, on any device: t tokens."""

    ids: Tensor
    """[t]"""
    positions: Tensor
    """[t], as the model counts them"""
    blocks: Tensor | None
    """As `ptkit.engine.blocks.block_table` makes it."""
    token_types: Tensor | None = None
    """[t]"""
    keys: Tensor | None = None
    """[t], where the model drops something: as `ptkit.engine.rowdropout.step_keys` makes them."""
    stem: int = 0
    """The length of the first row, if all others begin with its tokens (`ptkit.engine.stem`)."""

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of it that comes anew with every pass."""
        return self[:-1]

    def to(self, device: torch.device) -> Pack:
        given = zip(self._fields, self.tensors, strict=False)
        moved: dict[str, Any] = {n: to_device(t, device) for n, t in given if t is not None}
        return self._replace(**moved)


Run = Callable[[Pack, Tensor], Tensor]
"""A pack and the prefix [2l, 1, g, p, d] to the hidden states [t, h]."""


def padded(pack: Pack) -> Pack:
    """``pack`` in the next larger size; the padding is rows of its own without a prefix."""
    tokens = len(pack.ids)
    more = -tokens % TOKENS
    total = tokens + more
    assert pack.blocks is not None
    rows = [[start, min(total, start + BLOCK), start, -1] for start in range(tokens, total, BLOCK)]
    filled = len(pack.blocks) + len(rows)
    rows += [[total, total, total, -1 - filled]] * (-filled % BLOCKS)  # of no work
    blocks = torch.tensor(rows, dtype=torch.int32).view(-1, 4)

    def longer(values: Tensor) -> Tensor:
        return torch.cat((values, values[:1].expand(more, *values.shape[1:])))

    return Pack(
        longer(pack.ids),
        longer(pack.positions),
        torch.cat((pack.blocks, blocks)),
        None if pack.token_types is None else longer(pack.token_types),
        None if pack.keys is None else longer(pack.keys),
        pack.stem,
    )


class _Shared:
    """What goes into and out of every graph, in the same place for all of them: ``room`` tokens."""

    def __init__(self, hidden: Tensor, prefix: Tensor) -> None:
        self.room = len(hidden) * ROOM_EIGHTHS // 8
        self.hidden = hidden.new_zeros(self.room, hidden.shape[1])
        self.d_hidden = torch.zeros_like(self.hidden)
        self.prefix = prefix.detach().clone().requires_grad_()
        self.d_prefix = torch.zeros_like(prefix)


class _Graph:
    """Both passes over packs of one size."""

    def __init__(self, run: Run, pack: Pack, shared: _Shared, pool: Any) -> None:
        self.pack, self.shared = pack, shared
        self.busy = False
        self.hidden, self._d_hidden = (t[: len(pack.ids)] for t in (shared.hidden, shared.d_hidden))
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        capture: dict[str, Any] = {"pool": pool, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self._forward, **capture):
            # a leaf would tie its gradient to a stream
            prefix = shared.prefix.view_as(shared.prefix)
            states = run(pack, prefix)
            self.hidden.copy_(states.detach())
        with torch.cuda.graph(self._backward, **capture):
            (d_prefix,) = torch.autograd.grad(states, prefix, self._d_hidden)
            shared.d_prefix.copy_(d_prefix)

    def forward(self, pack: Pack, prefix: Tensor) -> Tensor:
        places = (*self.pack.tensors, self.shared.prefix)
        for kept, given in zip(places, (*pack.tensors, prefix), strict=True):
            if kept is not None and given is not None:
                kept.copy_(to_device(given, kept.device))
        self._forward.replay()
        return self.hidden

    def backward(self, d_hidden: Tensor) -> Tensor:
        self._d_hidden.copy_(d_hidden)
        self._backward.replay()
        return self.shared.d_prefix.clone()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, prefix: Tensor, pack: Pack, graph: _Graph) -> Tensor:
        ctx.graph = graph
        graph.busy = True
        return graph.forward(pack, prefix).view_as(graph.hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor, None, None]:
        ctx.graph.busy = False
        return ctx.graph.backward(d_hidden), None, None


class Graphs:
    """Runs packs through graphs, which it makes as sizes come up."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._shared: _Shared | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    @property
    def busy(self) -> bool:
        """Whether a forward pass waits for its backward pass, which another would spoil."""
        return any(graph.busy for graph in self._graphs.values())

    def reset(self) -> None:
        """Give up a forward pass that will have no backward pass."""
        for graph in self._graphs.values():
            graph.busy = False

    def __call__(self, pack: Pack, prefix: Tensor) -> Tensor:
        """The hidden states [t, h] of a pack on the host, valid until the next call.

        ``prefix`` [2l, 1, g, p, d] in the model's type gets a gradient.
        """
        tokens = len(pack.ids)
        pack = padded(pack)
        sizes = [None if t is None else tuple(t.shape) for t in (*pack.tensors, prefix)]
        key = (*sizes, pack.stem)
        if key not in self._graphs:
            try:
                self._graphs[key] = self._made(pack.to(prefix.device), prefix)
            except torch.OutOfMemoryError:
                self._graphs.clear()  # a smaller pack may fit without them
                self._shared = None
                raise
        apply: Any = _Replay.apply
        hidden: Tensor = apply(prefix, pack, self._graphs[key])
        return hidden[:tokens]

    def _made(self, pack: Pack, prefix: Tensor) -> _Graph:
        hidden = self._tried(pack, prefix)
        shared = self._shared
        if shared is None or shared.room < len(hidden) or shared.prefix.shape != prefix.shape:
            shared = self._shared = _Shared(hidden, prefix)  # older graphs keep theirs
        return _Graph(self._run, pack, shared, self._pool)

    def _tried(self, pack: Pack, prefix: Tensor) -> Tensor:
        """The states [t, h] of a whole pass, which compiles and loads what can't be while
        capturing."""
        prefix = prefix.detach().requires_grad_()
        hidden = self._run(pack, prefix)
        torch.autograd.grad(hidden, prefix, torch.zeros_like(hidden))
        return hidden.detach()
