"""Dropout inside the frozen model: what a row loses follows from the seed, the step and the row."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_tasks.classification import SequenceClassification
from ptkit_transformers.backbone import Encoder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel

from ptkit.batching import Order
from ptkit.engine.feeding import Rows
from ptkit.engine.graphs import Pack, padded
from ptkit.engine.model import Model
from ptkit.engine.optimizing import make_optimizer
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.rowdropout import RowDropout, identities, kept, step_keys
from ptkit.engine.session import run
from ptkit.engine.train import Progress, Trainable, Training, Watcher, step_gradients, train
from ptkit.errors import PtkitError
from ptkit.recipe import Recipe, TrainSettings
from ptkit.records import EncodedRow, HeadInfo, Row
from ptkit.rowstore import RowStore
from ptkit.settings import SourcePath
from ptkit.testing import TinyBackbone, tiny_model

HEAD = SequenceClassification(
    SequenceClassification.Settings(dropout=0.0, hidden="none"), ("no", "yes")
)
BERT = TinyBackbone(TinyBackbone.Settings(causal=False))
COUNT, STEP, SHARE = 7, 4, 0.3
SALT = 2**20  # that of a model's first dropout, of the second twice as much


def rows() -> RowStore:
    """Seven rows of 3 to 11 tokens; the last two are of one record."""
    draw = torch.Generator().manual_seed(5)
    store = RowStore()
    made = []
    for index in range(COUNT):
        tokens = torch.randint(5, 30, (3 + index * 5 % 9,), generator=draw).tolist()
        made.append(Row(tuple(tokens), (index % 2,)))
    for row in made[:-2]:
        store.append([row])
    store.append(made[-2:])
    return store


def fresh(layout: str = "packed") -> tuple[Model, Trainable]:
    model = tiny_model(BERT, layout=layout)  # type: ignore[arg-type]
    prefix = PrefixEncoder(BERT.geometry, 3, dropout=0.0)
    prefix.initialize(std=1.0, seed=1)
    module = HEAD.build(HeadInfo(32, BERT.geometry.vocab_size, causal=False))
    return model, Trainable(prefix, module)


def gradients(
    *,
    budget: int = 10_000,
    layout: str = "packed",
    recomputed: int = 0,
    share: float = SHARE,
    seed: int = 9,
    step: int = STEP,
) -> tuple[float, dict[str, Tensor]]:
    model, trainable = fresh(layout)
    model.recompute_layers(recomputed)
    settings = TrainSettings(
        max_steps=5, tokens_per_micro_batch=budget, backbone_dropout=share, seed=seed
    )
    groups = [[index] for index in range(COUNT)]
    totals = step_gradients(model, trainable, HEAD, rows(), groups, settings, step)
    found = {n: p.grad for n, p in trainable.named_parameters().items() if p.grad is not None}
    return totals.loss, found


def keys_of(row: EncodedRow, seed: int = 9, step: int = STEP) -> Tensor:
    length = len(row.tokens)
    own = identities([row], [length], torch.arange(length))
    return step_keys(own, seed, step).to(torch.int32)


# ------------------------------------------------------------------------------------ the masks


def _mixed64(value: int) -> int:
    """SplitMix64's finaliser, in numbers without end."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


def _mixed32(value: int) -> int:
    """MurmurHash3's finaliser, in numbers without end."""
    value = (value ^ value >> 16) * 0x85EBCA6B % 2**32
    value = (value ^ value >> 13) * 0xC2B2AE35 % 2**32
    return value ^ value >> 16


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def _dropped(record: int, part: int, position: int, salt: int, column: int) -> bool:
    """Whether a number is among the lowest ones, in integers that do not overflow."""
    token = _mixed64((_mixed64(_mixed64(record + 1) ^ part) + position) % 2**64)
    step = int.from_bytes(hashlib.sha256(b"backbone dropout:9:4").digest()[:8], "little")
    x = (_mixed64(token ^ step) >> 32) ^ _mixed32((column + salt) % 2**32)
    x = x * 0x7FEB352D % 2**32
    x = (x ^ (_signed(x) >> 15)) % 2**32
    x = x * 0x846CA68B % 2**32
    return _signed(x) < round(SHARE * 2**32) - 2**31


def test_a_mask_by_integers_that_do_not_overflow() -> None:
    row = EncodedRow(Row((5, 6, 7)), record=70_000, part=2)
    found = kept(keys_of(row), torch.tensor(3 * SALT, dtype=torch.int32), 40, SHARE)
    wanted = [
        [not _dropped(70_000, 2, position, 3 * SALT, column) for column in range(40)]
        for position in range(3)
    ]
    assert found.tolist() == wanted


def _many(count: int = 3000) -> tuple[Tensor, Tensor]:
    """Keys of so many tokens in rows of ten, and the salts of four modules."""
    made = [EncodedRow(Row((1,) * 10), record) for record in range(count // 10)]
    rows = Rows(made)
    keys = step_keys(rows.identities, seed=0, step=0).to(torch.int32)
    return keys, torch.arange(1, 5, dtype=torch.int32) * SALT


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_dropped_in_every_column_and_token(share: float) -> None:
    """Counts within five standard deviations of the binomial distribution, for 3,000 tokens and
    400 columns of four modules; their squares add up as those of independent draws do."""
    keys, salts = _many()
    masks = torch.stack([kept(keys, salt, 400, share) for salt in salts])  # [m, t, h]
    variance = share * (1 - share)
    total = masks.numel()
    assert abs(int(masks.sum()) - total * (1 - share)) < 5 * math.sqrt(total * variance)
    for dim in (0, 1, 2):
        counts = masks.sum(dim).double()
        n = masks.shape[dim]
        z = (counts - n * (1 - share)) / math.sqrt(n * variance)
        if n > 100:
            assert float(z.abs().max()) < 6
        # the mean square of m standard scores is 1 ± sqrt(2/m), for few draws a bit more
        assert float(z.square().mean()) == pytest.approx(1, abs=6 * math.sqrt(3 / z.numel()))


def test_masks_of_tokens_columns_and_modules_are_unlike() -> None:
    """Two masks agree in p² + (1 − p)² of their places, 0.58, as independent ones do."""
    keys, salts = _many()
    first, second = (kept(keys, salt, 400, SHARE) for salt in salts[:2])
    beside = [
        (first, second),
        (first[1:], first[:-1]),
        (first[10:], first[:-10]),
        (first[:, 1:], first[:, :-1]),
        (first[1:, 1:] ^ first[:-1, 1:], first[1:, :-1] ^ first[:-1, :-1]),
    ]
    for index, (one, other) in enumerate(beside):
        p = float(one.double().mean())
        wanted = p * p + (1 - p) * (1 - p)
        got = float((one == other).double().mean())
        assert got == pytest.approx(wanted, abs=0.003), index


def test_what_stays_is_scaled_so_that_the_mean_stays() -> None:
    module = RowDropout(0.1, torch.tensor(SALT, dtype=torch.int32))
    module.keys, module.share = _many()[0][None], SHARE
    found = module(torch.full((1, 3000, 400), 7.0))
    assert sorted(set(found.flatten().tolist())) == pytest.approx([0.0, 10.0])
    assert float(found.mean()) == pytest.approx(7, abs=0.03)


def test_a_mask_is_the_same_in_pieces_and_at_once() -> None:
    keys, salts = _many()
    whole = kept(keys[:256].view(2, 128), salts[0], 24, SHARE)
    assert torch.equal(whole.view(256, 24)[100:180], kept(keys[100:180], salts[0], 24, SHARE))


def test_keys_follow_seed_step_record_part_and_position() -> None:
    row = Row((5,) * 50)
    same = keys_of(EncodedRow(row, 3))
    assert torch.equal(same, keys_of(EncodedRow(Row((6,) * 50), 3, weight=2.0)))
    others = [
        keys_of(EncodedRow(row, 4)),
        keys_of(EncodedRow(row, 3, part=1)),
        keys_of(EncodedRow(row, 3), seed=10),
        keys_of(EncodedRow(row, 3), step=5),
    ]
    numbers = torch.cat([same, *others]).tolist()
    assert len(set(numbers)) == 5 * 50


def test_padding_of_a_pack_has_keys_too() -> None:
    blocks = torch.zeros(1, 4, dtype=torch.int32)
    pack = Pack(torch.arange(3), torch.arange(3), blocks, None, torch.tensor([7, 8, 9]))
    found = padded(pack).keys
    assert found is not None
    assert found.tolist() == [7, 8, 9, *[7] * 61]


# ------------------------------------------------------------------------------------ a step


# token budgets that take the seven rows at once, two or so at a time, and one by one
@pytest.mark.parametrize("recomputed", [0, 1, 2])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("budget", [10_000, 20, 1])
def test_a_step_does_not_depend_on_its_split(budget: int, layout: str, recomputed: int) -> None:
    loss, wanted = gradients()
    got_loss, got = gradients(budget=budget, layout=layout, recomputed=recomputed)
    assert got_loss == pytest.approx(loss, abs=1e-6)
    assert set(got) == set(wanted)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-6, rtol=1e-5)


def test_seeds_steps_and_shares_differ_and_a_repetition_does_not() -> None:
    loss, wanted = gradients()
    again, same = gradients()
    assert again == loss
    assert all(torch.equal(same[name], wanted[name]) for name in wanted)
    losses = {loss, gradients(seed=10)[0], gradients(step=5)[0], gradients(share=0.0)[0]}
    assert len(losses) == 4


def test_gradients_are_those_of_a_model_that_multiplies_by_the_masks() -> None:
    """A twin whose own `nn.Dropout` modules multiply, row by row, without the engine's dropout."""
    loss, wanted = gradients()
    model, trainable = fresh()
    now: list[Tensor] = []
    dropouts = [m for m in model.body.modules() if isinstance(m, nn.Dropout)]
    # embeddings; of each layer attention weights, which are never dropped, attention and MLP
    assert len(dropouts) == 1 + 3 * 2
    called = []
    for index, module in enumerate(dropouts):

        def multiply(module: nn.Module, inputs: Any, output: Tensor, place: int = index) -> Tensor:
            called.append(place)
            salt = torch.tensor((place + 1) * SALT, dtype=torch.int32)
            return output * kept(now[0], salt, output.shape[-1], SHARE) / (1 - SHARE)

        module.register_forward_hook(multiply)
    store = rows()
    model.set_prefix(trainable.prefix.stacked())
    module = trainable.module
    total = torch.zeros(())
    for row in store:
        now[:] = [keys_of(row)]
        total = total + HEAD.loss(module, model.states([row]), [row]).sums.sum()
    assert len(set(called)) == 5
    (total / COUNT).backward()
    assert float(total.detach() / COUNT) == pytest.approx(loss, abs=1e-6)
    for name, parameter in trainable.named_parameters().items():
        assert parameter.grad is not None
        assert bool(parameter.grad.count_nonzero())
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-6, rtol=1e-5)


def test_evaluation_drops_nothing() -> None:
    """Before, after and beside a step the states are those of a model that never dropped."""
    model, trainable = fresh()
    some = list(rows())
    with model.using(trainable.keys_and_values()), torch.no_grad():
        before = model.states(some).hidden
    settings = TrainSettings(max_steps=5, backbone_dropout=0.5)
    step_gradients(model, trainable, HEAD, rows(), [[0], [1]], settings, step=0)
    with model.using(trainable.keys_and_values()), torch.no_grad():
        assert torch.equal(model.states(some).hidden, before)
        with model.dropping(settings, 0):
            assert not torch.equal(model.states(some).hidden, before)
        assert torch.equal(model.states(some).hidden, before)
    with pytest.raises(KeyError), model.dropping(settings, 0):
        model.states(some)
        raise KeyError
    with model.using(trainable.keys_and_values()):
        assert torch.equal(model.states(some).hidden, before)


def test_nothing_is_replaced_where_nothing_is_dropped() -> None:
    model, trainable = fresh()
    settings = TrainSettings(max_steps=5)
    step_gradients(model, trainable, HEAD, rows(), [[0], [1]], settings, step=0)
    assert not any(isinstance(module, RowDropout) for module in model.body.modules())


def test_parts_of_a_step_add_up_to_it() -> None:
    """As several processes share it: each works on some of the groups, sums and weights add up."""
    loss, wanted = gradients()
    halves = []
    for groups in ([[0], [2], [5]], [[1], [3], [4], [6]]):
        model, trainable = fresh()
        settings = TrainSettings(max_steps=5, backbone_dropout=SHARE, seed=9)
        totals = step_gradients(model, trainable, HEAD, rows(), groups, settings, STEP)
        gradient = trainable.prefix.embedding.weight.grad
        assert gradient is not None
        halves.append((totals.loss * len(groups), gradient * len(groups)))
    (first, one), (second, other) = halves
    assert (first + second) / COUNT == pytest.approx(loss, abs=1e-6)
    both = (one + other) / COUNT
    torch.testing.assert_close(both, wanted["prefix.embedding.weight"], atol=1e-6, rtol=1e-5)


def encoder(folder: Path, family: str, **shape: int) -> Encoder:
    """A random model of a family with a vocabulary of 40, from a folder."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](
        vocab_size=40, hidden_size=32, intermediate_size=48, num_attention_heads=4, **shape
    )
    config.pad_token_id = 1
    AutoModel.from_config(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(40)}
    Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    source = SourcePath(family, folder)
    return Encoder(Encoder.Settings(source=source, dtype="float32"))


@pytest.mark.parametrize("family", ["distilbert", "electra", "modernbert", "roberta"])
def test_other_families_drop_the_same_packed_and_padded(family: str, tmp_path: Path) -> None:
    backbone = encoder(tmp_path, family, num_hidden_layers=2)
    loaded = backbone.load("cpu", "float32")
    model = Model(loaded, backbone.geometry, pad_id=1, eos_id=2)
    some = list(rows())
    found = []
    for layout, share in (("packed", SHARE), ("padded", SHARE), ("packed", 0.0)):
        model.layout = layout  # type: ignore[assignment]
        settings = TrainSettings(max_steps=1, backbone_dropout=share)
        with torch.no_grad(), model.dropping(settings, 0):
            found.append(model.states(some).hidden)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    assert float((found[0] - found[2]).abs().mean()) > 0.1


def test_layers_that_are_one_module_drop_different_numbers(tmp_path: Path) -> None:
    """ALBERT: four layers of a single group, computed again or not, and by hand from their uses."""
    backbone = encoder(tmp_path, "albert", num_hidden_layers=4, embedding_size=16)

    def noted(salts: list[int]) -> Callable[[Any, Any], None]:
        return lambda module, _: salts.append(int(module.salt))

    found, masks = [], []
    for recomputed in (0, 2, 4):
        model = Model(backbone.load("cpu", "float32"), backbone.geometry, pad_id=0, eos_id=3)
        model.recompute_layers(recomputed)
        prefix = PrefixEncoder(backbone.geometry, 3, dropout=0.0)
        prefix.initialize(std=1.0, seed=1)
        trainable = Trainable(prefix, HEAD.build(HeadInfo(32, 40, causal=False)))
        settings = TrainSettings(max_steps=5, backbone_dropout=SHARE)
        made = model.make_dropouts(SHARE)
        assert made is not None
        salts: list[int] = []
        for module in made.modules:
            module.register_forward_pre_hook(noted(salts))
        step_gradients(model, trainable, HEAD, rows(), [[0], [1], [2]], settings, STEP)
        masks.append(salts)
        gradient = prefix.embedding.weight.grad
        assert gradient is not None
        found.append(gradient)
    forward, *others = masks
    assert len(forward) == len(set(forward)) == 1 + 4  # ALBERT's layers drop in attention only
    # the first layers, from the last of them on
    assert others == [forward + [forward[i] for i in order] for order in ((2, 1), (4, 3, 2, 1))]
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0], atol=1e-6, rtol=1e-5)


def test_a_resumed_training_drops_the_same() -> None:
    """Six steps at once, or three, and three more with all else made anew."""

    class StopAt(Watcher):
        def __init__(self, steps: int) -> None:
            self.left = steps

        def stop_requested(self) -> bool:
            self.left -= 1
            return self.left == 0

    settings = TrainSettings(max_steps=6, batch_size=3, backbone_dropout=SHARE, eval_every=6)
    store = rows()

    def prepare() -> Training:
        model, trainable = fresh()
        order = Order(store.records, 3, seed=0)
        optimizer = make_optimizer(trainable, settings)
        return Training(model, trainable, HEAD, store, settings, order, 6, optimizer)

    whole, first, second = prepare(), prepare(), prepare()
    train(whole, Watcher(), Progress())
    stopped = train(first, StopAt(3), Progress())
    assert stopped.step == 3
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    with torch.no_grad():
        for name, parameter in second.trainable.named_parameters().items():
            parameter.copy_(first.trainable.named_parameters()[name])
    assert train(second, Watcher(), stopped).step == 6
    for name, parameter in whole.trainable.named_parameters().items():
        assert torch.equal(second.trainable.named_parameters()[name], parameter), name


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("recomputed", [0, 3])
def test_compiled_layers_drop_the_same_and_share_few_graphs(recomputed: int) -> None:
    backbone = TinyBackbone(TinyBackbone.Settings(causal=False, layers=5))

    def steps(compiler: Any) -> Iterator[tuple[float, Tensor]]:
        model, store = tiny_model(backbone), rows()
        prefix = PrefixEncoder(backbone.geometry, 3, dropout=0.0)
        prefix.initialize(std=1.0, seed=1)
        module = HEAD.build(HeadInfo(32, backbone.geometry.vocab_size, causal=False))
        if compiler is not None:
            model.compile_layers(backend=compiler)
        model.recompute_layers(recomputed)
        settings = TrainSettings(max_steps=5, backbone_dropout=SHARE)
        for step, groups in enumerate(([[0], [1]], [[3], [4]], [[5], [6]])):
            trainable = Trainable(prefix, module)
            totals = step_gradients(model, trainable, HEAD, store, groups, settings, step)
            gradient = prefix.embedding.weight.grad
            assert gradient is not None
            yield totals.loss, gradient.clone()

    graphs: list[Any] = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain, counts = list(steps(None)), []
    for (loss, gradient), (wanted_loss, wanted) in zip(steps(counted), plain, strict=True):
        assert loss == pytest.approx(wanted_loss, abs=1e-6)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-5)
        counts.append(len(graphs))
    # layers with a gradient below and without, computed again or not; never one a layer or a step
    assert counts == [3 if recomputed else 2] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_drops_the_same_compiled_and_in_graphs_too() -> None:
    keys, salts = _many()
    wanted = kept(keys, salts[1], 400, SHARE)
    assert torch.equal(kept(keys.cuda(), salts[1].cuda(), 400, SHARE).cpu(), wanted)
    plain = [gradients(step=step) for step in (4, 5, 6)]
    for fast in (False, True):
        model = Model(BERT.load("cuda", "float32"), BERT.geometry, pad_id=0, eos_id=1)
        if fast:
            model.compile_layers()
            model.use_graphs()
        _, trainable = fresh()
        assert trainable.module is not None
        on_gpu = Trainable(trainable.prefix.cuda(), trainable.module.cuda())
        settings = TrainSettings(max_steps=5, backbone_dropout=SHARE, seed=9)
        for step, (loss, found) in zip((4, 5, 6), plain, strict=True):
            groups = [[index] for index in range(COUNT)]
            totals = step_gradients(model, on_gpu, HEAD, rows(), groups, settings, step)
            assert totals.loss == pytest.approx(loss, abs=1e-4)
            gradient = on_gpu.prefix.embedding.weight.grad
            assert gradient is not None
            exact = found["prefix.embedding.weight"]
            torch.testing.assert_close(gradient.cpu(), exact, atol=1e-4, rtol=1e-3)


# ------------------------------------------------------------------------------------ a run


def test_a_model_without_dropout_is_refused_by_name(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(train={"max_steps": 1, "backbone_dropout": 0.1})
    with pytest.raises(PtkitError) as caught:
        run(recipe, out=tmp_path / "run", device="cpu")
    assert caught.value.lines == (
        "train.backbone_dropout = 0.1: GlmModel has no dropout between its layers; remove the "
        "setting, or use prefix.dropout",
    )
