"""The attention kernels as a GPU's compiler takes them, which Triton's interpreter does not show: a
number that is 1 is a constant there. No GPU is needed for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ptkit.engine import kernels, rotary_kernels

sizes = dict(HEADS=4, RATIO=2, AT_ONCE=2, SPLITS=2, D=16, BD=16, BM=16, BN=16, BT=16)
sizes |= dict(CAUSAL=True, WINDOWED=True, CAPPED=True, TURNED=True, PRECISION="tf32")
pointers = {"BLOCKS": "*i32", "LSE": "*fp32", "DELTA": "*fp32", "STEM": "*fp32"}
kernel = getattr(kernels, sys.argv[1], None) or getattr(rotary_kernels, sys.argv[1])
signature, constants = {}, {}
for place, argument in enumerate(kernel.arg_names):
    if argument in ("scaling", "softcap"):
        signature[argument] = "fp32"
    elif argument in sizes or argument.islower():
        constants[place,], signature[argument] = sizes.get(argument, 1), "constexpr"
    else:
        signature[argument] = pointers.get(argument, "*bf16")
made = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
assert "ttgir" in made.asm
"""
KERNELS = ("forward", "queries_backward", "keys_backward", "prefix_backward", "turn", "turn_back")


@pytest.mark.parametrize("kernel", KERNELS)
def test_they_compile_where_every_number_is_one(kernel: str) -> None:
    pytest.importorskip("triton")
    alone = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, kernel],
        capture_output=True,
        text=True,
        env=alone,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
