"""The prefix encoder: layout, starts, dropout."""

from __future__ import annotations

import pytest
import torch

from ptkit.engine.prefix import PrefixEncoder
from ptkit.records import EncodedRow, Geometry, Row
from ptkit.testing import TinyBackbone, tiny_model

SMALL = Geometry(
    layers=2,
    heads=2,
    kv_groups=1,
    head_size=2,
    hidden_size=4,
    vocab_size=9,
    max_positions=8,
    parameters=0,
)


def test_layout_is_the_published_one() -> None:
    """Numbers 0…15 for two virtual tokens: the key of layer l is at 2l, its value at 2l + 1."""
    prefix = PrefixEncoder(SMALL, 2)
    with torch.no_grad():
        prefix.embedding.weight.copy_(torch.arange(16).view(2, 8))
    (key0, value0), (key1, value1) = prefix()
    assert key0.tolist() == [[[[0, 1], [8, 9]]]]
    assert value0.tolist() == [[[[2, 3], [10, 11]]]]
    assert key1.tolist() == [[[[4, 5], [12, 13]]]]
    assert value1.tolist() == [[[[6, 7], [14, 15]]]]


def test_initialize_from_is_the_inverse_of_forward() -> None:
    prefix, twin = PrefixEncoder(SMALL, 2), PrefixEncoder(SMALL, 2)
    twin.initialize_from(prefix())
    assert torch.equal(prefix.embedding.weight, twin.embedding.weight)


def test_starts() -> None:
    geometry = Geometry(4, 4, 2, 16, 64, 500, 256, 0)
    prefix = PrefixEncoder(geometry, 50)
    prefix.initialize(std=0.5, seed=1)
    assert float(prefix.embedding.weight.detach().std()) == pytest.approx(0.5, rel=0.02)
    first = prefix.embedding.weight.clone()
    prefix.initialize(std=0.5, seed=1)
    assert torch.equal(prefix.embedding.weight, first)
    prefix.initialize(std=0.5, seed=2)
    assert not torch.equal(prefix.embedding.weight, first)
    prefix.initialize(std=0.0, seed=1)
    assert not prefix.embedding.weight.any()


def test_projection_is_linear_tanh_linear() -> None:
    prefix = PrefixEncoder(SMALL, 2, projection_hidden_size=3)
    prefix.initialize(std=1.0, seed=0)
    first, last = prefix.trans[0], prefix.trans[2]
    flat = (
        torch.tanh(prefix.embedding.weight @ first.weight.T + first.bias) @ last.weight.T
        + last.bias
    )
    torch.testing.assert_close(prefix()[1][1][0, 0], flat[:, 6:8])


def test_dropout_zeroes_a_share_and_keeps_the_mean() -> None:
    prefix = PrefixEncoder(Geometry(4, 4, 2, 16, 64, 500, 256, 0), 100, dropout=0.25)
    with torch.no_grad():
        prefix.embedding.weight.fill_(1.0)
    dropped = torch.cat(
        [t.detach() for pair in prefix(torch.Generator().manual_seed(0)) for t in pair]
    )
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    kept = torch.cat([t for pair in prefix() for t in pair])
    assert bool((kept == 1).all())


def test_a_text_start_reproduces_text_and_row() -> None:
    """With as many virtual tokens as the text has, logits equal those of text + row."""
    backbone = TinyBackbone(TinyBackbone.Settings())
    model = tiny_model(backbone)
    text, row = [7, 9, 11, 13], [5, 8, 6, 10, 12]
    whole = model.logits([*text, *row])[len(text) :]
    prefix = PrefixEncoder(backbone.geometry, len(text))
    prefix.initialize_from(model.keys_and_values(text))
    model.set_prefix(prefix())
    torch.testing.assert_close(model.logits(row), whole, atol=1e-5, rtol=0)
    model.set_prefix(None)
    assert float((model.logits(row) - whole).abs().max()) > 1e-3


def test_rows_of_one_batch_can_see_different_prefixes() -> None:
    backbone = TinyBackbone(TinyBackbone.Settings())
    model = tiny_model(backbone)
    first, second = (PrefixEncoder(backbone.geometry, 3) for _ in range(2))
    first.initialize(std=1.0, seed=1)
    second.initialize(std=1.0, seed=2)
    row = EncodedRow(Row((5, 6, 7, 8)), 0)
    alone = []
    for prefix in (first(), second(), None):
        model.set_prefix(prefix)
        alone.append(model.states([row]).hidden)
    both = [
        (torch.cat((a[0], b[0])), torch.cat((a[1], b[1])))
        for a, b in zip(first(), second(), strict=True)
    ]
    model.set_prefix(both)
    for layout in ("packed", "padded"):
        model.layout = layout
        together = model.states([row] * 3, prefix_of_row=[0, 1, -1]).hidden.split(4)
        for got, wanted in zip(together, alone, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_a_text_start_on_a_table_of_positions() -> None:
    """The keys of the first layer are those of the text in a row of its own, at 0, 1, 2."""
    model = tiny_model(TinyBackbone(TinyBackbone.Settings(causal=False)))
    text = [5, 6, 7]
    embedded = model.body.embeddings(
        input_ids=torch.tensor([text]), position_ids=torch.arange(3)[None]
    )
    expected = model.attentions[0].key(embedded).view(1, 3, 4, 8).transpose(1, 2)
    key, _ = model.keys_and_values(text)[0]
    assert torch.allclose(key, expected, atol=1e-6)
