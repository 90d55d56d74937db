"""The kernels of packed attention, against attention row by row in float64: on a GPU if there is
one, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ptkit_chatglm2
import pytest
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_tasks.generation import Generation
from torch import Tensor

from ptkit.engine import model as model_module
from ptkit.engine.attention import NO_PREFIX, Merged, PackedRows, Scores
from ptkit.engine.blocks import attend_blocks, attend_merged_blocks, block_table
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.train import Trainable, step_gradients
from ptkit.models import Backbone
from ptkit.recipe import TrainSettings
from ptkit.records import IGNORE, Row
from ptkit.rowstore import RowStore
from ptkit.settings import SourcePath
from ptkit.testing import TinyBackbone

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytest.importorskip("triton")
packed = pytest.importorskip("ptkit.engine.packed_attention")

CASES = {
    "causal": ([5, 70, 1], [0, 0, 0], 4, 2, 16, 10, Scores(0.25), True),
    "both-ways": ([66, 3], [0, NO_PREFIX], 4, 1, 32, 70, Scores(0.2), False),
    "odd-size": ([20, 9], [0, 0], 2, 2, 24, 5, Scores(0.2), True),
    "window": ([80, 12], [1, 0], 2, 2, 16, 5, Scores(0.25, window=7), True),
    "window-both-ways": ([80, 12], [0, NO_PREFIX], 2, 2, 16, 5, Scores(0.25, window=7), False),
    "softcap": ([9, 70], [0, 0], 4, 2, 16, 10, Scores(0.25, softcap=5.0), True),
    "no-prefix": ([9, 4], [NO_PREFIX, NO_PREFIX], 2, 1, 16, 0, Scores(0.25), True),
    "two-prefixes": ([9, 4, 3], [1, NO_PREFIX, 0], 2, 1, 16, 6, Scores(0.25), True),
}


on_gpu = pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA GPU")
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_type = pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float32, 2e-6),
        pytest.param(torch.bfloat16, 1e-2, marks=on_gpu),
    ],
)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-9))


@every_case
@every_type
def test_values_and_gradients(case: Any, dtype: torch.dtype, bound: float) -> None:
    lengths, prefixes, heads, groups, size, p, scores, causal = case
    draw = torch.Generator().manual_seed(0)
    total = sum(lengths)
    shapes = [(1, heads, total, size), *[(1, groups, total, size)] * 2, *[(2, groups, p, size)] * 2]
    inputs = [torch.randn(shape, generator=draw).to(DEVICE, dtype) for shape in shapes]
    upstream = torch.randn(1, total, heads, size, generator=draw).to(DEVICE, dtype)

    exact = [t.double().requires_grad_() for t in inputs]
    wanted = PackedRows(lengths, prefixes, causal=causal).attend(
        *exact[:3], tuple(exact[3:]), scores
    )
    wanted_gradients = torch.autograd.grad(wanted, exact, upstream.double(), allow_unused=True)

    given = [t.requires_grad_() for t in inputs]
    blocks = block_table(lengths, prefixes).to(DEVICE)
    found = attend_blocks(*given[:3], tuple(given[3:]), scores, blocks, causal=causal)
    gradients = torch.autograd.grad(found, given, upstream)

    assert relative(found, wanted) < bound
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert relative(got, torch.zeros_like(got) if want is None else want) < bound


every_way = pytest.mark.parametrize(
    ("by_blocks", "dtype", "bound"),
    [
        (False, torch.float32, 2e-6),
        (True, torch.float32, 2e-6),
        pytest.param(True, torch.bfloat16, 1e-2, marks=on_gpu),
    ],
)
STEMS = {  # a stem, the lengths of the rows behind it, heads, groups, head size, prefix
    "causal": (7, [5, 70, 1], 4, 2, 16, 10, Scores(0.25)),
    "one-token": (1, [3, 2], 2, 1, 16, 4, Scores(0.25)),
    "two-blocks": (70, [66, 3], 2, 2, 24, 65, Scores(0.2)),
    "window": (9, [5, 80], 2, 1, 16, 5, Scores(0.25, window=7)),
    "wide-window": (9, [5, 80], 2, 1, 16, 5, Scores(0.25, window=20)),
    "softcap": (4, [9, 70], 4, 2, 16, 10, Scores(0.25, softcap=5.0)),
}


def whole(tokens: Tensor, stem: int, lengths: list[int], dim: int) -> Tensor:
    """Every row with a copy of what all begin with."""
    first, *rest = tokens.split((stem, *lengths), dim)
    return torch.cat([part for row in rest for part in (first, row)], dim)


def without_copies(tokens: Tensor, stem: int, lengths: list[int], dim: int) -> Tensor:
    """What `whole` was made of, of what a stem's copies have in common."""
    rows = tokens.split([stem + length for length in lengths], dim)
    first = rows[0].narrow(dim, 0, stem)
    rest = [row.narrow(dim, stem, row.shape[dim] - stem) for row in rows]
    return torch.cat((first, *rest), dim)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("name", STEMS)
@every_way
def test_a_stem_is_as_if_every_row_began_with_a_copy(
    name: str, dtype: torch.dtype, bound: float, *, by_blocks: bool, merged: bool
) -> None:
    """Behind a second prefix that no row has, and with blocks of no work at the end."""
    stem, lengths, heads, groups, size, p, scores = STEMS[name]
    rows = [stem, *lengths]
    total, full = sum(rows), [stem + length for length in lengths]
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, heads, total, size), *[(1, groups, total, size)] * 2]
    if merged:
        shapes = [(1, total, (heads + 2 * groups) * size)]
    shapes += [(2, groups, p, size)] * 2
    inputs = [torch.randn(shape, generator=draw).to(DEVICE, dtype) for shape in shapes]
    upstream = torch.randn(1, total, heads, size, generator=draw).to(DEVICE, dtype)
    chosen = (1,) * len(full)
    tables = [t.to(DEVICE, dtype) for t in rotary_tables(full, size // 4)]

    exact = [t.double().requires_grad_() for t in inputs]
    copied = [whole(t, stem, lengths, 1 if merged else 2) for t in exact[:-2]]
    layout, prefix = PackedRows(full, chosen, causal=True), (exact[-2], exact[-1])
    if merged:
        of_all = Merged(copied[0], heads, groups, *[t.double() for t in tables])
        found = layout.attend_merged(of_all, prefix, scores)
    else:
        found = layout.attend(*copied, prefix, scores)
    wanted = without_copies(found, stem, lengths, 1)
    wanted_gradients = torch.autograd.grad(wanted, exact, upstream.double())

    given = [t.requires_grad_() for t in inputs]
    blocks = block_table(rows, (1,) * len(rows))
    idle = torch.tensor([[total, total, total, -1 - len(blocks)]], dtype=torch.int32)
    blocks = torch.cat((blocks, idle)).to(DEVICE) if by_blocks else None
    layout = PackedRows(rows, (1,) * len(rows), causal=True, blocks=blocks, stem=stem)
    prefix = (given[-2], given[-1])
    if merged:
        tables = [without_copies(t, stem, lengths, 1) for t in tables]
        found = layout.attend_merged(Merged(given[0], heads, groups, *tables), prefix, scores)
    else:
        found = layout.attend(*given[:3], prefix, scores)
    gradients = torch.autograd.grad(found, given, upstream)

    assert relative(found, wanted) < bound
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert relative(got, want) < bound


@pytest.mark.parametrize("name", ["causal", "both-ways", "two-prefixes"])
def test_blocks_of_no_work_change_nothing(name: str) -> None:
    lengths, prefixes, heads, groups, size, p, scores, causal = CASES[name]
    total = sum(lengths)
    shapes = [(1, heads, total, size), *[(1, groups, total, size)] * 2, *[(2, groups, p, size)] * 2]
    given = [torch.randn(shape, device=DEVICE).requires_grad_() for shape in shapes]
    blocks = block_table(lengths, prefixes)
    idle = torch.tensor([[total, total, total, -1 - len(blocks)]] * 3, dtype=torch.int32)
    found = []
    for table in (blocks, torch.cat((blocks, idle))):
        out = attend_blocks(
            *given[:3], (given[3], given[4]), scores, table.to(DEVICE), causal=causal
        )
        found.append((out, *torch.autograd.grad(out.sin().sum(), given)))
    for without, behind in zip(*found, strict=True):
        # the greater number of blocks may split sums otherwise
        torch.testing.assert_close(behind, without, atol=1e-5, rtol=1e-5)


def rotary_tables(lengths: Any, pairs: int) -> tuple[Tensor, Tensor]:
    """[1, t, 2·pairs], in equal halves: cosines and sines of positions 0, 1, … in each row."""
    positions = torch.cat([torch.arange(length) for length in lengths]).double()
    angles = positions[:, None] * 10.0 ** -torch.arange(pairs, dtype=torch.float64).repeat(2)
    return angles.cos()[None], angles.sin()[None]


@every_case
@every_type
def test_what_one_linear_makes(case: Any, dtype: torch.dtype, bound: float) -> None:
    """The rotary embedding in the operator, against it in torch and attention row by row."""
    lengths, prefixes, heads, groups, size, p, scores, causal = case
    draw = torch.Generator().manual_seed(0)
    total = sum(lengths)
    shapes = [(1, total, (heads + 2 * groups) * size), *[(2, groups, p, size)] * 2]
    inputs = [torch.randn(shape, generator=draw).to(DEVICE, dtype) for shape in shapes]
    upstream = torch.randn(1, total, heads, size, generator=draw).to(DEVICE, dtype)
    tables = [t.to(DEVICE, dtype) for t in rotary_tables(lengths, size // 4)]

    exact = [t.double().requires_grad_() for t in inputs]
    merged = Merged(exact[0], heads, groups, *[t.double() for t in tables])
    wanted = PackedRows(lengths, prefixes, causal=causal).attend_merged(
        merged, (exact[1], exact[2]), scores
    )
    wanted_gradients = torch.autograd.grad(wanted, exact, upstream.double(), allow_unused=True)

    given = [t.requires_grad_() for t in inputs]
    blocks = block_table(lengths, prefixes).to(DEVICE)
    merged = Merged(given[0], heads, groups, *tables)
    found = attend_merged_blocks(merged, (given[1], given[2]), scores, blocks, causal=causal)
    gradients = torch.autograd.grad(found, given, upstream)

    assert relative(found, wanted) < bound
    for got, want in zip(gradients, wanted_gradients, strict=True):
        assert relative(got, torch.zeros_like(got) if want is None else want) < bound


def test_nothing_below_the_first_prefix_gets_a_gradient() -> None:
    query, key, value = (torch.randn(1, 2, 6, 16, device=DEVICE) for _ in range(3))
    prefix = torch.randn(2, 1, 2, 3, 16, device=DEVICE).requires_grad_()
    blocks = block_table([6], [0]).to(DEVICE)
    calls = []
    keys = packed.keys_backward

    class Watched:
        def __getitem__(self, grid: Any) -> Any:
            calls.append(grid)
            return keys[grid]

    packed.keys_backward = Watched()
    try:
        for wanted in (query, prefix):
            pair = (prefix[0], prefix[1])
            wanted.requires_grad_()
            out = attend_blocks(query, key, value, pair, Scores(0.25), blocks, causal=True)
            out.sum().backward()
            query.requires_grad_(False)
            assert wanted.grad is not None
            assert bool(wanted.grad.count_nonzero())
            calls.append("next")
    finally:
        packed.keys_backward = keys
    assert [call == "next" for call in calls] == [False, True, True]


HEAD = Generation(Generation.Settings())
LENGTHS = ((3, 9, 4), (12, 5), (2, 2, 6, 7), (8, 1))
"""Of the rows of four steps."""


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def choose(use: bool) -> None:
        monkeypatch.setattr(model_module, "has_kernels", lambda device: use)

    return choose


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


TINY = TinyBackbone(TinyBackbone.Settings(layers=5))
RANDOM = Path(ptkit_chatglm2.__file__).parent / "random" / "chatglm2-tiny"
CHATGLM2 = ChatGLM2(ChatGLM2.Settings(source=SourcePath("chatglm2-tiny", RANDOM)))


def steps(
    recomputed: int,
    compiler: Any = None,
    each: Callable[[], None] = lambda: None,
    backbone: Backbone = TINY,
) -> list[tuple[float, Tensor]]:
    """Loss and prefix gradient of four steps of different lengths."""
    model = Model(backbone.load(DEVICE.type, "float32"), backbone.geometry, pad_id=0, eos_id=2)
    if compiler is not None:
        model.compile_layers(backend=compiler)
    model.recompute_layers(recomputed)
    draw = torch.Generator().manual_seed(3)
    results = []
    for lengths in LENGTHS:
        store = RowStore()
        for length in lengths:
            tokens = torch.randint(5, 30, (length,), generator=draw).tolist()
            store.append([Row(tuple(tokens), (IGNORE, *tokens[1:]))])
        prefix = PrefixEncoder(backbone.geometry, 5)
        prefix.initialize(std=1.0, seed=1)
        trainable = Trainable(prefix.to(DEVICE))
        groups = [[index] for index in range(len(lengths))]
        settings = TrainSettings(max_steps=1, tokens_per_micro_batch=1000)
        totals = step_gradients(model, trainable, HEAD, store, groups, settings, step=0)
        gradient = prefix.embedding.weight.grad
        assert gradient is not None
        results.append((totals.loss, gradient.clone()))
        each()
    return results


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("backbone", "recomputed"), [(TINY, 0), (TINY, 2), (TINY, 5), (CHATGLM2, 1)]
)
def test_compiled_steps_equal_plain_ones_and_share_few_graphs(
    backbone: Backbone, recomputed: int, by_kernels: Callable[[bool], None]
) -> None:
    by_kernels(False)
    wanted = steps(recomputed=0, backbone=backbone)
    by_kernels(True)
    graphs: list[Any] = []
    counts: list[int] = []
    floats: list[Any] = []  # that would be worked on by the host

    def counted(graph: Any, inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        graphs.append(graph)
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        floats.extend(each for each in inputs if isinstance(each, float | torch.SymFloat))
        floats.extend(each for each in tensors if each.dtype == torch.float64 and not each.dim())
        return lookup_backend("aot_eager")(graph, inputs)

    found = steps(recomputed, counted, lambda: counts.append(len(graphs)), backbone)
    for (loss, gradient), (plain, exact) in zip(found, wanted, strict=True):
        assert loss == pytest.approx(plain, abs=1e-5)
        torch.testing.assert_close(gradient, exact, atol=1e-6, rtol=0)
    # two kinds of layers at least, with a gradient below and without; never one a layer or a step
    assert 2 <= counts[0] <= 4
    assert counts == [counts[0]] * 4
    assert not floats
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("recomputed", [0, 1, 5])
def test_recomputed_layers_keep_less_and_change_nothing(recomputed: int) -> None:
    def kept(count: int) -> tuple[int, Tensor]:
        sizes = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = steps(count)
        return sum(sizes), found[0][1]

    most, wanted = kept(0)
    size, gradient = kept(recomputed)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)
    assert size == most if recomputed == 0 else size < most
