"""Several processes that share a run: what each does, and what they tell each other.

Every process loads the same recipe, data and frozen model. Rows are dealt over them, by tokens;
gradients, losses and answers are brought together, so that the result is that of one process. Rank
0 writes the files and speaks; the others say nothing unless they fail. A launcher such as torchrun
names the processes by environment variables. Nothing here is used, and torch.distributed is not
imported, where a run is alone.
"""

from __future__ import annotations

import heapq
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ptkit.errors import PtkitError

if TYPE_CHECKING:
    from torch import Tensor

    from ptkit.engine.sharding import LockStep
    from ptkit.engine.train import Totals

_T = TypeVar("_T")

LAUNCHED = "PTKIT_LAUNCHED"
"""Set by ``ptkit run --processes``, which tells itself what became of its processes."""
ENDED_BY_OTHERS = 3  # exit code of a process that ends because another one did
TIMEOUT = timedelta(hours=1)  # how long a process waits for the others; a dead one is noticed
_GIVEN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class FailedElsewhere(PtkitError):
    """Another process failed, and tells why; this one ends without a word."""

    exit_code = ENDED_BY_OTHERS


class LostProcess(PtkitError):
    """Another process of the run is gone."""

    exit_code = ENDED_BY_OTHERS


def deal(sizes: Sequence[int], shares: int) -> list[list[int]]:
    """Indices of ``sizes`` in ``shares`` parts of about equal sums, each in ascending order.

    The largest goes first, always to the part that has least (Graham, 1969); ties go to the lower
    index, so that every process deals alike.

    >>> deal([5, 1, 4, 2], 2)
    [[0, 1], [2, 3]]
    """
    loads = [(0, share) for share in range(shares)]
    dealt: list[list[int]] = [[] for _ in range(shares)]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        load, share = loads[0]
        heapq.heapreplace(loads, (load + sizes[index], share))
        dealt[share].append(index)
    return [sorted(part) for part in dealt]


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them; by default it is alone, and every method
    returns at once what it was given."""

    rank: int = 0
    size: int = 1
    lock_step: LockStep | None = None
    """Set where the frozen base is spread over the processes."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    # ---------------------------------------------------------------------------------- talking

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from error

    def lost(self, error: BaseException, *more: str) -> LostProcess:
        """What to raise for an error of a connection; ``more`` ends the line."""
        if os.environ.get(LAUNCHED):
            return LostProcess()
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        line = f"rank {self.rank} of {self.size}: another process of the run is gone ({reason})"
        return LostProcess("; ".join((line, *more)))

    def gather(self, value: _T) -> list[_T]:
        """What every process gives, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(found, value)
        return found

    def first(self, action: Callable[[], _T]) -> _T:
        """What ``action`` returns to rank 0, the only one to do it, on every rank.

        Where it raises, rank 0 raises the same, and the others `FailedElsewhere`.
        """
        if self.size == 1:
            return action()
        import torch.distributed as dist

        told: list[Any] = [None]
        failure: BaseException | None = None
        if self.leads:
            try:
                told = [(action(),)]
            except BaseException as error:
                failure = error
        with self._talking():
            dist.broadcast_object_list(told, src=0)
        if failure is not None:
            raise failure
        if told[0] is None:
            raise FailedElsewhere
        found: _T = told[0][0]
        return found

    @contextmanager
    def alike(self) -> Iterator[None]:
        """A block that every process runs, and in which none waits for another.

        Where it fails with a `PtkitError`, all end; only the lowest rank that failed says why.
        """
        mine: PtkitError | None = None
        try:
            yield
        except PtkitError as error:
            mine = error
        failed = self.gather(mine is not None)
        if mine is not None and failed.index(True) == self.rank:
            raise mine
        if any(failed):
            raise FailedElsewhere from mine

    def largest(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        told = torch.tensor(number)
        with self._talking():
            dist.all_reduce(told, dist.ReduceOp.MAX)
        return int(told)

    # ---------------------------------------------------------------------------------- work

    def share(self, items: Sequence[_T], size_of: Callable[[_T], int]) -> list[_T]:
        """Those of ``items`` that this process works on, in their order, dealt as by `deal`."""
        if self.size == 1:
            return list(items)
        dealt = deal([size_of(item) for item in items], self.size)
        return [items[index] for index in dealt[self.rank]]

    @contextmanager
    def in_step(self, *, gradients: bool) -> Iterator[None]:
        """A block whose number of forward passes may differ between processes.

        ``gradients``: whether every pass goes backward, too. It matters only to a base that is
        spread over the processes.
        """
        if self.lock_step is None:
            yield
            return
        with self.lock_step.until_all_are_done(gradients=gradients):
            yield

    def add_up(self, totals: Totals, leaves: Sequence[Tensor] = ()) -> Totals:
        """The sum of ``totals`` over all processes, and in every leaf's ``grad`` that of its
        gradients.

        They travel in one float32 buffer. A leaf gets a gradient if it has one anywhere, and keeps
        None if it has none, which only counts can tell: those are integers on the CPU, so that no
        device has to be waited for.
        """
        if self.size == 1:
            return totals
        import torch
        import torch.distributed as dist

        counts = torch.tensor(
            [totals.tokens, totals.micro_batches, *(leaf.grad is not None for leaf in leaves)]
        )
        parts = [totals.numerator.detach(), totals.weight.detach()]
        parts += [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        flat = torch.cat([part.reshape(-1).float() for part in parts])
        with self._talking():
            dist.all_reduce(counts)
            dist.all_reduce(flat)
        tokens, micro_batches, *reached = counts.tolist()
        sums = flat.split([part.numel() for part in parts])
        for leaf, count, gradient in zip(leaves, reached, sums[2:], strict=True):
            leaf.grad = gradient.view(leaf.shape).to(leaf.dtype) if count else None
        return totals._replace(
            numerator=sums[0][0], weight=sums[1][0], tokens=tokens, micro_batches=micro_batches
        )


ALONE = Processes()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """The processes that a launcher says this one is among, until the end of a with block.

    ``device``: as for `run`; they talk through gloo, and on GPUs through NCCL, too, where every
    process of a machine takes the GPU of its local rank. Raises `PtkitError` for variables that are
    missing and for too few GPUs.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield ALONE
        return
    missing = [name for name in _GIVEN if name not in os.environ]
    if missing:
        raise PtkitError(
            f"WORLD_SIZE: says that this is one of {size} processes, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; start it with torchrun, or with "
            "--processes and without WORLD_SIZE"
        )
    rank, local = _number("RANK", 0), _number("LOCAL_RANK", 0)
    here = _number("LOCAL_WORLD_SIZE", size)
    import torch
    import torch.distributed as dist

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        if here > torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise PtkitError(
                f"device {device!r}: {here} processes on this machine, but torch sees {count} "
                f"GPU{'' if count == 1 else 's'}; use --processes {count}, or --device cpu"
            )
        torch.cuda.set_device(local)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // here))
    processes = Processes(rank, size)
    ours = not dist.is_initialized()
    if ours:
        with processes._talking():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    yield processes
    # after a failure the connections are left to the end of the process: closing them may wait
    if ours and dist.is_initialized():
        dist.destroy_process_group()


def resume_command(folder: Path, processes: int = 1) -> str:
    """What the user types to go on with a run, in as many processes."""
    recipe = folder / "recipe.toml"  # with what --set changed
    several = f" --processes {processes}" if processes > 1 else ""
    return f"ptkit run {recipe} --out {folder}{several} --resume"


def lost_connection(error: BaseException) -> bool:
    """Whether an error, or what caused it, is that of torch.distributed's connections."""
    module = sys.modules.get("torch.distributed")
    kind: Any = getattr(module, "DistError", ())
    while error is not None:
        if isinstance(error, kind) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            return True
        error = error.__cause__  # type: ignore[assignment]
    return False


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise PtkitError(f"{name}: must be a whole number, got {text!r}; start with torchrun")
    return int(text)
