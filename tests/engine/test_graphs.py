"""When steps are compiled and replayed, how packs are padded for it, and what replays give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ptkit.engine import fitting
from ptkit.engine import graphs as graphs_module
from ptkit.engine import model as model_module
from ptkit.engine.blocks import block_table
from ptkit.engine.fitting import STEPS_WORTH_COMPILING, compiles
from ptkit.engine.graphs import BLOCKS, TOKENS, Pack, padded
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.session import run
from ptkit.recipe import Recipe, TrainSettings
from ptkit.records import EncodedRow, Row
from ptkit.testing import TinyBackbone

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("setting", "steps", "kernels", "chosen"),
    [
        (None, STEPS_WORTH_COMPILING, True, True),
        (None, STEPS_WORTH_COMPILING - 1, True, False),
        (None, None, True, True),
        (None, None, False, False),
        (True, 1, True, True),
        (True, 1, False, False),
        (False, 10_000, True, False),
    ],
)
def test_what_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
    setting: bool | None,
    steps: int | None,
    kernels: bool,
    chosen: bool,
) -> None:
    monkeypatch.setattr(fitting, "has_kernels", lambda device: kernels)
    assert compiles(TrainSettings(max_steps=1, compile=setting), steps, CPU) is chosen


@pytest.mark.parametrize("setting", [True, False])
def test_a_run_compiles_and_gives_the_graphs_back(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: bool,
) -> None:
    monkeypatch.setattr(fitting, "has_kernels", lambda device: True)
    called: list[str] = []
    for name in ("compile_layers", "use_graphs", "drop_graphs"):
        monkeypatch.setattr(Model, name, lambda self, _name=name: called.append(_name))
    recipe = make_recipe(train={"compile": setting})
    run(recipe, out=tmp_path / "run", device="cpu")
    assert called == [*(["compile_layers", "use_graphs"] if setting else []), "drop_graphs"]


def pack_of(lengths: tuple[int, ...]) -> Pack:
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Pack(positions + 5, positions, block_table(lengths, (0,) * len(lengths)))


@pytest.mark.parametrize("lengths", [(3, 9), (TOKENS,), (70, 1, 2), (1,) * 65])
def test_packs_are_padded_to_few_sizes(lengths: tuple[int, ...]) -> None:
    pack = pack_of(lengths)
    found = padded(pack)
    assert found.blocks is not None
    assert pack.blocks is not None
    tokens, total = sum(lengths), len(found.ids)
    assert total % TOKENS == 0
    assert tokens <= total < tokens + TOKENS
    assert len(found.positions) == total
    assert len(found.blocks) % BLOCKS == 0
    assert torch.equal(found.ids[:tokens], pack.ids)
    assert torch.equal(found.blocks[: len(pack.blocks)], pack.blocks)
    # every token is in one block, the added ones in rows without a prefix
    covered = torch.zeros(total, dtype=torch.long)
    working = 0
    for start, end, first, prefix in found.blocks.tolist():
        covered[start : min(end, start + 64)] += 1
        working += start < end
        assert first >= tokens or prefix == 0
        assert first < tokens or prefix == (-1 if start < end else -1 - working)
    assert covered.tolist() == [1] * total


def test_padding_changes_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(model_module, "has_kernels", lambda device: True)
    backbone = TinyBackbone(TinyBackbone.Settings(layers=2))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Model(backbone.load(device.type, "float32"), backbone.geometry, pad_id=0, eos_id=2)
    prefix = PrefixEncoder(backbone.geometry, 5)
    prefix.initialize(std=1.0, seed=1)
    stacked = prefix.to(device).stacked()
    pack = pack_of((3, 9, 4))
    with torch.no_grad():
        wanted = model._pass_with(pack.to(device), stacked)
        found = model._pass_with(padded(pack).to(device), stacked)
    assert bool(found.isfinite().all())
    # a GPU multiplies other sizes in another order
    close = 1e-6 if device == CPU else 1e-5
    torch.testing.assert_close(found[:16], wanted, atol=close, rtol=0)


class Recorded(TorchDispatchMode):
    """Stands for a CUDA graph on the CPU: keeps the operators of a pass, and runs them again on the
    same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                again = func(*args, **kwargs)
                pairs = zip(tree_leaves(made), tree_leaves(again), strict=True)
                for old, new in pairs:
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.detach().copy_(new)


@pytest.fixture
def graphs_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU, or else the CPU with `Recorded` in the place of CUDA graphs, and the kernels in
    Triton's interpreter."""
    monkeypatch.setattr(graphs_module, "TOKENS", 8)
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.importorskip("triton")
    monkeypatch.setattr(model_module, "has_kernels", lambda device: True)
    monkeypatch.setattr(graphs_module, "BLOCKS", 1)  # the interpreter is slow
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return CPU


@pytest.mark.parametrize("shared", [0, 2])
def test_replayed_graphs_give_the_same_states_and_gradients(
    graphs_device: torch.device, shared: int
) -> None:
    """Packs of several sizes, one larger than the first left room for, and a shorter prefix;
    ``shared``: tokens that all rows of a pack begin with."""
    backbone = TinyBackbone(TinyBackbone.Settings(layers=1))
    loaded = backbone.load(graphs_device.type, "float32")
    model = Model(loaded, backbone.geometry, pad_id=0, eos_id=2)

    def passes() -> list[tuple[Tensor, Tensor]]:
        found = []
        for index, (length, *lengths) in enumerate([(5, 3, 9), (5, 30), (5, 4, 7), (4, 3, 9)]):
            prefix = PrefixEncoder(backbone.geometry, length)
            prefix.initialize(std=1.0, seed=index)
            stacked = prefix.to(graphs_device).stacked().detach().requires_grad_()
            rows = [
                EncodedRow(Row(tuple(5 + (index + i) % 50 for i in range(n))), 0) for n in lengths
            ]
            model.stem = rows[0].tokens[:shared]
            with model.using(stacked):
                hidden = model.states(rows).hidden
                wanted = torch.arange(hidden.numel()).sin().view_as(hidden).to(hidden)
                (gradient,) = torch.autograd.grad((hidden * wanted).sum(), stacked)
            assert float(gradient.norm()) > 1e-3
            found.append((hidden.detach().clone(), gradient))
        return found

    wanted = passes()
    model.use_graphs()
    found = passes()
    assert model._graphs is not None
    assert len(model._graphs) == 3
    assert {graph.pack.stem for graph in model._graphs._graphs.values()} == {shared}
    for pair, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(pair, exact, atol=1e-4, rtol=1e-5)
