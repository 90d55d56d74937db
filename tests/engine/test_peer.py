"""The same work by PEFT: equal losses and answers, less memory, and what it can't do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ptkit_labelled
import pytest
import torch
from torch import nn

import ptkit
from ptkit.engine import measuring
from ptkit.engine.bench import Bench, bench
from ptkit.engine.peer import Peer, PeerError, whole_model
from ptkit.registry import Owner, Registry
from ptkit.testing import TinyBackbone

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "AT_LEAST", 0.0)


@needs_peft
def test_both_do_the_same_work(make_recipe: Any) -> None:
    result = bench(
        make_recipe(prefix={"init_std": 0.5}),
        device="cpu",
        steps=2,
        warmup=1,
        against_peft=True,
        answers=True,
    )
    assert result.notes == []
    data = result.as_dict()
    ours, theirs = data["ptkit"], data["peft"]
    assert theirs["steps"].keys() == ours["steps"].keys()
    assert theirs["answers"].keys() == ours["answers"].keys()
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-5)
    assert data["same_answers"] == ours["answers"]["rows"] == 6
    assert theirs["steps"]["at_once"] == "4 rows"
    assert len(theirs["steps"]["losses"]) == 3
    assert theirs["answers"]["new_tokens"] == ours["answers"]["new_tokens"]


@needs_peft
def test_their_steps_are_ours(make_recipe: Any) -> None:
    """Without dropout and with equal means, AdamW takes PEFT through the same losses.

    AdamW's steps are not the same in a rotated basis, so the second loss agrees less.
    """
    recipe = make_recipe(
        prefix={"dropout": 0.0},
        train={"learning_rate": 1e-3, "clip_norm": 0, "schedule": "constant"},
    )
    result = bench(recipe, device="cpu", steps=2, warmup=1, against_peft=True)
    assert result.ptkit.steps is not None
    assert result.peft.steps is not None
    ours, theirs = result.ptkit.steps.losses, result.peft.steps.losses
    assert theirs[0] == pytest.approx(ours[0], abs=1e-5)
    assert theirs == pytest.approx(ours, abs=5e-3)


Maker = Callable[..., Bench]


@pytest.fixture
def made(make_recipe: Any) -> Maker:
    """A benchmark whose own side is done, so that PEFT's can be made."""

    def make(**sections: Any) -> Bench:
        one = Bench(make_recipe(**sections), device="cpu", steps=1, warmup=1)
        one.load()
        one.unload()
        return one

    return make


@needs_peft
def test_rows_in_parts_have_the_loss_of_all(made: Maker) -> None:
    one = made()
    groups = one.groups(0)
    losses = [one.peer(rows).loss(one.store, groups) for rows in (None, 3, 1)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    steps = [one.peer(rows).step(one.store, groups) for rows in (None, 3, 1)]
    assert steps == pytest.approx([losses[0]] * 3, abs=1e-6)


def limited(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Memory for so many rows of a step, or prompts, at once."""
    plain = Peer._sum

    def some(self: Peer, batch: Sequence[ptkit.EncodedRow]) -> torch.Tensor:
        if len(batch) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, batch)

    monkeypatch.setattr(Peer, "_sum", some)


@needs_peft
def test_peft_takes_half_the_rows_when_memory_runs_out(
    made: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made()
    undisturbed = one.train_peer(one.peer())
    limited(monkeypatch, 1)
    found = one.train_peer(one.peer())
    assert (undisturbed.at_once, found.at_once) == ("4 rows", "1 row")
    assert found.losses == pytest.approx(undisturbed.losses, abs=1e-5)
    assert len(found.seconds) == 1


@needs_peft
def test_peft_that_fits_no_row_is_a_note(make_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 0)
    result = bench(make_recipe(), device="cpu", steps=1, warmup=1, against_peft=True)
    assert result.notes == ["PEFT: not compared: it runs out of memory with a single row"]
    assert result.ptkit.steps is not None
    assert result.peft.steps is None


@needs_peft
def test_peft_without_memory_to_load_is_a_note(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Peer, "_try", full)
    result = bench(make_recipe(), device="cpu", steps=1, warmup=1, against_peft=True)
    assert result.notes == ["PEFT: not compared further: the device has not enough memory"]


@needs_peft
def test_peft_answers_fewer_at_once_when_memory_runs_out(
    made: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made()
    questions = one.questions()
    plain = one.peer()
    ids = plain.answer(questions.prompts, questions.lengths)
    assert [len(some) for some in ids] == questions.lengths
    small = one.peer()
    generate = small.model.generate

    def some(**options: Any) -> Any:
        if len(options["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**options)

    monkeypatch.setattr(small.model, "generate", some)
    assert small.answer(questions.prompts, questions.lengths) == ids
    assert small.answered_at_once == 1  # 6 prompts, 3, 1


@needs_peft
def test_a_head_of_its_own_and_an_encoder(
    make_recipe: Any, registry: Registry, tmp_path: Path
) -> None:
    registry.register(ptkit_labelled, Owner("labelled", "ptkit-labelled", "0.1.0"))
    lines = [{"text": f"a b c {i}", "label": "xy"[i % 2]} for i in range(8)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "labels.jsonl").write_text(text, "utf-8")

    def recipe(*, causal: bool) -> ptkit.Recipe:
        made: ptkit.Recipe = make_recipe(
            backbone={"causal": causal},
            dataset={"kind": "labelled-text", "train": "labels.jsonl", "validation": None},
            task={"kind": "sequence-classification", "max_target_tokens": None},
            metrics=[],
        )
        return made

    result = bench(recipe(causal=True), device="cpu", steps=1, warmup=1, against_peft=True)
    assert result.notes == []
    assert result.work.targets == 0
    assert result.peft.loss == pytest.approx(result.ptkit.loss, abs=1e-5)
    result = bench(recipe(causal=False), device="cpu", steps=1, warmup=1, against_peft=True)
    assert result.peft.steps is not None
    assert result.peft.loss is None  # BERT's positions begin behind PEFT's prefix
    with pytest.raises(ptkit.PtkitError) as error:
        bench(recipe(causal=True), device="cpu", steps=1, warmup=1, answers=True)
    assert error.value.lines == (
        "--generate: task.kind 'sequence-classification' generates no answers; leave the option "
        "out",
    )


@needs_peft
def test_what_peft_does_otherwise_is_told(make_recipe: Any) -> None:
    recipe = make_recipe(prefix={"projection": True}, train={"memory": "small"})
    result = bench(recipe, device="cpu", steps=1, warmup=1, against_peft=True)
    assert result.notes == [
        "PEFT: trains a flat prefix; the recipe's has a projection besides",
        "PEFT: keeps all activations, because prefix tuning fails there with checkpointing",
    ]
    assert result.peft.loss == pytest.approx(result.ptkit.loss, abs=1e-5)


@needs_peft
def test_a_model_that_peft_cant_tune_is_a_note(
    make_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_prefix(self: Peer) -> None:
        raise ValueError("no\nprefix here")

    monkeypatch.setattr(Peer, "_try", no_prefix)
    result = bench(make_recipe(), device="cpu", steps=1, warmup=1, against_peft=True)
    assert result.notes == [
        "PEFT: not compared: it can't tune GlmForCausalLM (ValueError: no prefix here)"
    ]


@needs_peft
def test_a_quantised_base_is_told(make_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyBackbone, "quantization", "int4")
    result = bench(make_recipe(), device="cpu", steps=1, warmup=1, against_peft=True)
    assert result.notes == ["PEFT: works on the same int4 linears, which are ptkit's"]


@needs_peft
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu(make_recipe: Any) -> None:
    result = bench(
        make_recipe(backbone={"dtype": "float32"}),
        device="cuda",
        steps=1,
        warmup=1,
        against_peft=True,
        answers=True,
    )
    assert result.notes == []
    weights = 4 * result.parameters
    for side in (result.ptkit, result.peft):
        assert side.steps is not None
        assert side.answers is not None
        assert side.steps.peak_bytes is not None
        assert side.steps.peak_bytes > weights
        assert side.answers.peak_bytes is not None
        assert side.answers.peak_bytes > weights
    assert result.peft.loss == pytest.approx(result.ptkit.loss, abs=1e-4)
    assert "gpu" in result.environment


def test_an_lm_head_that_does_more_is_refused() -> None:
    loaded = TinyBackbone().load("cpu", "float32")
    assert whole_model(loaded).lm_head is loaded.lm_head
    loaded.lm_head = nn.Sequential(nn.Linear(32, 64))
    with pytest.raises(PeerError) as error:
        whole_model(loaded)
    assert error.value.lines == (
        "PEFT: not compared: GlmForCausalLM is not made of GlmModel and Sequential",
    )


def test_a_body_without_a_causal_model_is_refused() -> None:
    from transformers import ViTConfig

    loaded = TinyBackbone().load("cpu", "float32")
    loaded.body.config = ViTConfig()
    with pytest.raises(PeerError) as error:
        whole_model(loaded)
    (line,) = error.value.lines
    assert line.startswith("PEFT: not compared: no causal model of GlmModel (Unrecognized conf")
