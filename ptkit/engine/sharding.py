"""A frozen base in pieces: every process keeps a share of each layer's weights (FSDP2).

A layer is put together on all processes when it runs, and taken apart behind it. So every forward
and backward pass is one of all processes, whether they have rows for it or not: `LockStep` sees to
it that those without go along with a row of padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ptkit.engine.attention import KeyValue
from ptkit.engine.model import Model
from ptkit.engine.outofmemory import OutOfMemory
from ptkit.engine.processes import Processes
from ptkit.errors import CheckpointError, PtkitError
from ptkit.isolation import out_of_memory
from ptkit.records import EncodedRow, Row


def repeated_layers(model: Model) -> list[nn.Module]:
    """The layers of the body, first layer first, each with its attention module inside.

    Raises `CheckpointError` for a model whose layers share their weights or can't be found.
    """
    for layers in model.body.modules():
        if isinstance(layers, nn.ModuleList) and len(layers) == len(model.attentions):
            pairs = zip(layers, model.attentions, strict=True)
            if all(any(m is attention for m in layer.modules()) for layer, attention in pairs):
                return list(layers)
    raise CheckpointError(
        f"{type(model.body).__name__}: its repeated layers can't be told apart, so its weights "
        "can't be spread; set train.shard_base = false"
    )


def shard(model: Model, processes: Processes, device: str) -> LockStep:
    """Spread the weights of the model's layers and of what is around them over the processes.

    They may lie on the CPU before and are on ``device`` afterwards, a share each. The LM head stays
    whole. Raises `CheckpointError` as `repeated_layers`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = repeated_layers(model)
    mesh = init_device_mesh(torch.device(device).type, (processes.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model.body, mesh=mesh, reshard_after_forward=True)
    if model.lm_head is not None:
        model.lm_head.to(device)
    return LockStep(model, processes)


class LockStep:
    """Before each forward pass of a model's body, asks all processes to take part in it.

    One that leaves a pass before its end, because its memory ran out, can't do it again: the others
    wait for it inside. It is refused the next pass, which ends it and so the run. Memory that runs
    out between two passes is nobody else's matter, and the work can be done again.
    """

    def __init__(self, model: Model, processes: Processes) -> None:
        self._model = model
        self._processes = processes
        self._going_along = False
        self._with_gradients = False
        self._under_way = False
        # around those of FSDP2, which put the weights together and take them apart
        model.body.register_forward_pre_hook(self._before, prepend=True)
        model.body.register_forward_hook(self._after)

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if self._going_along:
            return
        self._check_whole()
        if self._with_gradients and not torch.is_grad_enabled():
            raise RuntimeError("the other processes expect a pass with gradients")
        self._processes.largest(1)
        self._under_way = True

    def _after(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._under_way = False

    def _check_whole(self) -> None:
        """Raise `PtkitError` if this process left the last pass before its end."""
        if self._under_way:
            raise self._no_memory()

    def _no_memory(self) -> PtkitError:
        return PtkitError(
            f"rank {self._processes.rank}: memory ran out in a pass that all processes take part "
            "in, and with train.shard_base one of them can't try again with fewer rows; start more "
            "processes, or lower the limits that the task has for its rows"
        )

    @contextmanager
    def until_all_are_done(self, *, gradients: bool) -> Iterator[None]:
        """A block with any number of forward passes; at its end, go along with what the others
        still do.

        ``gradients``: whether every pass goes backward, too. Raises `PtkitError` if memory runs out
        where this process can't try again.
        """
        self._with_gradients = gradients
        try:
            yield
            self._check_whole()
            self._with_gradients, self._going_along = False, True
            while self._processes.largest(0):
                self._go_along(gradients=gradients)
        except OutOfMemory as error:
            if error.groups == 1:
                raise
            raise PtkitError(
                f"rank {self._processes.rank}: memory ran out with {error.tokens:,} tokens at "
                "once, and with train.shard_base the processes can't try again with fewer; lower "
                "train.tokens_per_micro_batch"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            raise self._no_memory() from error
        finally:
            self._with_gradients = self._going_along = False

    def _go_along(self, *, gradients: bool) -> None:
        model = self._model
        rows = [EncodedRow(Row((model.pad_id, model.pad_id)), 0)]
        if not gradients:
            with torch.no_grad():
                model.states(rows)
            return
        with model.using(_copies(model)):  # whose gradients nobody looks at
            model.states(rows).hidden.float().sum().backward()


def _copies(model: Model) -> list[KeyValue]:
    return [
        (key.detach().clone().requires_grad_(), value.detach().clone().requires_grad_())
        for key, value in model.prefix or ()
    ]
