"""The memory estimate, against the bytes that autograd keeps and the tensors that are alive."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.memory import (
    MicroBatch,
    by_layers,
    estimate,
    largest,
    layers_to_recompute,
    mask_bytes,
    mlp_shape,
    prefix_parameters,
    saved_bytes,
    weight_bytes,
)
from ptkit.recipe import TrainSettings
from ptkit.records import IGNORE, EncodedRow, Geometry, Row
from ptkit.testing import TinyBackbone, tiny_model

LENGTHS = (40, 60, 100, 25)
PREFIX = 16
CHATGLM2 = Geometry(28, 32, 2, 128, 4096, 65024, 32768, 6_243_584_000, ffn_size=13696)
PUBLISHED: Any = {
    "prefix": 128,
    "trainable": 1_835_008,
    "device": "cuda",
    "dtype": "bfloat16",
}


def backbone(*, causal: bool, buckets: int = 500) -> TinyBackbone:
    return TinyBackbone(
        TinyBackbone.Settings(
            layers=4,
            hidden_size=128,
            heads=4,
            kv_groups=2,
            head_size=32,
            buckets=buckets,
            causal=causal,
        )
    )


def rows(lengths: Sequence[int]) -> list[EncodedRow]:
    """Rows of arbitrary tokens whose second half is trained on."""
    made = []
    for record, length in enumerate(lengths):
        tokens = tuple(5 + i % 50 for i in range(length))
        half = length // 2
        made.append(EncodedRow(Row(tokens, (IGNORE,) * half + tokens[half:]), record))
    return made


@contextmanager
def prefixed(model: Model, dtype: str, recomputed: int) -> Iterator[None]:
    for module in model.frozen_modules():
        module.to(getattr(torch, dtype))
    model.recompute_layers(recomputed)
    prefix = PrefixEncoder(model.geometry, PREFIX)
    leaves = [(k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in prefix()]
    with model.using(leaves):
        yield


@pytest.mark.parametrize("recomputed", [0, 1, 3, 4])  # of four layers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("causal", [True, False])
def test_what_autograd_keeps(*, causal: bool, dtype: str, recomputed: int) -> None:
    model = tiny_model(backbone(causal=causal))
    frozen: set[int] = set()
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in frozen:
            kept[place] = tensor
        return tensor

    with prefixed(model, dtype, recomputed):
        frozen |= {p.untyped_storage().data_ptr() for p in model.body.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.states(rows(LENGTHS)).hidden
        real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        hidden.sum().backward()
    expected = saved_bytes(
        model.geometry,
        MicroBatch(LENGTHS),
        PREFIX,
        4 if dtype == "float32" else 2,
        recomputed=recomputed,
    )
    if recomputed == 4:  # the layout holds the masks, not autograd
        masks = sum(s * (s + PREFIX) for s in LENGTHS) * (4 if dtype == "float32" else 2)
        expected -= masks if causal else 0
    assert real == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("recomputed", [0, 1, 3, 4])  # of four layers
def test_what_autograd_keeps_of_rows_that_begin_alike(recomputed: int) -> None:
    data, sizes = rows(LENGTHS), []
    model = tiny_model(backbone(causal=True))
    stem = 5
    for model.stem in ((), data[0].tokens[:stem]):
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with (
            prefixed(model, "float32", recomputed),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            model.states(data)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    whole, shared = (
        saved_bytes(model.geometry, MicroBatch(LENGTHS, stem=n), PREFIX, 4, recomputed=recomputed)
        for n in (0, stem)
    )
    if recomputed == 4:  # the layout holds the masks, not autograd
        whole -= mask_bytes(MicroBatch(LENGTHS), PREFIX, 4)
        shared -= mask_bytes(MicroBatch(LENGTHS, stem=stem), PREFIX, 4)
    assert whole > shared
    assert sizes[0] - sizes[1] == pytest.approx(whole - shared, rel=0.1)


@pytest.mark.parametrize("recomputed", [0, 1, 3])  # of four layers
def test_what_autograd_keeps_of_dropout(recomputed: int) -> None:
    """A byte a number that a layer's attention and MLP may drop."""
    lengths = (9, 30, 4)
    sizes = []
    for share in (0.0, 0.5):
        model = tiny_model(backbone(causal=False))
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        settings = TrainSettings(max_steps=1, backbone_dropout=share)
        with (
            prefixed(model, "float32", recomputed),
            model.dropping(settings, 0),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            model.states(rows(lengths))
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    plain, dropped = (
        saved_bytes(model.geometry, MicroBatch(lengths, 0, flag), PREFIX, 4, recomputed=recomputed)
        for flag in (False, True)
    )
    hidden = model.geometry.hidden_size
    assert dropped - plain == (4 - recomputed) * 2 * sum(lengths) * hidden
    assert sizes[1] - sizes[0] == pytest.approx(dropped - plain, rel=0.05)


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, and the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if torch.is_tensor(t)
        }
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if not torch.is_tensor(tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in given | self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return made

    def _freed(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


@pytest.mark.parametrize("recomputed", [0, 2, 3, 4])  # of four layers
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("buckets", [500, 8000])  # a layer's, or the logits', is the larger work
def test_the_peak(*, buckets: int, dtype: str, recomputed: int) -> None:
    model = tiny_model(backbone(causal=True, buckets=buckets))
    data = rows(LENGTHS)
    with prefixed(model, dtype, recomputed), Alive() as alive:
        losses, _ = model.states(data).token_loss([row.labels for row in data])
        losses.sum().backward()
    targets = sum(label != IGNORE for row in data for label in row.labels)
    memory = estimate(
        model.geometry,
        MicroBatch(LENGTHS, targets),
        prefix=PREFIX,
        trainable=0,
        device="cpu",
        dtype=dtype,
        recomputed=recomputed,
    )
    assert alive.most == pytest.approx(
        memory.activations + max(memory.logits, memory.layer), rel=0.1
    )


def test_the_estimate_by_hand() -> None:
    """l 2, n 2, g 1, d 4, h 8, f 16, v 10, p 3; rows of 5 and 2 tokens, 4 targets."""
    layer = 2 * 8 + 8 * 9 + 2 * 4 * 9 + 8 * 8 + 3 * 16 * 8
    geometry = Geometry(2, 2, 1, 4, 8, 10, 99, 2 * layer + 2 * 80 + 8, ffn_size=16)
    batch = MicroBatch((5, 2), 4)
    assert batch.tokens == 7

    def of(device: str, recomputed: int) -> Any:
        return estimate(
            geometry,
            batch,
            prefix=3,
            trainable=48,
            device=device,
            dtype="float32",
            recomputed=recomputed,
        )

    norms, mlp = 2 * 4 * 7 * 8, 3 * 4 * 7 * 16
    attention = 2 * 4 * 7 * 8 + 2 * 4 * (7 + 2 * 3) * 4 + 4 * 7 * 2
    masks = 4 * (5 * 8 + 2 * 5)
    states = 4 * 8 * (7 + 2 * 4)
    plain = of("cpu", 0)
    assert plain.weights == 4 * geometry.parameters
    assert plain.optimizer == 3 * 4 * 48
    assert plain.adapter == 4 * 48 + 12 * 48  # flat: keys and values are as many numbers
    # the norm that the first layer hasn't is the one behind the last
    assert plain.activations == 2 * (norms + attention + mlp) + masks + states
    assert plain.logits == 2 * 4 * 4 * 10
    assert plain.layer == mlp
    rest = plain.weights + plain.adapter + plain.optimizer
    assert plain.total == rest + plain.activations + mlp
    half = of("cpu", 1)  # while the first layer is made again, the second's tensors are gone
    assert half.activations == norms + attention + mlp + (4 + 4) * 7 * 8 + masks + states
    assert half.layer == mlp
    saving = of("cpu", 2)
    assert saving.activations == 2 * 4 * 7 * 8 + 4 * 7 * 8 + masks + states
    assert saving.layer == norms + attention + 2 * mlp
    packed = 2 * 4 * 7 * 8 + 2 * 4 * 7 * 4 + 4 * 7 * 2  # no copy of the prefix a row, no masks
    on_gpu = of("cuda", 0)  # which makes the activated gate again, and copies no logits
    assert on_gpu.activations == 2 * (norms + packed + 2 * 4 * 7 * 16) + states
    assert on_gpu.logits == 4 * 4 * 10


def test_chatglm2_with_all_layers_recomputed_takes_hardly_more_than_its_weights() -> None:
    batch = MicroBatch((120,) * 16, 16 * 75)
    plain, saving = (
        estimate(
            CHATGLM2,
            batch,
            **PUBLISHED,
            recomputed=recomputed,
        )
        for recomputed in (0, 28)
    )
    assert saving.weights / 2**30 == pytest.approx(11.63, abs=0.01)
    assert 12 < saving.total / 2**30 < 13
    assert 16 < plain.total / 2**30 < 24


def test_the_width_of_an_mlp_is_guessed_from_the_parameters() -> None:
    assert mlp_shape(CHATGLM2) == (13696, True)
    unknown = Geometry(28, 32, 2, 128, 4096, 65024, 32768, 6_243_584_000)
    assert mlp_shape(unknown) == (pytest.approx(13696, rel=0.01), True)
    bert = Geometry(12, 12, 12, 64, 768, 30522, 512, 108_891_648, causal=False, ffn_size=3072)
    assert mlp_shape(bert) == (3072, False)
    unknown = Geometry(12, 12, 12, 64, 768, 30522, 512, 108_891_648, causal=False)
    assert mlp_shape(unknown) == (pytest.approx(3072, rel=0.01), False)


@pytest.mark.parametrize("projection", [None, 7])
def test_prefix_parameters(projection: int | None) -> None:
    shape = TinyBackbone().geometry
    real = PrefixEncoder(shape, 5, projection_hidden_size=projection)
    counted = sum(parameter.numel() for parameter in real.parameters())
    assert prefix_parameters(shape, 5, projection) == counted


def test_published_prefix_parameters() -> None:
    assert prefix_parameters(CHATGLM2, 128, None) == 1_835_008


def test_the_largest_micro_batch() -> None:
    """On a CPU every row has a copy of the prefix, here of 1,000 virtual tokens."""
    small, long, many = MicroBatch((9, 9)), MicroBatch((37,)), MicroBatch((12, 12, 12))
    assert largest([small, long, many], CHATGLM2, 1000, "cpu") == many
    assert largest([small, long, many], CHATGLM2, 1000, "cuda") == long


def test_a_quantised_base_takes_its_bits() -> None:
    """ChatGLM2-6B: 3.92 GB in int4, as the CHATGLM2 checkpoint and the loaded weights do."""
    linears = 28 * 4096 * (4096 + 512 + 4096 + 3 * 13696)
    rows = 28 * (4096 + 512 + 4096 + 2 * 13696 + 4096)
    rest = 6_243_584_000 - linears
    assert weight_bytes(CHATGLM2, 2, "int4") == 2 * rest + linears // 2 + 4 * rows
    assert weight_bytes(CHATGLM2, 2, "int8") == 2 * rest + linears + 4 * rows
    grouped = 2 * rest + linears // 2 + 2 * linears // 128
    assert weight_bytes(CHATGLM2, 2, "int4-g128") == grouped
    assert weight_bytes(CHATGLM2, 2, "fp8") == 2 * rest + 2 * linears + 8 * rows
    assert weight_bytes(CHATGLM2, 2) == 12_487_168_000
    assert weight_bytes(CHATGLM2, 2, "int4") / 1e9 == pytest.approx(3.92, abs=0.02)


def test_processes_share_a_base_but_for_the_lm_head_and_what_works() -> None:
    """l 2, n 2, g 1, d 4, h 8, f 16, v 10 in float32, the embedding as large as the LM head, and a
    norm of 8 numbers behind the layers."""
    linears = 2 * (2 * 8 * 8 + 2 * 4 * 8 + 3 * 16 * 8)
    geometry = Geometry(2, 2, 1, 4, 8, 10, 99, linears + 2 * 80 + 8, ffn_size=16)
    outside, layer = 4 * 88, 4 * linears // 2
    for processes in (2, 4):
        shared = (4 * linears + outside) // processes
        assert weight_bytes(geometry, 4, processes=processes) == (
            4 * 80 + shared + outside + 2 * layer
        )
    assert weight_bytes(geometry, 4, processes=1) == 4 * geometry.parameters
    # an embedding on the host is no process's, and int4 layers take half a byte and a scale a row
    rows = 2 * (8 + 2 * 4 + 8 + 2 * 16 + 8)
    small = linears // 2 + 4 * rows
    found = weight_bytes(geometry, 2, "int4", on_host=80, processes=2)
    assert found == 2 * 80 + (small + 2 * 8) // 2 + 2 * 8 + small
    encoder = Geometry(2, 2, 2, 4, 8, 10, 99, 2 * 512 + 80 + 792, causal=False, ffn_size=16)
    linears = 2 * (4 * 64 + 2 * 128)
    shared = 4 * encoder.parameters // 2
    assert weight_bytes(encoder, 4, processes=2) == shared + 4 * (80 + 792) + 4 * linears


def test_a_shared_base_leaves_room_for_activations() -> None:
    """What the layers keep is no less, but fewer must be computed again for the same memory."""
    found = [
        by_layers(CHATGLM2, MicroBatch((120,) * 16, 1200), **PUBLISHED, processes=processes)
        for processes in (1, 4)
    ]
    for alone, shared in zip(*found, strict=True):
        assert alone.activations == shared.activations
        assert alone.total - shared.total == alone.weights - shared.weights > 7 * 2**30
    counts = [layers_to_recompute("auto", estimates, 14 * 2**30) for estimates in found]
    assert counts[0] > 20
    assert counts[1] == 0


def test_quantised_layers_are_made_again_while_they_work() -> None:
    found = [
        estimate(
            CHATGLM2,
            MicroBatch((120,) * 16, 1200),
            **PUBLISHED,
            recomputed=28,
            quantization=quantization,
        )
        for quantization in ("none", "int4")
    ]
    # gate and up in bfloat16, whole
    assert found[1].layer - found[0].layer == 2 * (2 * 13696) * 4096
    assert found[1].activations == found[0].activations
