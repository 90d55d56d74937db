"""Slots, continuous batching and the static cache, against the plain way to decode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from ptkit.engine.attention import KeyValue, Scores
from ptkit.engine.decoding import Cache, Decoder, DecodeRows, attend_slots
from ptkit.engine.generate import Batch, Request, generate, generator, grouped
from ptkit.engine.model import Model
from ptkit.engine.outofmemory import OutOfMemory
from ptkit.models import LoadedBackbone
from ptkit.records import Geometry, Sampling

from .simple_decoding import Plain, simple

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
VOCABULARY, LAYERS, GROUPS, SIZE, PREFIX, POSITIONS = 40, 2, 2, 8, 3, 24
FAMILIES: dict[str, dict[str, Any]] = {
    "glm": {"partial_rotary_factor": 0.5},
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "gemma2": {
        "sliding_window": 3,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": SIZE,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
LENGTHS = (3, 1, 9, 2, 12, 1, 5, 4, 7, 6, 1)
LIMITS = (12, 3, 1, 12, 12, 7, 2, 12, 9, 5, 12)  # LENGTHS[4] + 12 = POSITIONS
SAMPLINGS = {
    "greedy": Sampling(12),
    "draws": Sampling(12, temperature=1.3, top_p=0.9, top_k=7, seed=2),
}


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(8)
    return [torch.randint(3, VOCABULARY, (n,), generator=draw).tolist() for n in LENGTHS]


def make_model(family: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=GROUPS,
        head_dim=SIZE,
        intermediate_size=48,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        pad_token_id=1,
        eos_token_id=2,
        **FAMILIES[family],
    )
    whole: Any = transformers.AutoModelForCausalLM.from_config(config)
    whole = whole.eval().to(device=device, dtype=dtype)
    attentions = [layer.self_attn for layer in whole.model.layers]
    loaded = LoadedBackbone(whole.model, attentions, whole.lm_head)
    geometry = Geometry(LAYERS, 4, GROUPS, SIZE, 32, VOCABULARY, POSITIONS, 0)
    return Model(loaded, geometry, pad_id=1, eos_id=2)


def make_prefix(adapters: int, device: str = "cpu") -> list[KeyValue]:
    draw = torch.Generator().manual_seed(3)
    size = (adapters, GROUPS, PREFIX, SIZE)
    made = [torch.randn(size, generator=draw).to(device) for _ in range(2 * LAYERS)]
    return list(zip(made[::2], made[1::2], strict=True))


def some_token(model: Model) -> int:
    """One that ends some answers early if it is eos, and others not."""
    answers = simple(model, prompts(), Sampling(12))
    counts = torch.tensor([t for answer in answers for t in answer]).bincount()
    found = [t for t in range(VOCABULARY) if 0 < sum(t in a for a in answers) < len(answers) - 2]
    return max((t for t in found if t < len(counts)), key=lambda t: int(counts[t]))


# --------------------------------------------------------------------------- equal to the plain way


@pytest.mark.parametrize("batch_tokens", [1, 4 * POSITIONS, 10_000])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ids_are_those_of_the_plain_way(family: str, sampling: str, batch_tokens: int) -> None:
    """Prompts of 1 to 12 tokens, answers that end at eos, at their own length or at the last
    position; one slot, four, or one for each row."""
    model, picks = make_model(family), SAMPLINGS[sampling]
    model.set_prefix(make_prefix(1))
    model.eos_id = some_token(model)
    wanted = simple(model, prompts(), picks, limits=LIMITS)
    got = generate(model, prompts(), picks, batch_tokens=batch_tokens, limits=LIMITS)
    assert got == wanted
    assert any(len(answer) < limit for answer, limit in zip(got, LIMITS, strict=True))
    assert any(len(answer) == limit for answer, limit in zip(got, LIMITS, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_several_adapters_and_none_share_a_batch(family: str) -> None:
    model = make_model(family)
    model.set_prefix(make_prefix(3))
    chosen = [index % 4 - 1 for index in range(len(LENGTHS))]  # −1, 0, 1, 2, …
    picks = Sampling(12)
    wanted = simple(model, prompts(), picks, prefix_of_row=chosen)
    got = model.generate(prompts(), picks, batch_tokens=5 * POSITIONS, prefix_of_row=chosen)
    assert got == wanted
    for adapter in range(-1, 3):
        alone = model.generate(prompts(), picks, prefix_of_row=[adapter] * len(LENGTHS))
        where = [index for index, own in enumerate(chosen) if own == adapter]
        assert [alone[index] for index in where] == [got[index] for index in where]


def test_a_row_without_prefix_shares_a_batch_with_one_that_has_one() -> None:
    model = make_model("llama")
    without = model.generate(prompts(), Sampling(6))
    model.set_prefix(make_prefix(1))
    having = model.generate(prompts(), Sampling(6))
    assert having != without
    chosen = [-1, 0] * 5 + [-1]
    got = model.generate(prompts(), Sampling(6), prefix_of_row=chosen)
    assert got == [(having if own == 0 else without)[i] for i, own in enumerate(chosen)]


def test_a_row_that_ended_leaves_nothing_behind() -> None:
    """What is decoded beyond a row's end in its slot, and even NaN in it, reaches no later row."""
    model = make_model("mistral")
    wanted = simple(model, prompts(), Sampling(4))
    decoder = Decoder(model, Sampling(4), slots=2, room=15, ahead=20)
    decoder.prefill([0, 1], prompts()[2:4], [-1, -1], [], [0, 0])
    decoder.steps(20, 2, 6)  # far beyond the room
    assert all(bool(t.isfinite().all()) for pair in decoder.cache.layers for t in pair)
    first = decoder.prefill([1], [prompts()[0]], [-1], [], [0])
    steps = decoder.steps(3, 2, 6)
    assert [*first, *(tokens[1] for tokens in steps)] == wanted[0]


def test_a_limit_of_no_tokens_gives_an_empty_answer() -> None:
    model = make_model("llama")
    got = generate(model, prompts()[:2], Sampling(3), batch_tokens=100, limits=[0, 3])
    assert got == [[], simple(model, prompts()[:2], Sampling(3))[1]]


def test_numbers_drawn_together_are_those_drawn_singly() -> None:
    singly = generator(4, 7)
    wanted = torch.cat([torch.rand(1, generator=singly) for _ in range(100)])
    assert torch.equal(torch.rand(100, generator=generator(4, 7)), wanted)


@pytest.mark.parametrize("scores", [Scores(0.3), Scores(0.3, window=3), Scores(0.3, None, 2.0)])
def test_a_step_by_hand(scores: Scores) -> None:
    """Each row's own softmax over its prefix and what its slot holds up to its position."""
    draw = torch.Generator().manual_seed(0)
    cache, room = Cache(4, 9), 8
    cache.layers.append(
        (torch.randn(4, 2, 9, 5, generator=draw), torch.randn(4, 2, 9, 5, generator=draw))
    )
    prefix = torch.randn(2, 2, 3, 5, generator=draw), torch.randn(2, 2, 3, 5, generator=draw)
    positions, index = torch.tensor([0, 4, 7]), torch.tensor([1, -1, 0])
    query = torch.randn(3, 6, 1, 5, generator=draw)
    new = torch.randn(3, 2, 1, 5, generator=draw), torch.randn(3, 2, 1, 5, generator=draw)
    got = DecodeRows(cache, room, positions, index).attend(query, *new, prefix, scores)
    assert got.shape == (3, 1, 6, 5)
    for row in range(3):
        end = int(positions[row]) + 1
        first = 0 if scores.window is None else max(0, end - scores.window)
        for head in range(6):
            key, value = (layer[row, head // 3, first:end] for layer in cache.layers[0])
            assert torch.equal(key[-1], new[0][row, head // 3, 0])
            assert torch.equal(value[-1], new[1][row, head // 3, 0])
            if index[row] >= 0:
                key = torch.cat((prefix[0][index[row], head // 3], key))
                value = torch.cat((prefix[1][index[row], head // 3], value))
            logits = key @ query[row, head, 0] * 0.3
            if scores.softcap is not None:
                logits = scores.softcap * torch.tanh(logits / scores.softcap)
            torch.testing.assert_close(got[row, 0, head], logits.softmax(0) @ value)


# ------------------------------------------------------------------------------------------- slots


def requests(*sizes: tuple[int, int]) -> list[Request]:
    return [Request([5] * length, 0, limit) for length, limit in sizes]


def groups(wanted: list[Request], batch_tokens: int, *, cuda: bool = False) -> list[Any]:
    found = grouped(wanted, batch_tokens, cuda=cuda)
    return [([len(r.prompt) + r.limit for r in group], slots) for group, slots in found]


def test_groups_keep_the_budget() -> None:
    rows = requests((3, 2), (9, 2), (5, 2), (1, 2))
    assert groups(rows, 44) == [([11, 7, 5, 3], 4)]  # 4 slots of 11
    # one slot of 11; 3 does not need half as much, and waits for slots of 3
    assert groups(rows, 21) == [([11, 7], 1), ([5, 3], 2)]
    assert groups(rows, 1) == [([11, 7], 1), ([5], 1), ([3], 1)]  # 3 feeds 2 tokens, 5 feeds 4
    assert groups([], 9) == []


def test_a_gpu_has_room_for_eight_times_as_many_and_512_at_most() -> None:
    assert groups(requests(*[(4, 2)] * 50), 30, cuda=True) == [([6] * 50, 40)]
    assert groups(requests(*[(4, 2)] * 600), 10_000, cuda=True) == [([6] * 600, 512)]


def test_waiting_rows_take_the_slots_of_rows_at_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """11 rows of 4 tokens on 4 slots: 3 passes over prompts, and 3 x 3 steps."""
    model = make_model("llama")
    model.eos_id = -1
    passes, steps = [], []
    prefill, step = Decoder.prefill, Decoder.steps

    def prefilled(self: Decoder, slots: Sequence[int], *others: Any) -> list[int]:
        passes.append(list(slots))
        return prefill(self, slots, *others)

    def stepped(self: Decoder, count: int, rows: int, room: int) -> list[list[int]]:
        steps.append(rows)
        return step(self, count, rows, room)

    monkeypatch.setattr(Decoder, "prefill", prefilled)
    monkeypatch.setattr(Decoder, "steps", stepped)
    everything = [[7, 8, 9 + index] for index in range(11)]
    finished: list[int] = []
    model.generate(everything, Sampling(4), batch_tokens=4 * 7, progress=finished.append)
    assert passes == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2]]
    assert steps == [4] * 6 + [3] * 3  # the last slot is empty in the end, and left out
    assert finished == [4, 4, 3]


def test_prompts_go_in_by_a_budget_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    chunks = []
    prefill = Decoder.prefill

    def prefilled(self: Decoder, slots: Any, rows: Sequence[Sequence[int]], *others: Any) -> Any:
        chunks.append([len(row) for row in rows])
        return prefill(self, slots, rows, *others)

    monkeypatch.setattr(Decoder, "prefill", prefilled)
    waiting = requests((6, 3), (5, 3), (4, 3), (3, 3), (2, 3))
    Batch(model, waiting, Sampling(3), slots=5, prefill=10, progress=None).run()
    assert chunks == [[6], [5, 4], [3, 2]]


def test_a_watcher_gets_each_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    seen: dict[int, list[int]] = {}
    model.watcher = lambda key, token: seen.setdefault(key, []).append(token)
    fail_at(monkeypatch, "steps", above=2)
    got = model.generate(prompts(), Sampling(6), keys=range(100, 111))
    assert [seen.get(key, []) for key in range(100, 111)] == got


# ------------------------------------------------------------------------------------ out of memory


def fail_at(
    monkeypatch: pytest.MonkeyPatch, name: str, above: int, text: str = "CUDA out of memory."
) -> None:
    """From the third call on, the decoder fails if it has more than so many slots."""
    method: Callable[..., Any] = getattr(Decoder, name)
    calls: list[int] = []

    def failing(self: Decoder, *args: Any) -> Any:
        calls.append(self.cache.slots)
        if len(calls) > 2 and self.cache.slots > above:
            raise torch.OutOfMemoryError(text)
        return method(self, *args)

    monkeypatch.setattr(Decoder, name, failing)


@pytest.mark.parametrize("name", ["steps", "prefill"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_out_of_memory_halves_the_slots_and_goes_on(
    name: str, sampling: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, picks = make_model("glm"), SAMPLINGS[sampling]
    model.set_prefix(make_prefix(1))
    wanted = simple(model, prompts(), picks)
    fail_at(monkeypatch, name, above=2)
    finished: list[int] = []
    with caplog.at_level(logging.WARNING):
        got = model.generate(prompts(), picks, batch_tokens=8 * POSITIONS, progress=finished.append)
    assert got == wanted
    assert sum(finished) == len(LENGTHS)
    line = "out of memory while decoding: trying again with {} rows at once"
    assert [record.message for record in caplog.records] == [line.format(4), line.format(2)]


def test_one_row_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots are halved until there is one; the longest prompt, the fifth, is on it first."""
    fail_at(monkeypatch, "steps", above=0)
    model = make_model("llama")
    model.eos_id = -1  # no answer ends before its limit
    with pytest.raises(OutOfMemory) as caught:
        model.generate(prompts(), Sampling(12))  # of which each try gets one on
    assert caught.value.lines == (
        "prompt 5: has 12 tokens, which with an answer of up to 12 don't fit into memory even "
        "alone; shorten it, lower the limit of the answer, or take a smaller or quantised base "
        "model",
    )
    assert (caught.value.exit_code, caught.value.tokens) == (2, 12)


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Decoder, *args: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Decoder, "steps", fails)
    with pytest.raises(RuntimeError, match="shapes differ"):
        make_model("llama").generate(prompts(), Sampling(6))


# ----------------------------------------------------------------------------------- half precision


def forced_logits(
    model: Model, rows: Sequence[Sequence[int]], answers: Tensor
) -> tuple[Tensor, Tensor]:
    """[steps − 1, b, v] in float32, of the plain way and of the decoder, both fed ``answers``."""
    steps = answers.shape[1]
    plain = Plain(model, rows)
    room = max(map(len, rows)) + steps
    decoder = Decoder(model, Sampling(steps), slots=len(rows), room=room, ahead=1)
    decoder.prefill(range(len(rows)), rows, plain.prefixes, [], [0] * len(rows))
    found: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for column in answers[:, :-1].unbind(1):
            plain.feed(column)
            decoder.feed(column.to(model.device))
            logits = decoder.logits(len(rows), room).float()
            found.append((plain.logits.cpu(), logits.cpu()))
    return torch.stack([a for a, _ in found]), torch.stack([b for _, b in found])


@torch.no_grad()
def check_half_precision(
    model: Model, rows: Sequence[Sequence[int]], steps: int, *, share: float
) -> None:
    """Fed the same tokens, logits differ by ``share`` of their deviation at most, as a root mean
    square; left alone, ids part only where the plain way's logits of the two tokens are closer than
    twice the largest difference.

    Twice, since each of the two may be off by it, in opposite directions.
    """
    model.eos_id = -1
    answers = torch.tensor(simple(model, rows, Sampling(steps)))
    wanted, got = forced_logits(model, rows, answers)
    difference = wanted - got
    assert float(difference.square().mean().sqrt()) <= share * float(wanted.std())
    bound = float(difference.abs().max())
    free = torch.tensor(model.generate(rows, Sampling(steps)))
    for row, (one, other) in enumerate(zip(answers.tolist(), free.tolist(), strict=True)):
        step = next((i for i in range(steps) if one[i] != other[i]), None)
        if step is None:
            continue
        logits = Plain(model, [rows[row]]).logits[0].cpu() if step == 0 else wanted[step - 1, row]
        assert float(logits[one[step]] - logits[other[step]]) <= 2 * bound


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_parts_only_where_two_tokens_are_as_good(family: str) -> None:
    model = make_model(family, dtype=torch.bfloat16)
    model.set_prefix(make_prefix(1))
    # rounding alone puts both 0.006 to 0.022 away from float32, and 0.007 to 0.017 from each other
    check_half_precision(model, prompts(), 12, share=0.03)


@pytest.fixture
def _exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize("scores", [Scores(0.3), Scores(0.3, window=7), Scores(0.3, None, 2.0)])
@pytest.mark.parametrize(
    ("heads", "groups", "size", "prefix", "adapters"),
    [(4, 2, 8, 3, 1), (8, 2, 128, 70, 2), (4, 4, 24, 5, 3), (32, 2, 64, 16, 1), (6, 1, 256, 3, 1)],
)
def test_the_kernel_computes_what_the_plain_steps_do(
    heads: int, groups: int, size: int, prefix: int, adapters: int, scores: Scores
) -> None:
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"  # there in Triton's interpreter
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    rows, room = 5, 150
    positions = torch.tensor([0, 5, 64, 149, 100], device=device)
    index = torch.tensor([0, -1, adapters - 1, 0, 0], device=device)
    keys, values = normal(7, groups, room, size), normal(7, groups, room, size)
    pair = normal(adapters, groups, prefix, size), normal(adapters, groups, prefix, size)
    query = normal(rows, heads, 1, size)
    layout = DecodeRows(Cache(7, room), room, positions, index)
    for prefixes in (pair, None):
        wanted = layout.attend_plainly(query, keys, values, prefixes, scores)[:, 0]
        got = attend_slots(query[:, :, 0], keys, values, prefixes, positions, index, scores)
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------------------------- CUDA


@needs_cuda
@pytest.mark.usefixtures("_exact_float32")
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_give_the_ids_of_the_plain_way(family: str, sampling: str) -> None:
    model, picks = make_model(family, "cuda"), SAMPLINGS[sampling]
    model.set_prefix(make_prefix(2, "cuda"))
    chosen = [index % 3 - 1 for index in range(len(LENGTHS))]
    wanted = simple(model, prompts(), picks, prefix_of_row=chosen, limits=LIMITS)
    rows = [
        Request(prompt, key, limit, prefix)
        for key, (prompt, limit, prefix) in enumerate(zip(prompts(), LIMITS, chosen, strict=True))
    ]
    waiting = sorted(rows, key=lambda row: -row.room)
    with torch.no_grad():
        batch = Batch(model, waiting, picks, slots=4, prefill=20, progress=None)
        batch.run()
    assert [row.answer for row in rows] == [
        answer[: answer.index(2)] if 2 in answer else answer for answer in wanted
    ]
    assert batch.decoder.graph_failure is None
    assert batch.decoder.graphs > 0


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_on_a_gpu(family: str, dtype: torch.dtype) -> None:
    model = make_model(family, "cuda", dtype)
    model.set_prefix(make_prefix(1, "cuda"))
    check_half_precision(model, prompts(), 12, share=0.03)


@needs_cuda
def test_a_step_that_cannot_be_captured_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model("llama", "cuda")
    wanted = simple(model, prompts(), Sampling(12))
    feed = Decoder.feed

    def looking(self: Decoder, tokens: Tensor) -> None:
        tokens.tolist()  # waits for the device, which a capture doesn't allow
        feed(self, tokens)

    monkeypatch.setattr(Decoder, "feed", looking)
    with caplog.at_level(logging.WARNING):
        assert model.generate(prompts(), Sampling(12)) == wanted
    assert "decoding goes on without CUDA graphs" in caplog.text


@needs_cuda
def test_a_body_with_hooks_is_not_replayed() -> None:
    """A replay would not call them."""
    model = make_model("llama", "cuda")
    calls: list[int] = []
    handle = model.body.register_forward_pre_hook(lambda *args: calls.append(1))
    model.eos_id = -1
    model.generate([[5, 6, 7]], Sampling(9))
    handle.remove()
    assert len(calls) >= 9  # one for the prompt; the first token comes with it
