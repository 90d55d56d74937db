"""A try before training: whether a prefix reaches every layer of a model, and nothing else does."""

from __future__ import annotations

from subprocess import CalledProcessError

import torch
from torch import Tensor

from ptkit.engine.attention import KeyValue
from ptkit.engine.model import Model
from ptkit.engine.outofmemory import ran_out
from ptkit.errors import CheckpointError, PtkitError
from ptkit.records import EncodedRow, Row

LENGTHS = (3, 5)  # tokens of the two rows
PREFIX = 2  # virtual tokens
SAME = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
"""How far the states of a row may be apart, relative to their size, and still count as equal."""


def probe(model: Model) -> None:
    """Raise `CheckpointError` for a model that can't be tuned by a prefix as ptkit gives it.

    Two short rows with a random prefix must get other states than without it, a gradient must reach
    every key and value, the untouched model must be as it was, and a row's states must not depend
    on the rows that it is packed with. A layer that calls no attention function, mixes tokens in
    another way, or counts positions by itself is found here, not after hours of training. Raises
    `PtkitError` if Triton can't build our kernels, which are first used here, or if memory runs
    out.
    """
    name, rows = type(model.body).__name__, _rows(model)
    try:
        prefix = _prefix(model)
        with model.using(None), torch.no_grad():
            untouched = model.states(rows).hidden.float()
            alone = torch.cat([model.states([row]).hidden.float() for row in rows])
        with model.using(prefix), torch.enable_grad():
            changed = model.states(rows).hidden.float()
            changed.square().sum().backward()
        with model.using(None), torch.no_grad():
            again = model.states(rows).hidden.float()
    except (CalledProcessError, OSError, MemoryError, RuntimeError, TypeError, IndexError) as error:
        if ran_out(error):
            raise PtkitError(
                f"{name}: its weights leave no memory for rows, not even for two of "
                f"{sum(LENGTHS)} tokens; free what other programs use, or take a smaller or "
                "quantised base model"
            ) from None
        reason = " ".join(str(error).split())[:200]
        if _while_building(error):
            raise PtkitError(
                f"Triton can't build the kernels for this GPU ({reason}); install a C compiler, "
                "such as gcc, and Python's header files, or name another one in the variable CC"
            ) from error
        if isinstance(error, CalledProcessError | OSError):
            raise
        raise CheckpointError(
            f"{name}: a forward pass with a prefix failed ({reason}); this model is not supported"
        ) from None
    if not bool(untouched.isfinite().all()):
        raise CheckpointError(
            f"{name}: its states are not finite in {str(model.dtype).removeprefix('torch.')}; use "
            'backbone.dtype = "float32" or "bfloat16"'
        )
    dead = [
        index
        for index, pair in enumerate(prefix)
        if any(t.grad is None or not bool(t.grad.count_nonzero()) for t in pair)
    ]
    problems = []
    if dead:
        shown = ", ".join(map(str, dead))
        problems.append(f"the prefix of layers {shown} gets no gradient: attention bypasses it")
    elif any(torch.equal(*row) for row in zip(*map(_split, (untouched, changed)), strict=True)):
        problems.append("a prefix changes nothing")
    if _apart(untouched, again) > SAME[model.dtype]:
        problems.append("the states without a prefix are others after one was used")
    if _apart(untouched, alone) > SAME[model.dtype]:
        problems.append(
            "a row's states depend on the rows beside it: tokens are mixed outside attention, or "
            "positions are not taken from position_ids"
        )
    if problems:
        raise CheckpointError(f"{name}: {'; '.join(problems)}; this model is not supported")


def _while_building(error: BaseException) -> bool:
    """Whether Triton was calling its C compiler."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_globals.get("__name__") == "triton.runtime.build":
            return True
        frame = frame.tb_next
    return False


def _rows(model: Model) -> list[EncodedRow]:
    draw, vocabulary = torch.Generator().manual_seed(0), model.geometry.vocab_size
    tokens = [torch.randint(vocabulary, (n,), generator=draw).tolist() for n in LENGTHS]
    return [EncodedRow(Row(tuple(row)), index) for index, row in enumerate(tokens)]


def _prefix(model: Model) -> list[KeyValue]:
    """Keys and values for every layer, N(0, 1), that collect gradients."""
    shape, draw = model.geometry, torch.Generator().manual_seed(1)
    size = (1, shape.kv_groups, PREFIX, shape.head_size)

    def leaf() -> Tensor:
        return torch.randn(size, generator=draw).to(model.device).requires_grad_()

    return [(leaf(), leaf()) for _ in range(shape.layers)]


def _split(states: Tensor) -> list[Tensor]:
    return list(states.split(LENGTHS))


def _apart(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / first.norm().clamp_min(1e-30))
