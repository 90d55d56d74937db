"""Triton kernels beside their slow twins: on a GPU, or in Triton's interpreter where there is none.

The interpreter knows no bfloat16, and needs its variable to be set before Triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ptkit.engine import frozen_ops
from ptkit.engine.frozen_codes import dequantize, quantize_groups, quantize_rows

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
needs_kernels = pytest.mark.skipif(not (GPU or INTERPRETED), reason="runs in the interpreter below")
DEVICE = "cuda" if GPU else "cpu"
EXACT = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(EXACT)[: 3 if GPU else 2]
KINDS = ("int8", "int4", "int4-g64", "int4-g128")
SHAPES = [(33, 256), (70, 192), (300, 1024)][: 3 if GPU else 2]  # the interpreter is slow
TOKENS = (1, 5, 16, 20, 64) if GPU else (5, 20)


def quantized(kind: str, rows: int, columns: int) -> tuple[Tensor, Tensor, int]:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, columns, generator=draw)
    if "-g" in kind:
        codes, scale = quantize_groups(weight, int(kind[6:]))
    else:
        codes, scale = quantize_rows(weight, int(kind[3:]))
        scale = scale.float()
    return codes.to(DEVICE), scale.to(DEVICE), 8 if kind == "int8" else 4


@pytest.mark.skipif(GPU or INTERPRETED, reason="the tests below run as they are")
def test_the_kernels_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_made_again_in_one_pass(shape: tuple[int, int], kind: str, dtype: torch.dtype) -> None:
    from ptkit.engine.frozen_kernels import dequantize_codes

    codes, scale, bits = quantized(kind, *shape)
    whole = dequantize(codes, scale, bits, dtype)
    assert torch.equal(dequantize_codes(codes, scale, bits, dtype), whole)
    rows = slice(3, 21)
    assert torch.equal(dequantize_codes(codes[rows], scale[rows], bits, dtype), whole[rows])
    columns = slice(64 * bits // 8, 128 * bits // 8)
    if scale.dim() == 2:
        if shape[1] // scale.shape[1] > 64:
            return
        scale = scale[:, 1:2]
    part = dequantize_codes(codes[:, columns], scale, bits, dtype)
    assert torch.equal(part, whole[:, 64:128])


@needs_kernels
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_tokens(tokens: int, shape: tuple[int, int], kind: str, dtype: torch.dtype) -> None:
    from ptkit.engine.frozen_kernels import few_tokens, tiling

    codes, scale, bits = quantized(kind, *shape)
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(tokens, shape[1], generator=draw).to(DEVICE, dtype)
    expected = x.double() @ dequantize(codes, scale, bits, torch.float64).t()
    group = shape[1] // scale.shape[1] if scale.dim() == 2 else None
    cut = tiling(*shape, group)
    for splits in (1, 3):
        got = few_tokens(x, codes, scale, bits, cut._replace(splits=splits))
        assert got.dtype == dtype
        bound = EXACT[dtype] * float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=bound)


@needs_kernels
def test_the_columns_are_shared_by_as_many_programs_as_a_gpu_takes() -> None:
    """An H100 has 132 multiprocessors; ChatGLM2-6B's weights by name."""
    from ptkit.engine.frozen_kernels import tiling

    shapes = {
        "qkv": (4608, 4096),
        "gate_up": (27392, 4096),
        "down": (4096, 13696),
        "k": (256, 4096),
    }
    found = {name: tiling(*shape, None).splits for name, shape in shapes.items()}
    assert found == {"qkv": 1, "gate_up": 1, "down": 2, "k": 8}


@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operators_on_both_sides_of_the_threshold(kind: str, dtype: torch.dtype) -> None:
    codes, scale, bits = quantized(kind, 300, 1024)
    weight = dequantize(codes, scale, bits, torch.float64)
    for tokens in (1, frozen_ops.FEW_TOKENS, frozen_ops.FEW_TOKENS + 1, 500):
        x = torch.randn(2, tokens, 1024, device=DEVICE, dtype=dtype)
        g = torch.randn(2, tokens, 300, device=DEVICE, dtype=dtype)
        got = torch.ops.ptkit.quantized_linear(x, codes, scale, bits)
        back = torch.ops.ptkit.quantized_linear_backward(g, codes, scale, bits)
        for found, wanted in ((got, x.double() @ weight.t()), (back, g.double() @ weight)):
            bound = 2 * EXACT[dtype] * float(wanted.abs().max())
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=bound)


@needs_kernels
@pytest.mark.parametrize("width", [3, 1030])
def test_rows_out_of_the_hosts_memory(width: int) -> None:
    from ptkit.engine.frozen_kernels import gather_rows

    weight = torch.arange(5.0 * width).view(5, width)
    ids = torch.tensor([[4, 0, 4], [1, 2, 3]])
    rows = gather_rows(weight.pin_memory() if GPU else weight, ids.to(DEVICE))
    assert torch.equal(rows.cpu(), weight[ids])
    assert gather_rows(weight, ids[:, :0].to(DEVICE)).shape == (2, 0, width)


@pytest.mark.skipif(not GPU, reason="needs a CUDA GPU")
def test_a_small_group_goes_through_tiles() -> None:
    """Its halves would be shorter than what tensor cores sum over."""
    codes, scale = (tensor.cuda() for tensor in quantize_groups(torch.randn(40, 16), 128))
    x = torch.randn(3, 16, device="cuda")
    expected = x @ dequantize(codes, scale, 4, torch.float32).t()
    got = torch.ops.ptkit.quantized_linear(x, codes, scale, 4)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
