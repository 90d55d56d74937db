"""Frozen linear layers with weights of 8 or 4 bits, made again where they are used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ptkit.engine.frozen_codes import dequantize, group_size, quantize_groups, quantize_rows
from ptkit.engine.frozen_float8 import FLOAT8, Float8Matmul, quantize_columns, quantize_float8
from ptkit.engine.frozen_ops import quantized_linear
from ptkit.errors import CheckpointError

Device = torch.device | str


class QuantizedLinear(nn.Module, ABC):
    """A linear layer that is never trained; `QuantizedLinear.of` names its kinds.

    All its tensors, ``weight``, ``weight_scale``, ``bias`` [n] or None, …, are parameters without a
    gradient. The layer passes the gradient on to its input and keeps neither the input nor the
    weight made again.
    """

    NUMBERS_AT_ONCE: ClassVar[int] = 2**24  # of a weight, while it is quantised
    kind: ClassVar[str]
    """Its name in ``backbone.quantization``."""
    weight: nn.Parameter
    weight_scale: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @classmethod
    @abstractmethod
    def quantized(cls, weight: Tensor, device: Device | None = None) -> dict[str, Tensor]:
        """The tensors of the layer for a weight [n, k], by name, on ``device``.

        Some rows at a time: on the way to another device nothing is copied on the weight's own.
        """

    @classmethod
    @abstractmethod
    def shapes(cls, in_features: int, out_features: int) -> dict[str, Tensor]:
        """What `quantized` gives, without values."""

    @classmethod
    def from_weight(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """Quantise a weight [n, k] on the device where it is."""
        return cls(cls.quantized(weight), bias)

    @classmethod
    def empty(cls, in_features: int, out_features: int, *, bias: bool) -> Self:
        """A layer whose values are still to be set."""
        tensors = cls.shapes(in_features, out_features)
        return cls(tensors, torch.empty(out_features) if bias else None)

    @staticmethod
    def of(kind: str) -> type[QuantizedLinear]:
        """The class of ``kind``: "fp8", "int8", "int4", "int4-g64" or "int4-g128"."""
        return {cls.kind: cls for cls in _KINDS}[kind]

    @classmethod
    def takes(cls, in_features: int) -> bool:
        """Whether a weight can have so many columns."""
        return True

    @property
    @abstractmethod
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [n, k] in ``dtype``."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias, [..., k] to [..., n]."""

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.kind}"

    @classmethod
    def _row_parts(cls, weight: Tensor) -> Iterator[Tensor]:
        yield from weight.split(max(1, cls.NUMBERS_AT_ONCE // weight.shape[1]))


# ------------------------------------------------------------------------------ whole numbers


class CodedLinear(QuantizedLinear):
    """A linear layer of whole numbers: ``weight`` int8, packed, see `ptkit.quantize_rows`;
    ``weight_scale`` [n] in float32, or [n, k / g] in float16 for groups of g columns."""

    bits: ClassVar[int]
    group: ClassVar[int | None] = None
    """Columns that share a scale, or the largest power of two below it that divides all columns;
    None: the whole row."""

    @classmethod
    def quantized(cls, weight: Tensor, device: Device | None = None) -> dict[str, Tensor]:
        parts = [cls._codes(part.to(device or part.device)) for part in cls._row_parts(weight)]
        codes, scales = zip(*parts, strict=True)
        scale = torch.cat(scales)
        return {"weight": torch.cat(codes), "weight_scale": scale if cls.group else scale.float()}

    @classmethod
    def _codes(cls, weight: Tensor) -> tuple[Tensor, Tensor]:
        if cls.group:
            return quantize_groups(weight, cls.group)
        return quantize_rows(weight, cls.bits)

    @classmethod
    def shapes(cls, in_features: int, out_features: int) -> dict[str, Tensor]:
        weight = torch.empty(out_features, in_features * cls.bits // 8, dtype=torch.int8)
        scale = torch.empty(out_features)
        if cls.group:
            groups = in_features // group_size(in_features, cls.group)
            scale = torch.empty(out_features, groups, dtype=torch.float16)
        return {"weight": weight, "weight_scale": scale}

    @classmethod
    def takes(cls, in_features: int) -> bool:
        return in_features * cls.bits % 8 == 0

    @property
    def in_features(self) -> int:
        return self.weight.shape[1] * 8 // self.bits

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.weight, self.weight_scale, self.bits, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, self.weight_scale, self.bits, self.bias)


class Int8Linear(CodedLinear):
    """A frozen linear layer with weights of 8 bits and a scale a row."""

    kind, bits = "int8", 8


class Int4Linear(CodedLinear):
    """A frozen linear layer with weights of 4 bits, two to a byte, and a scale a row."""

    kind, bits = "int4", 4


class Int4Group64Linear(CodedLinear):
    """A frozen linear layer with weights of 4 bits and a scale for every 64 columns of a row."""

    kind, bits, group = "int4-g64", 4, 64


class Int4Group128Linear(CodedLinear):
    """A frozen linear layer with weights of 4 bits and a scale for every 128 columns of a row."""

    kind, bits, group = "int4-g128", 4, 128


# ------------------------------------------------------------------------------ 8-bit floats


class Float8Linear(QuantizedLinear):
    """A frozen linear layer that multiplies 8-bit floats (e4m3) forward and backward.

    Inputs and gradients are rounded, too, with a scale a token. The weight is there twice, each
    time with the scales of its rows, because the hardware takes both sides along the sum:
    ``weight`` [n, k] and ``transposed`` [k, n]. Together they take the memory of bfloat16.
    """

    kind = "fp8"
    transposed: nn.Parameter
    transposed_scale: nn.Parameter

    @classmethod
    def quantized(cls, weight: Tensor, device: Device | None = None) -> dict[str, Tensor]:
        weight = weight.to(device or weight.device)
        parts = [quantize_float8(part) for part in cls._row_parts(weight)]
        codes, scales = zip(*parts, strict=True)
        rows = max(1, cls.NUMBERS_AT_ONCE // weight.shape[1])
        transposed, transposed_scale = quantize_columns(weight, rows)
        return {
            "weight": torch.cat([part.view(torch.uint8) for part in codes]).view(FLOAT8),
            "weight_scale": torch.cat(scales),
            "transposed": transposed,
            "transposed_scale": transposed_scale,
        }

    @classmethod
    def shapes(cls, in_features: int, out_features: int) -> dict[str, Tensor]:
        return {
            "weight": torch.empty(out_features, in_features, dtype=FLOAT8),
            "weight_scale": torch.empty(out_features),
            "transposed": torch.empty(in_features, out_features, dtype=FLOAT8),
            "transposed_scale": torch.empty(in_features),
        }

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return (self.weight.float() * self.weight_scale[:, None]).to(dtype)

    def dequantized_backward(self, dtype: torch.dtype) -> Tensor:
        """The weight [n, k] that gradients are multiplied by."""
        return (self.transposed.float() * self.transposed_scale[:, None]).t().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = Float8Matmul.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.weight_scale, self.transposed, self.transposed_scale, self.bias
        )
        return made


_KINDS: tuple[type[QuantizedLinear], ...] = (
    Float8Linear,
    Int8Linear,
    Int4Linear,
    Int4Group64Linear,
    Int4Group128Linear,
)


def quantize_linears(
    module: nn.Module, kind: str, device: Device | None = None, *, source: str
) -> int:
    """Put `QuantizedLinear` layers of ``kind`` in place of all linears inside ``module``.

    One after another, each on ``device`` (default: where it is), so that there is never a second
    copy of the model; on torch's meta device they are made without values. Returns how many.

    Raises `CheckpointError` for weights that ``kind`` can't hold, with ``source``, the file or
    folder of the model, in front.
    """
    cls, made = QuantizedLinear.of(kind), 0
    for path, owner in list(module.named_modules()):
        for name, child in list(owner.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            if not cls.takes(child.in_features):
                where = f"{path}.{name}".lstrip(".")
                raise CheckpointError(
                    f"{source}: the linear {where} has {child.in_features} columns, and "
                    f'backbone.quantization = "{kind}" packs two a byte; use "int8" or "fp8"'
                )
            if child.weight.is_meta:
                with torch.device("meta"):
                    layer = cls.empty(
                        child.in_features, child.out_features, bias=child.bias is not None
                    )
            else:
                bias = None if child.bias is None else child.bias.detach().to(device)
                layer = cls(cls.quantized(child.weight.detach(), device), bias)
            setattr(owner, name, layer.train(child.training))
            made += 1
    return made
