"""Batched decoding, against the plainest loop there is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ptkit.engine.decoding import choose
from ptkit.engine.generate import batches, calls, window
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.records import Sampling
from ptkit.testing import TinyBackbone, tiny_model

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16], [17, 18, 19, 20]]


@pytest.fixture
def model() -> Model:
    backbone = TinyBackbone(TinyBackbone.Settings())
    model = tiny_model(backbone)
    prefix = PrefixEncoder(backbone.geometry, 4)
    prefix.initialize(std=1.0, seed=3)
    model.set_prefix(prefix())
    return model


def plain(model: Model, prompt: list[int], steps: int) -> list[int]:
    """Greedy without a cache or a batch."""
    answer: list[int] = []
    while len(answer) < steps:
        token = int(model.logits([*prompt, *answer])[-1].argmax())
        if token == model.eos_id:
            break
        answer.append(token)
    return answer


@pytest.mark.parametrize("batch_tokens", [1, 30, 10_000])
def test_greedy_equals_the_plain_loop_at_any_batch_size(model: Model, batch_tokens: int) -> None:
    wanted = [plain(model, prompt, 12) for prompt in PROMPTS]
    got = model.generate(PROMPTS, Sampling(max_new_tokens=12), batch_tokens=batch_tokens)
    assert got == wanted


def test_checkpointing_leaves_decoding_alone(model: Model) -> None:
    wanted = model.generate(PROMPTS, Sampling(max_new_tokens=12))
    model.enable_checkpointing()
    assert model.generate(PROMPTS, Sampling(max_new_tokens=12)) == wanted


def test_rows_that_end_leave_the_batch(model: Model) -> None:
    """Make the token that a row gives early its eos: the others go on unchanged."""
    whole = model.generate(PROMPTS, Sampling(max_new_tokens=12))
    eos = whole[2][3]
    model.eos_id = eos
    finished: list[int] = []
    got = model.generate(PROMPTS, Sampling(max_new_tokens=12), progress=finished.append)
    for answer, longer in zip(got, whole, strict=True):
        assert answer == (longer[: longer.index(eos)] if eos in longer else longer)
    assert len(got[2]) <= 3
    assert sum(finished) == len(PROMPTS)


def test_other_ids_may_end_an_answer_too(model: Model) -> None:
    whole = model.generate(PROMPTS, Sampling(max_new_tokens=12))
    stop = whole[2][3]
    model.stop_ids = (stop,)
    for answer, longer in zip(
        model.generate(PROMPTS, Sampling(max_new_tokens=12)), whole, strict=True
    ):
        assert answer == (longer[: longer.index(stop)] if stop in longer else longer)


def test_an_answer_may_be_empty(model: Model) -> None:
    model.eos_id = model.generate(PROMPTS[:1], Sampling(max_new_tokens=1))[0][0]
    assert model.generate(PROMPTS[:1], Sampling(max_new_tokens=5)) == [[]]


def test_a_prompt_needs_tokens(model: Model) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        model.generate([[5], []], Sampling(max_new_tokens=1))


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_draws_depend_on_seed_and_row_only(model: Model, batch_tokens: int) -> None:
    sampling = Sampling(max_new_tokens=10, temperature=1.5, seed=4)
    wanted = model.generate(PROMPTS, sampling, batch_tokens=45)
    assert model.generate(PROMPTS, sampling, batch_tokens=batch_tokens) == wanted
    other = Sampling(max_new_tokens=10, temperature=1.5, seed=5)
    assert model.generate(PROMPTS, other) != wanted


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, -1)
    drawn = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))

    def shares(sampling: Sampling) -> list[float]:
        return (choose(logits, sampling, drawn).bincount(minlength=4) / 4000).tolist()

    assert shares(Sampling(1, temperature=1.0)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    # temperature 1/2 squares the odds: 25 : 9 : 2.25 : 0.25
    assert shares(Sampling(1, temperature=0.5)) == pytest.approx(
        [0.685, 0.247, 0.062, 0.007], abs=0.03
    )
    assert shares(Sampling(1, temperature=1.0, top_p=0.6)) == pytest.approx(
        [0.625, 0.375, 0, 0], abs=0.03
    )
    assert shares(Sampling(1, temperature=1.0, top_k=1)) == [1, 0, 0, 0]
    assert shares(Sampling(1, temperature=1.0, top_p=0.01)) == [1, 0, 0, 0]


def test_batches_keep_the_budget() -> None:
    assert list(batches([3, 9, 5], 2, 20)) == [[1], [2, 0]]
    assert list(batches([3], 2, 1)) == [[0]]
    assert list(batches([], 2, 1)) == []


@pytest.mark.parametrize(
    ("device", "new_tokens", "wanted"),
    [
        ("cpu", 2, [[1], [2, 0]]),  # 9 + 2 twice is above 20; 5 + 2 twice is not
        ("cuda", 2, [[1, 2, 0]]),
        ("cuda", 0, [[1, 2], [0]]),  # nothing is generated, so nothing else keeps the budget
    ],
)
def test_a_gpu_answers_all_rows_in_one_call(
    device: str, new_tokens: int, wanted: list[list[int]]
) -> None:
    model: Any = SimpleNamespace(device=torch.device(device), batch_tokens=20)
    assert list(calls([3, 9, 5], new_tokens, model)) == wanted


def test_a_gpu_works_on_eight_times_as_many_rows() -> None:
    assert window(256, torch.device("cpu")) == 256
    assert window(256, torch.device("cuda")) == 2048
