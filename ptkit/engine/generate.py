"""Continuous batching: prompts wait, sorted by length, for slots that rows at their end leave."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ptkit.engine.attention import NO_PREFIX
from ptkit.engine.decoding import Decoder
from ptkit.engine.outofmemory import OutOfMemory, ran_out, release
from ptkit.records import Sampling

if TYPE_CHECKING:
    from ptkit.engine.model import Model

# On a GPU: weights are read once a step however many rows there are, and up to some hundred rows
# cost little more than one. A token in the cache takes far less memory than one in a forward pass.
GPU_SLOTS = 512
GPU_CACHE = 8  # cached tokens for each of ``batch_tokens``
GPU_AHEAD = 4  # steps between two looks of the host; a row that ended is decoded on until then
GPU_PREFILL = 8192  # tokens of prompts that go through the model together
GPU_WINDOW = 8  # times as many rows as on a CPU are sorted by length, and answered together
REFILL = 16  # one slot in so many is free before waiting rows are let in, since that costs a pass

_log = logging.getLogger(__name__)


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


def calls(lengths: Sequence[int], new_tokens: int, model: Model) -> Iterator[list[int]]:
    """Indices of rows that a head predicts in one call, longest first.

    Those of `batches`; but all of them on a GPU if they are answered, ``new_tokens`` being how long
    an answer can get: `generate` then keeps the budget itself, and its slots full.
    """
    if new_tokens and model.device.type == "cuda":
        yield sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    else:
        yield from batches(lengths, new_tokens, model.batch_tokens)


def window(rows: int, device: torch.device) -> int:
    """How many rows are worked on together where it is so many on a CPU."""
    return rows * GPU_WINDOW if device.type == "cuda" else rows


@dataclass
class Request:
    """A prompt on its way to its answer, which has ``limit`` tokens at most. ``number``: of the
    prompt, from 1, for messages."""

    prompt: Sequence[int]
    key: int
    limit: int
    prefix: int = NO_PREFIX
    number: int = 1
    answer: list[int] = field(default_factory=list)
    ended: bool = False
    draws: Tensor | None = None

    @property
    def room(self) -> int:
        """Tokens of it that are fed at most: the last of the answer is not."""
        return len(self.prompt) + self.limit - 1

    @property
    def fed(self) -> int:
        """How many tokens of it are in the cache before the next step."""
        return len(self.prompt) + len(self.answer) - 1


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_tokens: int,
    keys: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    prefix_of_row: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
) -> list[list[int]]:
    """The continuation of each prompt up to eos (left out) or ``max_new_tokens``, in the prompts'
    order.

    Greedy and sampled draws of a row depend on the row alone, not on its batch, up to float
    rounding.
    ``keys``: what tells rows' draws apart besides the seed; default: their index in ``prompts``.
    ``batch_tokens`` bounds the tokens of a forward pass over prompts, and rows x (prompt + new
    tokens) of those that are decoded together, on a GPU eight times as many; if they don't fit into
    memory, half as many rows go on, from where they are. ``progress`` is called with the number of
    rows that were finished since the last call. ``prefix_of_row`` picks one of several prefixes a
    prompt, −1 none. ``limits``: a prompt's own ``max_new_tokens``, none above that of ``sampling``.

    Raises `OutOfMemory` for a prompt that does not fit into memory even alone.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt needs at least one token")
    if prefix_of_row is None:
        prefix_of_row = (NO_PREFIX if model.prefix is None else 0,) * len(prompts)
    keys = range(len(prompts)) if keys is None else keys
    limits = (sampling.max_new_tokens,) * len(prompts) if limits is None else limits
    requests = [
        Request(*each, number)
        for number, each in enumerate(
            zip(prompts, keys, limits, prefix_of_row, strict=True), start=1
        )
    ]
    wanted = [request for request in requests if request.limit > 0]
    for group, slots in grouped(wanted, batch_tokens, cuda=model.device.type == "cuda"):
        _within_memory(model, group, sampling, slots, batch_tokens, progress)
    return [request.answer for request in requests]


def grouped(
    requests: Sequence[Request], batch_tokens: int, *, cuda: bool
) -> Iterator[tuple[list[Request], int]]:
    """Requests to run on the same slots, the longest first, and the number of slots.

    A slot has room for the longest of its group. All that is left is a group if the budget gives
    each its slot; otherwise those that need more than half as much room as the longest.
    """
    budget = batch_tokens * (GPU_CACHE if cuda else 1)
    left = sorted(requests, key=lambda request: -request.room)
    while left:
        slots = max(1, budget // max(1, left[0].room + 1))
        if cuda:
            slots = min(slots, GPU_SLOTS)
        count = len(left)
        if slots < count:
            count = sum(1 for request in left if 2 * request.room > left[0].room)
        yield left[:count], min(slots, count)
        left = left[count:]


def _within_memory(
    model: Model,
    requests: list[Request],
    sampling: Sampling,
    slots: int,
    prefill: int,
    progress: Callable[[int], None] | None,
) -> None:
    """Finish the requests; each time that memory runs out, with half as many slots. `LockStep` of
    `ptkit.engine.sharding` refuses that where it would leave other processes behind.

    Raises `OutOfMemory` for the first that is not finished where there is one slot.
    """
    while requests:
        try:
            Batch(model, requests, sampling, slots, prefill, progress).run()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
        else:
            return
        release()
        requests = [request for request in requests if not request.ended]
        if slots == 1 and requests:
            raise _too_large(requests[0])
        slots, prefill = slots // 2, max(1, prefill // 2)
        _log.warning("out of memory while decoding: trying again with %d rows at once", slots)


def _too_large(request: Request) -> OutOfMemory:
    tokens = len(request.prompt)
    problem = (
        f"has {tokens:,} tokens, which with an answer of up to {request.limit:,} don't fit into "
        "memory even alone; shorten it, lower the limit of the answer, or take a smaller or "
        "quantised base model"
    )
    return OutOfMemory(f"prompt {request.number}", problem, tokens=tokens)


class Batch:
    """Requests on a fixed number of slots; the longest come first."""

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        sampling: Sampling,
        slots: int,
        prefill: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        cuda = model.device.type == "cuda"
        self.model = model
        self.sampling = sampling
        self.stops = {model.eos_id, *model.stop_ids}
        self.progress = progress
        self.slots: list[Request | None] = [None] * slots
        self.waiting = list(reversed(requests))  # the next is the last
        self.room = max(1, *(request.room for request in requests))
        self.prefill = min(prefill, GPU_PREFILL) if cuda else prefill
        self.cuda = cuda
        # whoever watches wants each token at once; elsewhere than on a GPU a look costs nothing
        self.ahead = GPU_AHEAD if cuda and model.watcher is None else 1
        self.decoder = Decoder(model, sampling, slots=slots, room=self.room, ahead=self.ahead)

    def run(self) -> None:
        while self.waiting or any(self.slots):
            self._admit()
            running = [request for request in self.slots if request is not None]
            if running:
                self._decode(running)

    def _admit(self) -> None:
        """Let waiting rows in, if enough slots are free for them."""
        free = [slot for slot, request in enumerate(self.slots) if request is None]
        if not self.waiting or len(free) < max(1, len(self.slots) // REFILL):
            return
        while self.waiting and free:
            chunk: list[Request] = []
            tokens = 0
            while self.waiting and len(chunk) < len(free):
                tokens += self.waiting[-1].fed + 1
                if chunk and tokens > self.prefill:
                    break
                chunk.append(self.waiting.pop())
            taken = free[: len(chunk)]
            first = self.decoder.prefill(
                taken,
                [[*request.prompt, *request.answer] for request in chunk],
                [request.prefix for request in chunk],
                [self._draws(request) for request in chunk] if self.sampling.temperature else [],
                [len(request.answer) for request in chunk],
            )
            for slot, request in zip(taken, chunk, strict=True):
                self.slots[slot] = request
            self._hand_out(taken, [first])
            free = [slot for slot in free if self.slots[slot] is None]

    def _draws(self, request: Request) -> Tensor:
        """Uniform numbers, one a token, of the row's own generator; those that it draws singly."""
        if request.draws is None:
            draw = generator(self.sampling.seed, request.key)
            request.draws = torch.rand(self.sampling.max_new_tokens, generator=draw)
        return request.draws

    def _decode(self, running: Sequence[Request]) -> None:
        lines = self._lines(len(running))
        left = max(request.limit - len(request.answer) for request in running)
        count = min(self.ahead, left)
        room = (
            self.room
        )  # all of it on a GPU: its kernel stops at each row's end, and graphs are few
        if not self.cuda:
            room = min(room, max(request.fed for request in running) + count)
        self._hand_out(range(lines), self.decoder.steps(count, lines, room))

    def _lines(self, running: int) -> int:
        """How many slots take part in a step; first, rows move into the free ones among them.

        On a GPU these are all, half, a quarter, …, so that graphs are few.
        """
        lines = running
        if self.cuda:
            lines = len(self.slots)
            while lines > 1 and (lines + 1) // 2 >= running:
                lines = (lines + 1) // 2
        sources = [slot for slot in range(lines, len(self.slots)) if self.slots[slot] is not None]
        if sources:
            free = [slot for slot in range(lines) if self.slots[slot] is None]
            targets = free[: len(sources)]
            self.decoder.move(sources, targets)
            for source, target in zip(sources, targets, strict=True):
                self.slots[target], self.slots[source] = self.slots[source], None
        return lines

    def _hand_out(self, slots: Sequence[int], steps: Sequence[Sequence[int]]) -> None:
        """Give the rows in ``slots`` their tokens, [steps][slots], and free those at their end."""
        ended = 0
        for tokens in steps:
            for slot, token in zip(slots, tokens, strict=True):
                request = self.slots[slot]
                if request is None:
                    continue
                request.ended = token in self.stops
                if not request.ended:
                    request.answer.append(token)
                    request.ended = len(request.answer) == request.limit
                    if self.model.watcher is not None:
                        self.model.watcher(request.key, token)
                if request.ended:
                    self.slots[slot] = None
                    ended += 1
        if self.progress is not None and ended:
            self.progress(ended)


def generator(seed: int, key: int) -> torch.Generator:
    """What draws a row's tokens: it depends on both numbers and nothing else."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
