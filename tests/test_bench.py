"""``ptkit bench``: what is counted and measured, the table, the file, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import ptkit
from ptkit import cli
from ptkit.commands.bench import table
from ptkit.engine import bench as bench_module
from ptkit.engine import measuring, peer
from ptkit.engine.bench import Bench, Clock, bench
from ptkit.engine.matmuls import layer_shapes, measure_matmuls, step_flops
from ptkit.engine.measuring import PeakMemory
from ptkit.engine.questions import Asked, Questions, questions_of
from ptkit.records import Geometry
from ptkit.reporter import Reporter
from ptkit.testing import TinyBackbone

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "AT_LEAST", 0.0)


TOY = Geometry(
    layers=2,
    heads=2,
    kv_groups=1,
    head_size=2,
    hidden_size=4,
    vocab_size=10,
    max_positions=8,
    # embeddings and LM head 2·10·4; a layer 144 and two norms of 4; the last norm
    parameters=80 + 2 * (144 + 8) + 4,
    ffn_size=8,
)


# ------------------------------------------------------------------------------------ counting


def test_a_layers_matmuls() -> None:
    # query, key and value of 4 + 2 + 2 rows; output; gate and up; down
    assert layer_shapes(TOY) == ((4, 8), (4, 4), (4, 16), (8, 4))


def test_an_encoder_has_no_gate() -> None:
    geometry = TinyBackbone(TinyBackbone.Settings(causal=False)).geometry
    assert layer_shapes(geometry) == ((32, 96), (32, 32), (32, 64), (64, 32))


def test_a_steps_operations() -> None:
    # forward 2·3·2·144, backward the same without the first query, key and value; 4·10 LM head
    assert step_flops(TOY, 3, 1) == 1728 + (1728 - 2 * 3 * 32) + 2 * 2 * 40 == 3424
    assert step_flops(TOY, 3, 0) == 3424 - 160
    assert step_flops(TOY, 6, 2) == 2 * 3424


def test_a_full_size_step() -> None:
    """16 rows of 120 tokens, 75 of them targets, at ChatGLM2-6B's shape: 45.05 TFLOP."""
    geometry = Geometry(28, 32, 2, 128, 4096, 65024, 32768, 6_243_584_000, ffn_size=13696)
    layer = 4096 * 4608 + 4096 * 4096 + 3 * 4096 * 13696
    by_hand = 2 * 1920 * (56 * layer - 4096 * 4608) + 4 * 1200 * 4096 * 65024
    assert step_flops(geometry, 1920, 1200) == by_hand
    assert by_hand == pytest.approx(45.05e12, rel=1e-3)


@pytest.mark.parametrize("targets", [0, 2])
def test_the_rate_of_matmuls_is_measured(targets: int) -> None:
    rate = measure_matmuls(TOY, 3, targets, dtype="float32", device="cpu")
    assert (rate.dtype, rate.tokens, rate.targets) == ("float32", 3, targets)
    assert rate.flops_per_second > 0


def test_a_pass_takes_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(measuring, "AT_LEAST", 0.3)
    passes: list[int] = []

    def work(index: int) -> None:
        passes.append(index)
        now[0] += 0.125

    assert measuring.seconds_of(work, "cpu") == 0.125
    assert passes == [0, 1, 0, 1, 2, 3, 4]  # a warm-up of two, then at least 0.3 s


def test_the_growth_of_memory() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    with PeakMemory("cpu") as memory:
        block = torch.ones(2**24)  # 64 MiB
        del block
    assert memory.bytes is not None
    assert memory.bytes > 2**25


def test_memory_that_cant_be_measured_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    with PeakMemory("cpu") as memory:
        pass
    assert memory.bytes is None


def test_the_clock_takes_training_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5, 3.5])
    monkeypatch.setattr(bench_module.time, "perf_counter", lambda: next(times))
    clock = Clock(Reporter(), 2)
    clock.event("train", {"loss": 2.0})
    clock.event("validation", {"loss": 9.0})
    clock.event("train", {"loss": 1.0})
    assert (clock.seconds, clock.losses) == ([0.5, 2.0], [2.0, 1.0])


# ------------------------------------------------------------------------------------ ptkit


def test_what_a_step_is(make_recipe: Any) -> None:
    """A start id, ten words of "类型#裙*颜色#红色" (eleven with 上衣), three of an answer, eos."""
    recipe = make_recipe(task={"max_target_tokens": 3}, train={"batch_size": 10})
    one = Bench(recipe, device="cpu", steps=2, warmup=1)
    records = one.order.step(1) + one.order.step(2)
    longer = sum(index // 4 % 3 == 2 for index in records)
    assert (one.work.rows, one.work.targets) == (10, 10 * 4)
    assert one.work.tokens == 10 * 15 + longer / 2
    # the operations are linear in both
    by_hand = step_flops(one.backbone.geometry, 20 * 15 + longer, 80)
    assert one.work.flops == by_hand / 2


def test_only_ptkit(make_recipe: Any) -> None:
    result = bench(make_recipe(), device="cpu", steps=2, warmup=1, command="ptkit bench r.toml")
    data = json.loads(json.dumps(result.as_dict()))
    steps = data["ptkit"]["steps"]
    assert len(steps["seconds"]) == 2
    assert len(steps["losses"]) == 3
    assert steps["at_once"] == "4,096 tokens"
    assert steps["tokens_per_second"] * steps["median_seconds"] == pytest.approx(
        data["work"]["tokens"]
    )
    assert steps["targets_per_second"] * steps["median_seconds"] == pytest.approx(
        data["work"]["targets"]
    )
    reached = data["work"]["flops"] / steps["median_seconds"]
    assert steps["share_of_matmul_rate"] == pytest.approx(
        reached / data["matmuls"]["flops_per_second"]
    )
    # the middle of two times
    assert steps["median_seconds"] == pytest.approx(sum(steps["seconds"]) / 2)
    assert data["peft"] == {"steps": None, "loss": None, "answers": None}
    assert data["ptkit"]["answers"] is None
    assert data["same_answers"] is None
    assert data["command"] == "ptkit bench r.toml"
    assert data["trainable"] == 3 * 2 * 2 * 2 * 8  # p, layers, key and value, groups, head size
    assert data["estimated_bytes"] > 4 * data["parameters"]
    assert {"torch", "transformers", "peft"} <= data["environment"]["packages"].keys()


def test_the_losses_are_those_of_a_run(make_recipe: Any, tmp_path: Path) -> None:
    recipe = make_recipe(train={"max_steps": 3})
    result = bench(recipe, device="cpu", steps=2, warmup=1)
    ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    lines = (tmp_path / "run" / "events.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    trained = [event["loss"] for event in events if event["event"] == "train"]
    assert result.ptkit.steps is not None
    assert result.ptkit.steps.losses == pytest.approx(trained, abs=1e-6)


def test_a_prefix_is_as_before_behind_the_steps(make_recipe: Any) -> None:
    one = Bench(make_recipe(prefix={"dropout": 0.0}), device="cpu", steps=1, warmup=1)
    one.load()
    before = one.loss()
    steps = one.train()
    assert one.loss() == before
    # with no dropout, the first step's loss is that of the untrained prefix
    assert steps.losses[0] == pytest.approx(before, abs=1e-6)
    assert torch.equal(one.trainable.prefix.flat(), one.flat)


def test_layers_are_computed_again_as_in_a_run(make_recipe: Any) -> None:
    result = bench(make_recipe(train={"memory": "small"}), device="cpu", steps=1, warmup=1)
    assert result.layers_recomputed == 2
    assert bench(make_recipe(), device="cpu", steps=1, warmup=1).layers_recomputed == 0


def test_a_budget_that_was_halved_is_told(make_recipe: Any, monkeypatch: Any) -> None:
    def train(training: Any, watcher: Clock, progress: Any) -> None:
        watcher.halved(1, 512)
        watcher.halved(1, 256)
        for _ in range(2):
            watcher.event("train", {"loss": 1.0})

    one = Bench(make_recipe(), device="cpu", steps=1, warmup=1)
    one.load()
    monkeypatch.setattr(bench_module, "train", train)
    assert one.train().at_once == "256 tokens"


def test_questions_are_those_of_the_head(make_recipe: Any) -> None:
    one = Bench(make_recipe(), device="cpu", steps=1, warmup=1)
    part = one.prepared.parts["validation"]
    found = one.questions()
    assert len(found.prompts) == part.count
    for row, prompt, length in zip(part.rows, found.prompts, found.lengths, strict=True):
        labels = [label for label in row.labels if label != ptkit.IGNORE]
        assert [*prompt, *labels] == list(row.tokens)
        assert length == min(len(labels), 12)  # task.max_target_tokens; eos is one more
    assert found.first(2, 4) == Questions(found.prompts[:2], [4, 4])


def test_a_row_without_an_answer_gets_one_as_long_as_allowed(make_recipe: Any) -> None:
    head = make_recipe().task.create()
    row = ptkit.EncodedRow(ptkit.Row((5, 6), (ptkit.IGNORE,) * 2), 0)
    assert questions_of(head, [row]) == Questions([[5, 6]], [12])


def test_answers_have_the_lengths_that_are_wanted(make_recipe: Any) -> None:
    one = Bench(make_recipe(), device="cpu", steps=1, warmup=1)
    one.load()
    before = one.model.eos_id, one.model.stop_ids
    questions = one.questions()
    questions = Questions(questions.prompts, [3, 12, 1, 7, 5, 2])
    found = one.answer(questions)
    assert [len(ids) for ids in found.ids] == questions.lengths
    assert (found.rows, found.new_tokens) == (6, 30)
    assert found.as_dict()["rows_per_second"] == pytest.approx(6 / found.seconds)
    assert found.as_dict()["tokens_per_second"] == pytest.approx(30 / found.seconds)
    assert (one.model.eos_id, one.model.stop_ids) == before


def test_the_stand_in_keeps_prompts() -> None:
    asked = Asked()
    assert asked.generate([(1, 2), (3,)], ptkit.Sampling(4), keys=[0, 1]) == [[], []]
    assert asked.prompts == [[1, 2], [3]]


# ------------------------------------------------------------------------------------ the command


RECIPE = """\
ptkit = 1
[backbone]
kind = "chatglm2"
source = "random:chatglm2-tiny"
[prefix]
length = 4
[dataset]
kind = "adgen"
train = "train.json"
validation = "validation.json"
[task]
kind = "generation"
max_target_tokens = 8
[[metrics]]
kind = "bleu-char"
[train]
max_steps = 1
batch_size = 2
"""


@pytest.fixture
def run(
    make_recipe: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "r.toml").write_text(RECIPE, "utf-8")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["bench", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@needs_peft
def test_the_table_and_the_file(run: Any) -> None:
    options = ["--device", "cpu", "--steps", "1", "--warmup", "1", "--against", "peft"]
    code, out, err = run("r.toml", *options, "--generate", "--json", "out.json")
    assert code == 0, err
    data = json.loads(Path("out.json").read_text("utf-8"))
    assert data["command"] == f"ptkit bench r.toml {' '.join(options)} --generate --json out.json"
    lines = out.splitlines()
    # embeddings and LM head 2·1024·64; a layer: 2 norms of 64, (64 + 2·32) rows of query, key and
    # value with bias, output, 3 matrices of the MLP; the last norm
    layer = 2 * 64 + 128 * 65 + 64 * 64 + 3 * 160 * 64
    assert lines[0].startswith(
        f"{2 * 1024 * 64 + 2 * layer + 64:,} frozen parameters in float32 on"
    )
    work = data["work"]
    assert lines[1].startswith(
        f"a step: 2 rows, {work['tokens']:,.0f} tokens, {work['targets']:,.0f} of them targets, "
    )
    cells = {line[:30].strip(): line[30:].split() for line in lines[4:] if line}
    assert cells[""] == ["ptkit", "PEFT", "ratio"]
    ours, theirs = (data[side]["steps"]["median_seconds"] for side in ("ptkit", "peft"))
    assert cells["a step, median, s"][2] == f"{theirs / ours:.2f}"
    assert cells["tokens/s"][2] == f"{theirs / ours:.2f}"
    assert cells["tokens/s"][0] == f"{work['tokens'] / ours:,.0f}"
    assert cells["answered rows/s"][0] == f"{data['ptkit']['answers']['rows_per_second']:,.1f}"
    assert f"the same answers: {data['same_answers']} of 6" in lines
    assert lines[-1] == "wrote out.json"


def test_a_task_without_target_tokens_has_no_line_of_them() -> None:
    steps = {"median_seconds": 0.1, "tokens_per_second": 30.0, "targets_per_second": 0.0}
    data = {
        "ptkit": {"steps": steps, "answers": None},
        "peft": {"steps": None, "answers": None},
        "work": {"targets": 0},
        "device": "cpu",
    }
    assert [line[0] for line in table(data)] == [
        "a step, median, s",
        "tokens/s",
        "together in the model",
    ]


def test_the_table_of_ptkit_alone(run: Any) -> None:
    code, out, err = run("r.toml", "--device", "cpu", "--steps", "1", "--warmup", "1")
    assert code == 0, err
    assert "PEFT" not in out
    assert "ratio" not in out
    assert any(line.split()[-2:] == ["4,096", "tokens"] for line in out.splitlines())


def test_the_command_is_kept_as_it_was_given(run: Any) -> None:
    given = ["r.toml", "--device", "cpu", "--set", "prefix.length=2", "--set", "train.batch_size=1"]
    code, _, err = run(*given, "--steps", "1", "--warmup", "1", "--json", "out file.json")
    assert code == 0, err
    data = json.loads(Path("out file.json").read_text("utf-8"))
    assert data["command"] == (
        "ptkit bench r.toml --device cpu --set prefix.length=2 --set train.batch_size=1 "
        "--steps 1 --warmup 1 --json 'out file.json'"
    )
    assert data["work"]["rows"] == 1


def test_peft_that_is_missing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    code, out, err = run("r.toml", "--against", "peft")
    assert (code, out) == (2, "")
    assert err == (
        "--against peft: the package peft is not installed; install it (pip install peft), or "
        "leave the option out\n"
    )


def test_a_recipe_that_is_wrong(run: Any) -> None:
    code, out, err = run("r.toml", "--set", 'backbone.source="random:chatglm2-huge"')
    assert (code, out) == (2, "")
    assert "ptkit-chatglm2 has no 'random:chatglm2-huge'" in err
