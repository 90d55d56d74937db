"""What all rows begin with, computed once, against every row computed whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ptkit_chatglm2
import pytest
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_tasks.generation import Generation
from torch import Tensor

from ptkit.batching import Order, shared_stem
from ptkit.engine import model as model_module
from ptkit.engine.feeding import Rows
from ptkit.engine.fitting import set_up
from ptkit.engine.model import Model
from ptkit.engine.optimizing import make_optimizer
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.stem import share, spread
from ptkit.engine.train import Trainable, Training, step_gradients
from ptkit.models import Backbone
from ptkit.recipe import TrainSettings
from ptkit.records import IGNORE, EncodedRow, Row
from ptkit.rowstore import SHORTEST_STEM, RowStore
from ptkit.settings import SourcePath
from ptkit.testing import TinyBackbone

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEM = (9, 5, 7, 6, 8)
RANDOM = Path(ptkit_chatglm2.__file__).parent / "random" / "chatglm2-tiny"
BACKBONES = {
    "tiny": TinyBackbone(TinyBackbone.Settings(layers=2)),
    "chatglm2": ChatGLM2(ChatGLM2.Settings(source=SourcePath("chatglm2-tiny", RANDOM))),
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
HEAD = Generation(Generation.Settings())


def rows(*lengths: int, stem: tuple[int, ...] = STEM) -> list[EncodedRow]:
    """Rows of ``stem`` and as many tokens more; all of these are trained on."""
    draw = torch.Generator().manual_seed(len(lengths))
    made = []
    for record, length in enumerate(lengths):
        own = torch.randint(10, 30, (length,), generator=draw).tolist()
        tokens = (*stem, *own)
        made.append(EncodedRow(Row(tokens, (*[IGNORE] * len(stem), *own)), record))
    return made


def tuned(backbone: Backbone, stem: tuple[int, ...] = STEM) -> tuple[Model, PrefixEncoder]:
    model = Model(backbone.load(DEVICE.type, "float32"), backbone.geometry, pad_id=0, eos_id=2)
    model.stem = stem
    prefix = PrefixEncoder(backbone.geometry, 6)
    prefix.initialize(std=1.0, seed=1)
    return model, prefix.to(DEVICE)


@pytest.fixture(params=["rows", "kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention row by row, and by kernels."""
    if request.param == "kernels":
        pytest.importorskip("triton")
    monkeypatch.setattr(model_module, "has_kernels", lambda device: request.param == "kernels")


def passed(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each pass from now on."""
    counts: list[int] = []
    forward = model._forward

    def counted(ids: Tensor, *others: Any) -> Tensor:
        counts.append(ids.numel())
        return forward(ids, *others)

    monkeypatch.setattr(model, "_forward", counted)
    return counts


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("lengths", [(4, 30, 1), (3,)])
@every_backbone
def test_states_and_gradients(
    backbone: Backbone, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = rows(*lengths)
    model, prefix = tuned(backbone)
    counts = passed(model, monkeypatch)
    found = []
    for stem in ((), STEM):
        model.stem = stem
        stacked = prefix.stacked().detach().requires_grad_()
        with model.using(stacked):
            hidden = model.states(given).hidden
            # states of the stem have a gradient, too, another in every row
            up = torch.linspace(-1, 1, hidden.numel(), device=DEVICE).view_as(hidden).sin()
            (gradient,) = torch.autograd.grad(hidden, stacked, up)
        found.append((hidden, gradient))
    (wanted, exact), (hidden, gradient) = found
    torch.testing.assert_close(hidden, wanted, atol=2e-5, rtol=0)
    scale = float(exact.abs().max())
    torch.testing.assert_close(gradient / scale, exact / scale, atol=2e-6, rtol=0)
    every = sum(lengths) + len(STEM) * len(lengths)
    assert counts == [every, len(STEM) + sum(lengths)]


@pytest.mark.usefixtures("way")
@every_backbone
def test_a_training_step(backbone: Backbone) -> None:
    """Split into micro-batches, with some layers computed again."""
    store = RowStore()
    for row in rows(4, 20, 1, 9, 3):
        store.append([row.row])
    assert store.stem == STEM
    results = []
    for stem in ((), STEM):
        model, prefix = tuned(backbone, stem)
        model.recompute_layers(1)
        settings = TrainSettings(max_steps=1, tokens_per_micro_batch=40)
        groups = [[index] for index in range(5)]
        totals = step_gradients(model, Trainable(prefix), HEAD, store, groups, settings, step=0)
        gradient = prefix.embedding.weight.grad
        assert gradient is not None
        assert totals.micro_batches > 1
        assert totals.tokens == sum(store.lengths)
        results.append((totals.loss, gradient))
    (loss, exact), (shared, gradient) = results
    assert shared == pytest.approx(loss, abs=1e-5)
    torch.testing.assert_close(gradient, exact, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("why", ["another row", "no prefix", "two prefixes", "nothing behind it"])
def test_where_rows_differ_they_are_computed_whole(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prefix = tuned(BACKBONES["tiny"])
    given = rows(4, 6)
    prefixes = list(prefix())
    chosen = None
    if why == "another row":
        given += rows(5, stem=(9, 5, 7, 6, 4))
    elif why == "nothing behind it":
        given.append(EncodedRow(Row(STEM), 2))
    elif why == "two prefixes":
        prefixes = [(torch.cat((k, 2 * k)), torch.cat((v, -v))) for k, v in prefixes]
        chosen = [0, 1]
    counts = passed(model, monkeypatch)
    with torch.no_grad(), model.using(None if why == "no prefix" else prefixes):
        found = model.states(given, chosen).hidden
        model.stem = ()
        wanted = model.states(given, chosen).hidden
        assert torch.equal(found, wanted)
        if why == "two prefixes":
            model.stem = STEM
            one = model.states(given, [1, 1]).hidden
            assert counts[-1] == len(STEM) + 10
            model.stem = ()
            torch.testing.assert_close(one, model.states(given, [1, 1]).hidden, atol=2e-5, rtol=0)
    assert counts[0] == counts[1] == sum(len(row.tokens) for row in given)


def test_a_model_that_looks_both_ways_gets_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prefix = tuned(TinyBackbone(TinyBackbone.Settings(layers=2, causal=False)))
    counts = passed(model, monkeypatch)
    with torch.no_grad(), model.using(prefix.stacked()):
        model.states(rows(4, 6))
    assert counts == [10 + 2 * len(STEM)]


def test_spread_is_an_index() -> None:
    """Its gradient adds up what rows have in common, as the gradient of an index does."""
    laid = share(rows(3, 1, 4), STEM)
    assert laid.places is not None
    states = torch.randn(len(laid.ids), 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(len(laid.places[0]), 3, dtype=torch.float64)
    (found,) = torch.autograd.grad(spread(states, laid, laid.places), states, upstream)
    (wanted,) = torch.autograd.grad(states[laid.places[0]], states, upstream)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)  # summed in float32


def test_laid_rows_hold_every_token() -> None:
    given = Rows(rows(3, 1, 4))
    laid = given.laid(STEM)
    assert laid.places is not None
    assert torch.equal(laid.ids[laid.places[0]], given.ids)
    assert torch.equal(laid.positions[laid.places[0]], given.positions)
    assert given.laid(STEM) is laid
    assert given.laid((1, 2)) == (given.lengths, given.ids, given.positions, 0, None)


@pytest.mark.parametrize(
    ("tokens", "stem"),
    [
        ([(1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 7)], (1, 2, 3, 4, 5)),
        ([(1, 2, 3, 4, 5, 6)] * 2, (1, 2, 3, 4, 5)),  # something is left of every row
        ([(1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5)], (1, 2, 3, 4)),
        ([(1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6)], (1, 2, 3, 4)),
        ([(1, 2, 3, 4, 5, 6), (1, 2, 3, 5, 5, 6)], ()),  # three are too few
        ([(1, 2, 3, 4, 5, 6), (2, 2, 3, 4, 5, 6)], ()),
        ([(1, 2, 3, 4, 5, 6), ()], ()),
        ([(1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 9, 9), (1, 2, 3, 4, 5, 6)], (1, 2, 3, 4)),
        ([], ()),
    ],
)
@pytest.mark.parametrize("keep", [True, False])
def test_a_store_knows_what_its_rows_begin_with(
    tokens: list[tuple[int, ...]], stem: tuple[int, ...], *, keep: bool
) -> None:
    store = RowStore(keep=keep)
    for row in tokens:
        store.append([Row(row)])
    assert store.stem == stem
    assert not stem or len(stem) >= SHORTEST_STEM


def test_a_run_tells_its_model() -> None:
    backbone = BACKBONES["tiny"]
    model, prefix = tuned(backbone, ())
    store, trainable = RowStore(), Trainable(prefix)
    for row in rows(4, 20):
        store.append([row.row])
    settings = TrainSettings(max_steps=1)
    training = Training(
        model, trainable, HEAD, store, settings, Order(2, 2, seed=0), 1,
        make_optimizer(trainable, settings),
    )  # fmt: skip
    found = set_up(training, backbone, 1000)
    assert model.stem == STEM
    (batch,) = training.data(0, 1000).batches
    assert batch.tokens == 24 + 2 * len(STEM)
    assert len(batch.rows.laid(model.stem).ids) == 24 + len(STEM)
    training.store = RowStore()
    for row in rows(4, 20, stem=()):
        training.store.append([Row((3 + row.record, *range(5, 9), *row.row.tokens))])
    whole = set_up(training, backbone, 1000)
    assert model.stem == ()
    # rows of as many tokens, all of their own
    assert whole.memory.activations > found.memory.activations


def test_what_a_run_shares() -> None:
    store = RowStore()
    for row in rows(3, 4):
        store.append([row.row])
    causal, other = (
        TinyBackbone(TinyBackbone.Settings(layers=1, causal=causal)).geometry
        for causal in (True, False)
    )
    plain, dropping = (TrainSettings(max_steps=1, backbone_dropout=share) for share in (0, 0.1))
    assert shared_stem(store, causal, plain) == STEM
    assert shared_stem(store, other, plain) == ()
    assert shared_stem(store, causal, dropping) == ()
