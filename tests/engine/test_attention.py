"""Layouts and masks, against attention written out with plain matrix products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptkit.engine.attention import (
    NO_PREFIX,
    PackedRows,
    PaddedRows,
    prefix_attention,
    row_mask,
    set_prefix,
)

HEADS, GROUPS, SIZE, PREFIX = 4, 2, 8, 3
LENGTHS = (2, 5, 1)


def plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    prefix: int,
    window: int | None = None,
) -> Tensor:
    """[n, s, d], [g, p + s, d] -> [s, n, d], one row, by definition."""
    key, value = (t.repeat_interleave(HEADS // GROUPS, 0) for t in (key, value))
    scores = query @ key.transpose(1, 2) / SIZE**0.5
    length = query.shape[1]
    for i in range(length):
        for j in range(length):
            hidden = (causal and j > i) or (window is not None and abs(i - j) >= window)
            if hidden:
                scores[:, i, prefix + j] = float("-inf")
    return (scores.softmax(-1) @ value).transpose(0, 1)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    return {
        "query": torch.randn(1, HEADS, total, SIZE, generator=make, dtype=torch.float64),
        "key": torch.randn(1, GROUPS, total, SIZE, generator=make, dtype=torch.float64),
        "value": torch.randn(1, GROUPS, total, SIZE, generator=make, dtype=torch.float64),
        "prefix_key": torch.randn(2, GROUPS, PREFIX, SIZE, generator=make, dtype=torch.float64),
        "prefix_value": torch.randn(2, GROUPS, PREFIX, SIZE, generator=make, dtype=torch.float64),
    }


def expected(
    tensors: dict[str, Tensor], prefixes: list[int], *, causal: bool, window: int | None
) -> Tensor:
    rows, start = [], 0
    for length, index in zip(LENGTHS, prefixes, strict=True):
        q, k, v = (tensors[n][0, :, start : start + length] for n in ("query", "key", "value"))
        used = 0
        if index != NO_PREFIX:
            k = torch.cat((tensors["prefix_key"][index], k), 1)
            v = torch.cat((tensors["prefix_value"][index], v), 1)
            used = PREFIX
        rows.append(plain(q, k, v, causal=causal, prefix=used, window=window))
        start += length
    return torch.cat(rows)


def padded(tensor: Tensor) -> Tensor:
    """[1, n, t, d] packed -> [b, n, s, d] with zeros behind each row."""
    rows = tensor[0].split(LENGTHS, dim=1)
    result = tensor.new_zeros(len(LENGTHS), tensor.shape[1], max(LENGTHS), tensor.shape[3])
    for line, row in zip(result, rows, strict=True):
        line[:, : row.shape[1]] = row
    return result


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("prefixes", [[0, 0, 0], [1, NO_PREFIX, 0], [NO_PREFIX] * 3])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_each_row_sees_its_prefix_and_itself(
    tensors: dict[str, Tensor],
    layout: str,
    prefixes: list[int],
    causal: bool,
    window: int | None,
) -> None:
    module = nn.Module()
    set_prefix([module], [(tensors["prefix_key"], tensors["prefix_value"])])
    inputs = [tensors[name] for name in ("query", "key", "value")]
    wanted = expected(tensors, prefixes, causal=causal, window=window)
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    if layout == "padded":
        lines = PaddedRows(real, prefixes, causal=causal)
        got, weights = prefix_attention(
            module,
            *[padded(t) for t in inputs],
            None,
            ptkit_layout=lines,
            sliding_window=window,
        )
        assert weights is None
        torch.testing.assert_close(got[real], wanted)
        return
    packed = PackedRows(LENGTHS, prefixes, causal=causal)
    got, _ = prefix_attention(module, *inputs, None, ptkit_layout=packed, sliding_window=window)
    torch.testing.assert_close(got[0], wanted)


def test_queries_behind_a_cache_are_the_last_keys() -> None:
    assert row_mask(1, 3, 2, causal=True, window=None).tolist() == [[True] * 5]
    assert row_mask(2, 3, 0, causal=True, window=None).int().tolist() == [[1, 1, 0], [1, 1, 1]]


def test_the_prefix_stays_visible_in_a_window() -> None:
    seen = row_mask(4, 4, 1, causal=True, window=2).int().tolist()
    assert seen == [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]


def test_a_call_around_the_model_is_refused() -> None:
    query = torch.zeros(1, HEADS, 2, SIZE)
    with pytest.raises(RuntimeError, match="called through ptkit.Model"):
        prefix_attention(nn.Module(), query, query, query, None)
