"""Memory that runs out elsewhere than in a step: in the try before training, and in predictions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from ptkit_tasks.generation import Generation

from ptkit.components import TaskHead
from ptkit.engine.evaluate import predict_rows
from ptkit.engine.model import Model
from ptkit.engine.outofmemory import OutOfMemory
from ptkit.engine.probe import probe
from ptkit.engine.session import run
from ptkit.engine.tuned import Tuned
from ptkit.errors import CheckpointError, PtkitError
from ptkit.models import LoadedBackbone
from ptkit.recipe import Recipe
from ptkit.records import IGNORE, EncodedRow, HeadLimits, Origin, Row, Sampling
from ptkit.testing import TinyBackbone, tiny_model


def no_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def no_cpu_memory() -> None:
    torch.empty(2**50)  # what torch raises on a CPU is a plain RuntimeError


def no_memory_of_python() -> None:
    raise MemoryError


KINDS = [no_gpu_memory, no_cpu_memory, no_memory_of_python]


def limit_tokens(model: Model, most: int, fail: Callable[[], None] = no_gpu_memory) -> list[int]:
    """Let the body run out of memory above ``most`` tokens; the list gets those of every pass."""
    passes: list[int] = []

    def check(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        passes.append(kwargs["input_ids"].numel())
        if passes[-1] > most:
            fail()

    model.body.register_forward_pre_hook(check, with_kwargs=True)
    return passes


# ------------------------------------------------------------------------------------------ probe

NO_ROOM = (
    "GlmModel: its weights leave no memory for rows, not even for two of 8 tokens; free what other "
    "programs use, or take a smaller or quantised base model"
)


def refusal(model: Model) -> PtkitError:
    with pytest.raises(PtkitError) as refused:
        probe(model)
    assert not isinstance(refused.value, CheckpointError)  # nothing is wrong with the checkpoint
    assert refused.value.exit_code == 2
    return refused.value


@pytest.mark.parametrize("fail", KINDS)
def test_memory_that_runs_out_in_the_probe(fail: Callable[[], None]) -> None:
    model = tiny_model()
    limit_tokens(model, 0, fail)
    assert refusal(model).lines == (NO_ROOM,)


def test_memory_that_runs_out_in_the_backward_pass_of_the_probe() -> None:
    model = tiny_model()

    def watch(module: Any, inputs: Any, output: Any) -> None:
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.register_hook(lambda _: no_gpu_memory())

    model.body.register_forward_hook(watch)
    assert refusal(model).lines == (NO_ROOM,)


def test_a_run_whose_weights_fill_the_memory(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = TinyBackbone.load

    def full(self: TinyBackbone, *args: Any) -> LoadedBackbone:
        loaded = load(self, *args)
        loaded.body.register_forward_pre_hook(lambda *_: no_gpu_memory())
        return loaded

    monkeypatch.setattr(TinyBackbone, "load", full)
    with pytest.raises(PtkitError) as caught:
        run(make_recipe(), out=tmp_path / "run", device="cpu")
    assert caught.value.lines == (NO_ROOM,)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------ predictions


class Means:
    """As much of a head as predictions need: the mean of a row's states."""

    def limits(self) -> HeadLimits:
        return HeadLimits()

    def predict(self, model: Model, module: None, rows: list[EncodedRow]) -> list[torch.Tensor]:
        states = model.states(rows).hidden.split([len(row.tokens) for row in rows])
        return [own.mean(0) for own in states]


HEAD = cast(TaskHead, Means())
LENGTHS = (3, 7, 2, 5, 1, 6)
ORIGINS = {i: Origin("rows.json", i + 1) for i in range(len(LENGTHS))}


def rows() -> list[EncodedRow]:
    draw = torch.Generator().manual_seed(5)
    tokens = [torch.randint(5, 30, (n,), generator=draw).tolist() for n in LENGTHS]
    return [
        EncodedRow(Row(tuple(own), (IGNORE,) * len(own)), index) for index, own in enumerate(tokens)
    ]


@pytest.mark.parametrize("fail", KINDS)
def test_rows_that_do_not_fit_together_are_predicted_in_halves(
    fail: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """24 tokens, then 7 + 6 + 5, then 7 + 6, and so on, longest first."""
    model = tiny_model()
    wanted = predict_rows(model, HEAD, None, rows())
    passes = limit_tokens(model, 13, fail)
    told: list[int] = []
    with caplog.at_level(logging.WARNING):
        got = predict_rows(model, HEAD, None, rows(), told.append, ORIGINS)
    assert passes == [24, 18, 13, 5, 6]
    assert told == [2, 3, 6]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    line = "out of memory: trying again with {} rows at once"
    assert [record.message for record in caplog.records] == [line.format(3), line.format(2)]


def test_a_row_that_does_not_fit_alone() -> None:
    model = tiny_model()
    limit_tokens(model, 6)
    with pytest.raises(OutOfMemory) as caught:
        predict_rows(model, HEAD, None, rows(), origins=ORIGINS)
    assert caught.value.lines == (
        "rows.json:2: has 7 tokens, which don't fit into memory even alone; shorten it with the "
        "settings of the task, or take a smaller or quantised base model",
    )
    assert caught.value.exit_code == 2
    with pytest.raises(OutOfMemory, match=r"^record 1: has 7 tokens, which don't fit"):
        predict_rows(model, HEAD, None, rows())


def test_other_errors_are_not_taken_for_it() -> None:
    model = tiny_model()

    def wrong() -> None:
        raise RuntimeError("shapes differ")

    passes = limit_tokens(model, 0, wrong)
    with pytest.raises(PtkitError, match="'means'.*shapes differ"):
        predict_rows(model, named_head(), None, rows())
    assert passes == [24]


def named_head() -> Any:
    """With what a message about it needs."""
    head: Any = Means()
    head.name, head.owner = "means", ""
    return head


# ---------------------------------------------------------------------------------------- answers

ANSWERS = Generation(
    Generation.Settings.model_validate({"max_target_tokens": 4, "sampling": {"max_new_tokens": 4}})
)
TOO_LONG = (
    "has 7 tokens, which with an answer of up to 4 don't fit into memory even alone; shorten it, "
    "lower the limit of the answer, or take a smaller or quantised base model"
)


def test_a_prompt_that_does_not_fit_alone_is_told_with_its_line() -> None:
    """Whatever the head asks for: the row that fails alone is the one."""
    model = tiny_model()
    limit_tokens(model, 6)
    with pytest.raises(OutOfMemory) as caught:
        predict_rows(model, ANSWERS, None, rows(), origins=ORIGINS)
    assert caught.value.lines == (f"rows.json:2: {TOO_LONG}",)


def test_a_prompt_without_a_row_is_told_with_its_number() -> None:
    model = tiny_model()
    limit_tokens(model, 6)
    with pytest.raises(OutOfMemory) as caught:
        model.generate([row.tokens for row in rows()], Sampling(4))
    assert caught.value.lines == (f"prompt 2: {TOO_LONG}",)
    # the tensors of the failed pass are not kept alive
    assert caught.value.__context__ is None


def test_answers_that_fit_are_the_same(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    wanted = predict_rows(model, ANSWERS, None, rows())
    limit_tokens(model, 13)
    assert predict_rows(model, ANSWERS, None, rows(), origins=ORIGINS) == wanted
    assert "out of memory while decoding" in caplog.text


def test_a_base_model_that_answers_a_long_message() -> None:
    backbone = TinyBackbone()
    model = tiny_model(backbone)
    limit_tokens(model, 3)
    tuned = Tuned(backbone, model, None, None, None)
    with pytest.raises(PtkitError, match=r"^prompt 1: has \d+ tokens, which with an answer of up"):
        tuned.chat("one two three four five")
