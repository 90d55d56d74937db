"""A frozen embedding whose table stays in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ptkit.engine.operators import has_triton
from ptkit.errors import CheckpointError


def _pinned(weight: Tensor) -> Tensor:
    """Where a GPU can read it."""
    return weight.pin_memory() if torch.cuda.is_available() else weight


class HostEmbedding(nn.Module):
    """Looks rows of a frozen table up on the host and copies them to the device of the model.

    ``weight``: [v, h], a parameter without a gradient that ``.to(device)`` leaves where it is;
    ``.to(dtype)`` converts it. Rows come out on ``device``, which follows ``.to(device)``.

    Host and device never wait for each other: ids of the host are looked up there, and the copy
    runs behind what the device is doing; for ids of the device, a GPU reads the rows out of the
    host's memory itself, in a CUDA graph, too. Only without Triton they are waited for.
    """

    place: Tensor

    def __init__(self, weight: Tensor, device: torch.device | str) -> None:
        super().__init__()
        self.weight = nn.Parameter(_pinned(weight.detach().cpu()), requires_grad=False)
        # an empty tensor, only so that .to() tells where and in which type rows are wanted
        self.register_buffer(
            "place", torch.empty(0, dtype=weight.dtype, device=device), persistent=False
        )

    @classmethod
    def of(cls, embedding: nn.Module) -> Self:
        """The host's copy of a model's own embedding, for its device.

        Raises `CheckpointError` for a module that does more than to look rows up.
        """
        plain = type(embedding) is nn.Embedding and embedding.max_norm is None
        if not isinstance(embedding, nn.Embedding) or not plain:
            raise CheckpointError(
                f"{type(embedding).__name__}: does more than to look rows up, and can't be moved "
                'to the host; use backbone.embeddings = "device"'
            )
        return cls(embedding.weight, embedding.weight.device)

    @property
    def num_embeddings(self) -> int:
        return self.weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        return self.weight.shape[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's
        self.place = fn(self.place)
        if self.weight.dtype != self.place.dtype:
            self.weight.data = _pinned(self.weight.data.to(self.place.dtype))
        return self

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """[...] ids to [..., h] on the device of the model."""
        device = self.place.device
        if ids.is_cuda and device.type == "cuda" and has_triton():
            from ptkit.engine.frozen_kernels import gather_rows

            return gather_rows(self.weight, ids)
        host = ids.cpu()
        if device.type == "cpu":
            return torch.nn.functional.embedding(host, self.weight)
        # pinned memory is handed out again only after the copy from it is over
        rows = torch.empty(
            (host.numel(), self.embedding_dim), dtype=self.weight.dtype, pin_memory=True
        )
        torch.index_select(self.weight, 0, host.flatten(), out=rows)
        return rows.view(*ids.shape, self.embedding_dim).to(device, non_blocking=True)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, to {self.place.device}"
