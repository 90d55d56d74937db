"""The same numbers on a GPU: packed against padded, against the CPU, and in half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ptkit_tasks.generation import Generation

from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.session import run
from ptkit.engine.train import Trainable, step_gradients
from ptkit.recipe import Recipe, TrainSettings
from ptkit.records import IGNORE, Row, Sampling
from ptkit.rowstore import RowStore
from ptkit.testing import TinyBackbone

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
HEAD = Generation(Generation.Settings())


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def rows() -> RowStore:
    draw = torch.Generator().manual_seed(5)
    store = RowStore()
    for index in range(16):
        length = 3 + index * 7 % 40
        tokens = torch.randint(5, 30, (length,), generator=draw).tolist()
        half = length // 2
        store.append([Row(tuple(tokens), (*[IGNORE] * half, *tokens[half:]))])
    return store


def step(
    device: str, dtype: str, layout: str, budget: int = 10_000, *, checkpointing: bool = False
) -> tuple[float, torch.Tensor]:
    backbone = TinyBackbone(TinyBackbone.Settings(layers=3))
    model = Model(backbone.load(device, dtype), backbone.geometry, pad_id=0, eos_id=2)
    model.layout = layout  # type: ignore[assignment]
    if checkpointing:
        model.enable_checkpointing()
    prefix = PrefixEncoder(backbone.geometry, 5)
    prefix.initialize(std=1.0, seed=1)
    trainable = Trainable(prefix.to(device))
    settings = TrainSettings(max_steps=1, tokens_per_micro_batch=budget)
    groups = [[i] for i in range(16)]
    totals = step_gradients(model, trainable, HEAD, rows(), groups, settings, step=0)
    gradient = prefix.embedding.weight.grad
    assert gradient is not None
    return totals.loss, gradient.float().cpu()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("budget", [10_000, 60])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_float32_equals_the_cpu(layout: str, budget: int, checkpointing: bool) -> None:
    loss, gradient = step("cpu", "float32", "padded")
    got, found = step("cuda", "float32", layout, budget, checkpointing=checkpointing)
    assert got == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_points_the_same_way(dtype: str) -> None:
    _, gradient = step("cpu", "float32", "padded")
    _, found = step("cuda", dtype, "packed")
    cosine = torch.cosine_similarity(found.flatten(), gradient.flatten(), dim=0)
    assert float(cosine) > 0.999


def test_greedy_ids_equal_the_cpus() -> None:
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
    answers = []
    for device in ("cpu", "cuda"):
        backbone = TinyBackbone()
        model = Model(backbone.load(device, "float32"), backbone.geometry, pad_id=0, eos_id=2)
        prefix = PrefixEncoder(backbone.geometry, 4)
        prefix.initialize(std=1.0, seed=3)
        model.set_prefix(prefix.to(device)())
        for batch_tokens in (1, 10_000):
            answers.append(model.generate(prompts, Sampling(12), batch_tokens=batch_tokens))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_run_on_the_gpu(make_recipe: Callable[..., Recipe], tmp_path: Path, dtype: str) -> None:
    recipe = make_recipe(backbone={"dtype": dtype})
    result = run(recipe, out=tmp_path / "run", device="cuda")
    assert set(result.scores) == {"before", "constant", "after"}
