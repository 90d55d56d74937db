"""One optimiser step: the same gradients however it is split, and nothing frozen trains."""

from __future__ import annotations

import math

import pytest
import torch
from ptkit_tasks.classification import SequenceClassification
from ptkit_tasks.generation import Generation

from ptkit.batching import Order
from ptkit.components import Loss
from ptkit.engine.headloss import combine
from ptkit.engine.model import Model
from ptkit.engine.optimizing import learning_rate, make_optimizer
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.train import (
    Progress,
    Trainable,
    Training,
    Watcher,
    step_generator,
    step_gradients,
    train,
)
from ptkit.recipe import TrainSettings
from ptkit.records import IGNORE, Geometry, HeadInfo, Row
from ptkit.rowstore import RowStore
from ptkit.testing import TinyBackbone, tiny_model

PREFIX = 3
HEAD = Generation(Generation.Settings())


def rows(count: int = 16, weight: float = 1.0) -> RowStore:
    """Rows of 3 to 12 tokens, the second half of each trained on."""
    draw = torch.Generator().manual_seed(5)
    store = RowStore()
    for index in range(count):
        length = 3 + index * 7 % 10
        tokens = torch.randint(5, 30, (length,), generator=draw).tolist()
        half = length // 2
        store.append([Row(tuple(tokens), (*[IGNORE] * half, *tokens[half:]))], weight)
    return store


def fresh(projection: int | None = None, dropout: float = 0.1) -> tuple[Model, Trainable]:
    backbone = TinyBackbone(TinyBackbone.Settings())
    model = tiny_model(backbone)
    prefix = PrefixEncoder(
        backbone.geometry, PREFIX, projection_hidden_size=projection, dropout=dropout
    )
    prefix.initialize(std=1.0, seed=1)
    return model, Trainable(prefix)


def gradients(
    *,
    budget: int,
    layout: str = "packed",
    checkpointing: bool = False,
    average: str = "token",
    projection: int | None = None,
) -> tuple[float, dict[str, torch.Tensor], int]:
    model, trainable = fresh(projection)
    model.layout = layout  # type: ignore[assignment]
    if checkpointing:
        model.enable_checkpointing()
    settings = TrainSettings(
        max_steps=5, tokens_per_micro_batch=budget, loss_average=average, seed=9
    )
    groups = [[index] for index in range(16)]
    totals = step_gradients(model, trainable, HEAD, rows(), groups, settings, step=2)
    found = {n: p.grad for n, p in trainable.named_parameters().items() if p.grad is not None}
    return totals.loss, found, totals.micro_batches


# token budgets that split the sixteen rows into 1, about 4, and 16 micro-batches
@pytest.mark.parametrize(("average", "projection"), [("token", None), ("row", 8)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("budget", [10_000, 40, 1])
def test_a_step_does_not_depend_on_its_split(
    budget: int, layout: str, checkpointing: bool, average: str, projection: int | None
) -> None:
    loss, reference, pieces = gradients(budget=10_000, average=average, projection=projection)
    assert pieces == 1
    got_loss, got, pieces = gradients(
        budget=budget,
        layout=layout,
        checkpointing=checkpointing,
        average=average,
        projection=projection,
    )
    assert pieces == {10_000: 1, 1: 16}.get(budget, pieces)
    assert 1 < pieces < 16 or budget != 40
    assert got_loss == pytest.approx(loss, abs=1e-6)
    assert set(got) == set(reference)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-6, rtol=0)


def test_checkpointing_recomputes_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's attention runs once in the forward pass, and once more in the backward pass."""
    model, trainable = fresh()
    calls = []
    for attention in model.attentions:
        attention.register_forward_hook(lambda *_: calls.append(1))
    settings = TrainSettings(max_steps=1)
    for checkpointing, times in [(False, 1), (True, 2)]:
        calls.clear()
        if checkpointing:
            model.enable_checkpointing()
        step_gradients(model, trainable, HEAD, rows(2), [[0], [1]], settings, step=0)
        assert len(calls) == times * len(model.attentions)


def test_the_loss_is_the_mean_over_tokens_or_rows() -> None:
    """The engine's loss against plain logits of each row alone, without its batching."""
    model, trainable = fresh(dropout=0.0)
    store = rows(4)
    model.set_prefix(trainable.keys_and_values())
    sums, counts = [], []
    for row in store:
        logits = model.logits(row.tokens)[:-1]
        targets = torch.tensor(row.labels[1:])
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        sums.append(float(losses[targets != IGNORE].sum()))
        counts.append(int((targets != IGNORE).sum()))
    wanted = {
        "token": sum(sums) / sum(counts),
        "row": sum(s / c for s, c in zip(sums, counts, strict=True)) / 4,
    }
    for average, value in wanted.items():
        settings = TrainSettings(max_steps=1, loss_average=average)
        totals = step_gradients(
            model, trainable, HEAD, store, [[i] for i in range(4)], settings, step=0
        )
        assert totals.loss == pytest.approx(value, abs=1e-5)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    """Central differences of the whole step's loss, in float64 but for the norms' float32."""
    model, trainable = fresh(dropout=0.0)
    model.body.double()
    model.lm_head.double()
    trainable.prefix.double()
    settings = TrainSettings(max_steps=1, tokens_per_micro_batch=20)
    store, groups = rows(4), [[i] for i in range(4)]

    def loss() -> float:
        return step_gradients(model, trainable, HEAD, store, groups, settings, step=0).loss

    loss()
    weight = trainable.prefix.embedding.weight
    gradient = weight.grad.clone()
    for place in [(0, 0), (1, 7), (2, -1)]:
        values = []
        for nudge in (1e-2, -2e-2):
            with torch.no_grad():
                weight[place] += nudge
            values.append(loss())
        with torch.no_grad():
            weight[place] += 1e-2
        slope = (values[0] - values[1]) / 2e-2
        assert slope == pytest.approx(float(gradient[place]), rel=2e-3)


def test_all_of_the_adapter_and_nothing_else_trains() -> None:
    model, trainable = fresh()
    with torch.no_grad():  # an evaluation before must leave no trace
        model.set_prefix(trainable.keys_and_values())
        model.states(list(rows(2)))
    before = {n: p.clone() for n, p in model.body.named_parameters()}
    settings = TrainSettings(max_steps=1)
    optimizer = make_optimizer(trainable, settings)
    step_gradients(model, trainable, HEAD, rows(2), [[0], [1]], settings, step=0)
    optimizer.step()
    for name, parameter in trainable.named_parameters().items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for module in model.frozen_modules():
        for name, parameter in module.named_parameters():
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
    for name, parameter in model.body.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert not any(module.training for module in model.body.modules())


def test_the_published_geometry_has_1835008_parameters() -> None:
    geometry = Geometry(28, 32, 2, 128, 4096, 65024, 32768, 6_243_584_000)
    assert geometry.prefix_parameters(128) == 1_835_008
    assert Trainable(PrefixEncoder(geometry, 128)).count() == 1_835_008
    with torch.device("meta"):
        projected = PrefixEncoder(geometry, 128, projection_hidden_size=4096)
    assert Trainable(projected).count() == 119_293_952


def test_record_weights_scale_a_records_share() -> None:
    """A record of weight 2 counts as if it stood there twice."""
    heavy, twice = RowStore(), RowStore()
    for index, row in enumerate(rows(3)):
        heavy.append([row.row], weight=2.0 if index == 1 else 1.0)
        for _ in range(2 if index == 1 else 1):
            twice.append([row.row])
    for average in ("token", "row"):
        results = []
        for store in (heavy, twice):
            model, trainable = fresh(dropout=0.0)
            settings = TrainSettings(max_steps=1, loss_average=average)
            groups = [[i] for i in range(len(store))]
            totals = step_gradients(model, trainable, HEAD, store, groups, settings, step=0)
            results.append((totals.loss, trainable.prefix.embedding.weight.grad))
        assert results[0][0] == pytest.approx(results[1][0], abs=1e-6)
        torch.testing.assert_close(results[0][1], results[1][1], atol=1e-6, rtol=0)


def test_combine_by_hand() -> None:
    loss = Loss(torch.tensor([6.0, 1.0, 0.0]), torch.tensor([3.0, 1.0, 0.0]))
    weights = torch.tensor([1.0, 2.0, 1.0])
    assert [float(x) for x in combine(loss, weights, "token")] == [8.0, 5.0]
    assert [float(x) for x in combine(loss, weights, "row")] == [4.0, 3.0]


def test_dropout_is_keyed_by_seed_and_step() -> None:
    cpu = torch.device("cpu")
    draws = [
        torch.rand(4, generator=step_generator(seed, step, cpu))
        for seed, step in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", [1 / 3, 2 / 3, *[(1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]]),
    ],
)
def test_schedules(schedule: str, rates: list[float]) -> None:
    settings = TrainSettings(max_steps=6, warmup_steps=2, schedule=schedule, learning_rate=1.0)
    assert [learning_rate(settings, step, 6) for step in range(6)] == pytest.approx(rates)


def test_the_head_has_a_learning_rate_of_its_own() -> None:
    """The first step of AdamW moves every weight that has a gradient by the learning rate."""
    backbone = TinyBackbone(TinyBackbone.Settings(causal=False))
    head = SequenceClassification(SequenceClassification.Settings(dropout=0.0), ("a", "b"))
    store = RowStore()
    for label in (0, 1):
        store.append([Row((2, 5, 6 + label), (label,))])
    module = head.build(HeadInfo(32, backbone.geometry.vocab_size, False))
    trainable = Trainable(PrefixEncoder(backbone.geometry, 2), module)
    trainable.prefix.initialize(std=1.0, seed=0)
    before = {name: p.detach().clone() for name, p in trainable.named_parameters().items()}
    settings = TrainSettings(
        max_steps=1, batch_size=2, learning_rate=2e-2, head_learning_rate=1e-3, clip_norm=0
    )
    training = Training(
        tiny_model(backbone),
        trainable,
        head,
        store,
        settings,
        Order(2, 2, seed=0),
        1,
        make_optimizer(trainable, settings),
    )
    train(training, Watcher(), Progress())
    for name, rate in (("prefix.embedding.weight", 2e-2), ("head.output.weight", 1e-3)):
        moved = (trainable.named_parameters()[name].detach() - before[name]).abs()
        assert float(moved.max()) == pytest.approx(rate, rel=1e-2)
