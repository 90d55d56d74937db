"""Runs that several processes share: the result of one, and what happens when one fails."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ptkit.commands.launch import launch
from ptkit.engine.processes import (
    ENDED_BY_OTHERS,
    resume_command,
)
from ptkit.engine.resume import check_same_run
from ptkit.errors import PtkitError

from .forked import Ended, share

SCRIPT = Path(__file__).with_name("shared_run.py")
COLOURS, KINDS = ["红色", "蓝色", "白色", "黑色"], ["裙", "裤", "上衣"]
RECIPE: dict[str, Any] = {
    "ptkit": 1,
    "backbone": {"kind": "tiny"},
    "prefix": {"length": 3},
    "dataset": {"kind": "adgen", "train": "train.json", "validation": "validation.json"},
    "task": {"kind": "failing-generation", "max_target_tokens": 12},
    "metrics": [{"kind": "bleu-char"}],
}
TRAIN = {"max_steps": 6, "batch_size": 5, "eval_every": 2, "seed": 0, "keep": 9}


class Jobs:
    """Runs in a folder with data of 20 and 7 rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, first, count in (("train", 0, 20), ("validation", 20, 7)):
            rows = [
                {
                    "content": f"类型#{KINDS[i // 4 % 3]}*颜色#{COLOURS[i % 4]}",
                    "summary": f"这 条 {COLOURS[i % 4]} 的 {'很 ' * (i % 5)} 好看 第 {i} 款",
                }
                for i in range(first, first + count)
            ]
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (root / f"{name}.json").write_text("".join(lines), "utf-8")

    def job(
        self,
        name: str,
        *,
        resume: bool = False,
        fault: Any = None,
        train: dict[str, Any],
        device: str = "cpu",
    ) -> Path:
        job = {
            "recipe": {**RECIPE, "train": {**TRAIN, **train}},
            "device": device,
            "folder": str(self.root),
            "out": str(self.root / name),
            "resume": resume,
            "fault": fault or {},
        }
        path = self.root / f"{name}.job"
        path.write_text(json.dumps(job))
        return path

    def run(
        self, name: str, count: int, *, resume: bool = False, fault: Any = None, **train: Any
    ) -> list[Ended]:
        path = self.job(name, resume=resume, fault=fault, train=train)
        return share(SCRIPT, path, count, self.root / "errors")

    def losses(self, name: str) -> list[tuple[str, int, float]]:
        lines = (self.root / name / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return [(e["event"], e["step"], e["loss"]) for e in events if "loss" in e]

    def check_losses(self, one: str, other: str, *, within: float) -> None:
        first, second = self.losses(one), self.losses(other)
        assert [event[:2] for event in first] == [event[:2] for event in second]
        assert [x[2] for x in first] == pytest.approx([x[2] for x in second], abs=within)

    def check_same(self, one: str, other: str) -> None:
        """Losses and adapter to 1e-6; predictions and scores in every byte."""
        self.check_losses(one, other, within=1e-6)
        adapter = load_file(self.root / one / "adapter" / "prefix.safetensors")
        for key, value in load_file(self.root / other / "adapter" / "prefix.safetensors").items():
            torch.testing.assert_close(value, adapter[key], atol=1e-6, rtol=0)
        for file in ("predictions.jsonl", "scores.json"):
            wanted = (self.root / one / file).read_bytes()
            assert (self.root / other / file).read_bytes() == wanted, file


FINE = Ended(0, "")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Jobs, one of which, "one", is done: a whole run in one process."""
    made = Jobs(tmp_path_factory.mktemp("shared"))
    assert made.run("one", 1) == [FINE]
    return made


# ------------------------------------------------------------------------------ the same result


@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_share_a_run_give_the_result_of_one(jobs: Jobs, count: int) -> None:
    name = f"shared-by-{count}"
    assert jobs.run(name, count) == [FINE] * count
    jobs.check_same("one", name)
    folder = jobs.root / name
    alone = {str(path.relative_to(jobs.root / "one")) for path in (jobs.root / "one").rglob("*")}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == alone
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["processes"] == count
    assert "processes" not in json.loads((jobs.root / "one" / "environment.json").read_text())


def test_a_base_that_is_spread_over_processes_gives_the_result_of_one(jobs: Jobs) -> None:
    assert jobs.run("spread", 2, shard_base=True) == [FINE] * 2
    jobs.check_same("one", "spread")


@pytest.mark.parametrize("shard_base", [False, True])
def test_a_process_without_rows_in_a_step_adds_nothing(jobs: Jobs, shard_base: bool) -> None:
    """One row a step, so that one of two processes has none; and a micro-batch a row, so that
    validation has four on one and three on the other."""
    train = {"batch_size": 1, "tokens_per_micro_batch": 1, "max_steps": 4}
    assert jobs.run(f"single-{shard_base}", 1, **train) == [FINE]
    assert jobs.run(f"idle-{shard_base}", 2, shard_base=shard_base, **train) == [FINE] * 2
    jobs.check_same(f"single-{shard_base}", f"idle-{shard_base}")


def test_recomputed_layers_of_a_spread_base_give_the_same(jobs: Jobs) -> None:
    assert jobs.run("recomputed", 2, shard_base=True, memory="small") == [FINE] * 2
    jobs.check_same("one", "recomputed")


def test_memory_that_runs_out_in_one_process_changes_nothing(jobs: Jobs) -> None:
    fault = {"rank": 1, "step": 2, "what": "memory"}
    assert jobs.run("memory", 2, fault=fault) == [FINE] * 2
    jobs.check_same("one", "memory")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("shard_base", [False, True])
@pytest.mark.parametrize(("dtype", "within"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_two_gpus_give_the_losses_of_one(
    jobs: Jobs, shard_base: bool, dtype: str, within: float
) -> None:
    names = [f"{count}-{dtype}-{shard_base}" for count in (1, 2)]
    for count, name in enumerate(names, start=1):
        job = jobs.job(name, train={"shard_base": shard_base}, device="cuda")
        changed = json.loads(job.read_text())
        changed["recipe"]["backbone"]["dtype"] = dtype
        job.write_text(json.dumps(changed))
        assert [ended.code for ended in share(SCRIPT, job, count, jobs.root / "errors")] == (
            [0] * count
        )
    jobs.check_losses(*names, within=within)


# ------------------------------------------------------------------------------ stop and resume


def test_one_process_then_two_then_one_go_on_with_the_same_order(jobs: Jobs) -> None:
    """SIGTERM in step 1 of the first, in step 3 of rank 1 alone of the second."""
    (alone,) = jobs.run("changing", 1, fault={"step": 1, "what": "stop"})
    resume = f"--out {jobs.root / 'changing'}"
    assert alone.code == 143
    assert "stopped with step-000002 saved" in alone.errors
    stopped = jobs.run("changing", 2, resume=True, fault={"rank": 1, "step": 3, "what": "stop"})
    assert [ended.code for ended in stopped] == [143, 143]
    assert "stopped with step-000004 saved; go on with: ptkit run" in stopped[0].errors
    assert f"{resume} --processes 2 --resume" in stopped[0].errors
    assert stopped[1].errors == ""
    assert jobs.run("changing", 1, resume=True) == [FINE]
    jobs.check_same("one", "changing")


def test_another_number_of_processes_is_a_warning(jobs: Jobs) -> None:
    folder = jobs.root / "one"
    recipe: Any = SimpleNamespace(to_toml=(folder / "recipe.toml").read_text)
    environment = json.loads((folder / "environment.json").read_text())
    assert check_same_run(folder, recipe, environment) == []
    assert check_same_run(folder, recipe, {**environment, "processes": 2}) == [
        "processes was 1, now it is 2: the result may differ in the last bits"
    ]


# ------------------------------------------------------------------------------ one that fails


def test_a_killed_process_ends_the_others_and_leaves_a_checkpoint(jobs: Jobs) -> None:
    first, second = jobs.run("killed", 2, fault={"rank": 1, "step": 3, "what": "kill"})
    assert (first.code, second.code) == (ENDED_BY_OTHERS, -9)
    (line,) = first.errors.splitlines()
    assert line.startswith("rank 0 of 2: another process of the run is gone (")
    folder = jobs.root / "killed"
    again = f"ptkit run {folder / 'recipe.toml'} --out {folder} --processes 2 --resume"
    assert line.endswith(f"stopped with step-000002 saved; go on with: {again}")
    assert jobs.run("killed", 2, resume=True) == [FINE] * 2
    jobs.check_same("one", "killed")


def test_the_launcher_names_the_process_that_was_killed(jobs: Jobs) -> None:
    fault = {"rank": 1, "step": 3, "what": "kill"}
    job, folder = jobs.job("launched", fault=fault, train={}), jobs.root / "launched"
    with pytest.raises(PtkitError) as caught:
        launch([sys.executable, str(SCRIPT), str(job)], 2, folder)
    again = resume_command(folder, 2)
    assert caught.value.lines == (f"rank 1 of 2 was killed by SIGKILL; go on with: {again}",)
    assert jobs.run("launched", 1, resume=True) == [FINE]
    jobs.check_same("one", "launched")


def test_a_loss_that_is_not_finite_is_told_once_with_its_rows(jobs: Jobs) -> None:
    first, second = jobs.run("nan", 2, fault={"what": "nan", "record": 7})
    assert (first.code, second) == (2, Ended(ENDED_BY_OTHERS, ""))
    lines = first.errors.splitlines()
    assert "rows with such a loss: train.json:8" in lines[0]
    assert len(lines) == 2


def test_data_that_no_process_can_read_is_told_once(jobs: Jobs) -> None:
    bad = jobs.root / "bad.json"
    bad.write_text('{"content": "a"}\n')
    job = jobs.job("bad", train={})
    recipe = json.loads(job.read_text())
    recipe["recipe"]["dataset"]["train"] = "bad.json"
    job.write_text(json.dumps(recipe))
    first, second = share(SCRIPT, job, 2, jobs.root / "errors")
    assert first.code == 2
    assert "bad.json:1: " in first.errors
    assert second == Ended(ENDED_BY_OTHERS, "")


def test_what_one_process_alone_refuses_is_told_by_it(jobs: Jobs) -> None:
    first, second = jobs.run("refused", 2, fault={"rank": 1, "step": 1, "what": "refusal"})
    assert second == Ended(2, "train.json:7: can't be used\n")
    assert first.code == ENDED_BY_OTHERS
    assert first.errors.startswith("rank 0 of 2: another process of the run is gone (")


def test_memory_that_runs_out_with_a_spread_base_ends_the_run(jobs: Jobs) -> None:
    fault = {"rank": 1, "step": 2, "what": "memory"}
    first, second = jobs.run("spread-memory", 2, shard_base=True, fault=fault)
    assert (first.code, second.code) == (ENDED_BY_OTHERS, 2)
    assert re.fullmatch(
        r"rank 1: memory ran out with \d+ tokens at once, and with train.shard_base the processes "
        r"can't try again with fewer; lower train.tokens_per_micro_batch\n",
        second.errors,
    )


def test_memory_that_runs_out_in_a_shared_pass_of_answers_ends_the_run(jobs: Jobs) -> None:
    """The other process waits inside that pass, in the next layer, until this one has ended."""
    fault = {"rank": 1, "what": "memory-in-pass"}
    first, second = jobs.run("spread-answers", 2, shard_base=True, fault=fault)
    assert (first.code, second.code) == (ENDED_BY_OTHERS, 2)
    warning, line = second.errors.splitlines()
    assert warning == "out of memory while decoding: trying again with 1 rows at once"
    assert line == (
        "rank 1: memory ran out in a pass that all processes take part in, and with "
        "train.shard_base one of them can't try again with fewer rows; start more processes, or "
        "lower the limits that the task has for its rows"
    )
    assert first.errors.startswith("rank 0 of 2: another process of the run is gone (")


def test_a_single_row_that_does_not_fit_into_a_shared_pass_is_told_too(jobs: Jobs) -> None:
    fault = {"rank": 1, "what": "memory-in-pass"}
    job = jobs.job("spread-row", train={"shard_base": True}, fault=fault)
    changed = json.loads(job.read_text())
    changed["recipe"]["dataset"]["limit"] = {"validation": 2}  # a row for each
    job.write_text(json.dumps(changed))
    _, second = share(SCRIPT, job, 2, jobs.root / "errors")
    assert second.code == 2
    assert second.errors.startswith("validation.json:1: has 12 tokens, which with an answer of up")


def test_memory_that_runs_out_between_shared_passes_is_no_other_process_s_matter(
    jobs: Jobs,
) -> None:
    fault = {"rank": 1, "what": "memory-behind-pass"}
    ended = jobs.run("spread-retry", 2, shard_base=True, fault=fault)
    line = "out of memory while decoding: trying again with 1 rows at once\n"
    assert ended == [FINE, Ended(0, line)]
    jobs.check_same("one", "spread-retry")


def test_memory_that_runs_out_while_one_process_answers_changes_nothing(jobs: Jobs) -> None:
    """Each has the whole base: nobody waits inside its passes."""
    fault = {"rank": 1, "what": "memory-in-pass"}
    ended = jobs.run("answers", 2, fault=fault)
    assert [each.code for each in ended] == [0, 0]
    assert ended[1].errors.startswith("out of memory while decoding: trying again with ")
    jobs.check_same("one", "answers")
