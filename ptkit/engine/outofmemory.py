"""Out of memory is not the end: fewer tokens go through the model at once, and the work is done
again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from ptkit.errors import PtkitError
from ptkit.isolation import out_of_memory
from ptkit.records import EncodedRow
from ptkit.rowstore import RowStore

_T = TypeVar("_T")


class OutOfMemory(PtkitError):
    """A micro-batch that does not fit. ``tokens``: as the budget counts them, padding included;
    ``groups``: the loss groups in it, which can be put into micro-batches of their own.

    Its line is what the user sees if there is one group only, such as a prompt: ``where`` that is,
    and ``problem``.
    """

    def __init__(self, where: str, problem: str, *, tokens: int, groups: int = 1) -> None:
        super().__init__(f"{where}: {problem}")
        self.problem = problem
        self.tokens = tokens
        self.groups = groups


def causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what led to it, as far as a traceback would show it; torch's compilers keep
    what failed in them in an attribute."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        context = None if seen.__suppress_context__ else seen.__context__
        inner = getattr(seen, "inner_exception", None)
        seen = inner if isinstance(inner, BaseException) else seen.__cause__ or context


def ran_out(error: BaseException) -> bool:
    """Whether ``error`` is memory that ran out, or what that led to."""
    return any(map(out_of_memory, causes(error)))


def release() -> None:
    """Give back what the work that ran out of memory held; its error must be gone by then, since
    the traceback keeps the tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def told_as(
    rows: Sequence[EncodedRow], store: RowStore, *, tokens: int, groups: int
) -> Iterator[None]:
    """Turn what torch raises when memory runs out, while it compiles or captures a graph too, into
    an `OutOfMemory` for these rows."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        record, real = rows[0].record, sum(len(row.tokens) for row in rows)
        where = f"record {record}" if store.origins is None else str(store.origins[record])
        what = f"its {len(rows)} rows of one loss have" if len(rows) > 1 else "has"
        problem = (
            f"{what} {real:,} tokens, which don't fit into memory even alone; shorten it "
            'with the settings of the task, set train.memory = "small" if it isn\'t, or take a '
            "smaller or quantised base model"
        )
        raise OutOfMemory(where, problem, tokens=tokens, groups=groups) from None


def within_memory(tokens: int, work: Callable[[int], _T], halved: Callable[[int], None]) -> _T:
    """What ``work`` returns, called with a budget of ``tokens`` that go through the model at once.

    If they don't fit, the budget is halved until that splits the micro-batch, ``halved`` is told
    the new one, and ``work`` is called again, from its start. Raises `OutOfMemory` for a
    micro-batch that can't be split.
    """
    while True:
        try:
            return work(tokens)
        except OutOfMemory as error:
            if error.groups == 1:
                raise
            tokens //= 2
            while tokens >= error.tokens:  # that would split nothing
                tokens //= 2
        release()
        halved(tokens)
