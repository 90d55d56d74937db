"""An embedding on the host: the rows of a plain one, and a table that stays where it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ptkit
from ptkit.testing import TinyBackbone, tiny_model

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
    ),
]


def table() -> Tensor:
    return torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ids_on", DEVICES)
def test_rows_by_hand(device: str, ids_on: str) -> None:
    embedding = ptkit.HostEmbedding(table(), device)
    rows = embedding(torch.tensor([[3, 0], [1, 1]], device=ids_on))
    assert rows.device.type == device
    assert not rows.requires_grad
    assert rows.tolist() == [
        [[9.0, 10.0, 11.0], [0.0, 1.0, 2.0]],
        [[3.0, 4.0, 5.0], [3.0, 4.0, 5.0]],
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("ids_on", ["cpu", "cuda"])
def test_nothing_is_waited_for(ids_on: str) -> None:
    embedding = ptkit.HostEmbedding(table(), "cuda")
    ids = [torch.tensor([index % 4], device=ids_on) for index in range(20)]
    embedding(ids[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = [embedding(one) for one in ids]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [int(row[0, 0]) // 3 for row in rows] == [index % 4 for index in range(20)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_in_a_cuda_graph() -> None:
    embedding = ptkit.HostEmbedding(table(), "cuda").to(torch.bfloat16)
    ids = torch.tensor([[2]], device="cuda")
    embedding(ids)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rows = embedding(ids)
    for wanted in (3, 0):
        ids.fill_(wanted)
        graph.replay()
        assert rows[0, 0].tolist() == table()[wanted].tolist()


def test_moving_leaves_the_table_and_tells_where_rows_go() -> None:
    """torch's meta device stands for another one: nothing with values could be moved there."""
    embedding = ptkit.HostEmbedding(table(), "cpu")
    model = nn.Sequential(embedding, nn.Linear(3, 2)).to("meta")
    assert model[1].weight.is_meta
    assert embedding.weight.device.type == "cpu"
    assert embedding.weight.tolist() == table().tolist()
    assert embedding.place.is_meta
    assert list(embedding.state_dict()) == ["weight"]
    assert repr(embedding) == "HostEmbedding(4, 3, to meta)"


def test_a_type_is_taken_on_the_host() -> None:
    embedding = ptkit.HostEmbedding(table(), "cpu").to(torch.bfloat16)
    assert embedding.weight.dtype == torch.bfloat16
    assert embedding(torch.tensor([2])).dtype == torch.bfloat16
    assert not embedding.weight.requires_grad


def test_a_model_computes_the_same() -> None:
    plain, moved = tiny_model(), tiny_model()
    own = moved.body.get_input_embeddings()
    moved.body.set_input_embeddings(ptkit.HostEmbedding.of(own))
    counts = [sum(p.numel() for p in model.body.parameters()) for model in (plain, moved)]
    assert counts[0] == counts[1]
    row = ptkit.EncodedRow(ptkit.Row((5, 9, 7)), 0)
    states = [model.states([row]).hidden for model in (plain, moved)]
    assert torch.equal(*states)
    sampling = ptkit.Sampling(max_new_tokens=4)
    assert plain.generate([[5, 6]], sampling) == moved.generate([[5, 6]], sampling)


def test_an_embedding_that_does_more_is_refused() -> None:
    class Scaled(nn.Embedding):
        pass

    wrong = (Scaled(4, 3), nn.Embedding(4, 3, max_norm=1.0), nn.Linear(4, 3))
    for embedding, name in zip(wrong, ("Scaled", "Embedding", "Linear"), strict=True):
        with pytest.raises(ptkit.CheckpointError) as refused:
            ptkit.HostEmbedding.of(embedding)
        assert refused.value.lines == (
            f"{name}: does more than to look rows up, and can't be moved to the host; use "
            'backbone.embeddings = "device"',
        )


def test_encoders_have_such_an_embedding_too() -> None:
    model = tiny_model(TinyBackbone(TinyBackbone.Settings(causal=False)))
    assert ptkit.HostEmbedding.of(model.body.get_input_embeddings()).embedding_dim == 32
