"""``ptkit predict``: order, bad rows, and going on after any stop with the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

import ptkit
from ptkit import cli
from ptkit.commands.chat import Chat
from ptkit.engine import answers, files, predicting
from ptkit.engine.predicting import predict_file
from ptkit.engine.scoring import evaluate_file
from ptkit.engine.stopping import Interrupted
from ptkit.errors import DataError, PtkitError, RecipeError
from ptkit.registry import Owner, Registry
from ptkit.reporter import Reporter
from ptkit.testing import TinyBackbone

MakeAdapter = Callable[..., Path]
COLOURS = ["红色", "蓝色", "白色", "黑色", "紫色"]
BAD = {3: "not json", 7: '{"summary": "x"}', 12: '{"content": " "}'}
ROWS = 17


class Said(Reporter):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.warnings: list[str] = []
        self.done: list[int] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def progress(self, what: str, done: int, total: int | None, values: Any) -> None:
        assert total is not None
        assert done <= total
        self.done.append(done)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Seventeen rows of different lengths, three of them bad."""
    path = tmp_path / "in.json"
    lines = []
    for index in range(ROWS):
        prompt = " ".join(COLOURS[(index + n) % 5] for n in range(1 + index % 4))
        good = json.dumps({"content": prompt, "number": index}, ensure_ascii=False)
        lines.append(BAD.get(index, good))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def adapter(make_adapter: MakeAdapter) -> Path:
    return make_adapter(task={"max_target_tokens": 6})


Job = Callable[..., predicting.Answered]


@pytest.fixture
def job(adapter: Path, rows: Path, tmp_path: Path, registry: Registry) -> Job:
    """Predict ``in.json``, to ``out.jsonl`` unless told otherwise."""

    def start(out: str = "out.jsonl", **changes: Any) -> predicting.Answered:
        settings: dict[str, Any] = {
            "adapter": adapter,
            "source": rows,
            "device": "cpu",
            "registry": registry,
            **changes,
        }
        return predict_file(output=tmp_path / out, **settings)

    return start


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "WINDOW", 4)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("window", [1, 4, 256])
def test_every_row_has_its_line_in_order(
    job: Job,
    adapter: Path,
    rows: Path,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    window: int,
) -> None:
    monkeypatch.setattr(predicting, "WINDOW", window)
    done = job()
    assert (done.rows, done.bad) == (17, 3)
    assert str(done) == "17 rows: 14 answered, 3 bad"
    lines = read(tmp_path / "out.jsonl")
    assert [line["origin"] for line in lines] == [f"{rows}:{n}" for n in range(1, 18)]
    assert [n for n, line in enumerate(lines) if "error" in line] == [3, 7, 12]
    assert set(lines[3]) == {"origin", "error"}
    assert lines[7]["error"].startswith("key 'content' is missing")
    assert lines[12]["error"].startswith("key 'content' is empty")
    good = [line for line in lines if "error" not in line]
    assert all(list(line) == ["origin", "prompt", "prediction"] for line in good)
    tuned = ptkit.load("tiny", adapter, registry=registry, device="cpu")
    assert tuned.generate([line["prompt"] for line in good]) == [x["prediction"] for x in good]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_without_the_adapter(job: Job, adapter: Path, registry: Registry, tmp_path: Path) -> None:
    job()
    job("base.jsonl", enabled=False)
    with_it, base = read(tmp_path / "out.jsonl"), read(tmp_path / "base.jsonl")
    assert [line["origin"] for line in with_it] == [line["origin"] for line in base]
    assert with_it != base
    tuned = ptkit.load("tiny", adapter, registry=registry, device="cpu")
    with tuned.adapter_off():
        assert tuned.generate([base[0]["prompt"]]) == [base[0]["prediction"]]


def test_a_budget_of_one_token_gives_the_same_answers(job: Job, tmp_path: Path) -> None:
    job()
    job("slow.jsonl", batch_tokens=1)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "slow.jsonl").read_bytes()


def test_draws_differ_between_windows_and_agree_with_any_window(
    job: Job, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write_text('{"content": "红色"}\n' * 8, encoding="utf-8")
    draw = ["task.sampling.temperature=2.0"]
    job(overrides=draw)
    found = [line["prediction"] for line in read(tmp_path / "out.jsonl")]
    assert len(set(found)) > 4
    monkeypatch.setattr(predicting, "WINDOW", 3)
    job("windows.jsonl", overrides=draw)
    assert found == [line["prediction"] for line in read(tmp_path / "windows.jsonl")]


def test_settings_of_the_recipe_can_be_changed(job: Job, rows: Path, tmp_path: Path) -> None:
    rows.write_text('{"question": "红色"}\n', encoding="utf-8")
    assert str(job()) == "1 row: 0 answered, 1 bad"
    changed = job("q.jsonl", overrides=['dataset.prompt_column="question"'])
    assert str(changed) == "1 row: 1 answered, 0 bad"
    with pytest.raises(RecipeError, match="--set train: can't be changed here"):
        job("x.jsonl", overrides=["train.seed=1"])


def test_a_row_that_the_model_cannot_take_is_a_bad_row(
    make_adapter: MakeAdapter, job: Job, tmp_path: Path
) -> None:
    short = make_adapter("short", backbone={"max_positions": 3})
    done = job(adapter=short)
    assert done.bad > 3
    errors = [line["error"] for line in read(tmp_path / "out.jsonl") if "error" in line]
    assert (
        "has 5 tokens, but the backbone takes 3; shorten it with the settings of task 'generation'"
        in errors
    )


def test_an_empty_file_has_no_answers(job: Job, rows: Path, tmp_path: Path) -> None:
    rows.write_text("")
    assert str(job()) == "0 rows: 0 answered, 0 bad"
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@pytest.mark.usefixtures("small_windows")
def test_rows_are_read_as_they_are_needed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a window is answered, no row behind it has been read: memory does not grow."""
    taken: list[int] = []
    real = predicting._read

    def counted(*args: Any) -> Any:
        taken.append(0)
        for item in real(*args):
            taken[-1] += 1
            yield item

    monkeypatch.setattr(predicting, "_read", counted)
    seen: list[int] = []

    class Watch(Said):
        def progress(self, what: str, done: int, total: int | None, values: Any) -> None:
            seen.append(taken[-1] - done)

    job(reporter=Watch())
    assert len(taken) == 2  # the rows are counted first
    assert max(seen) <= 4


def test_transforms_of_the_test_rows_are_said_to_be_left_out(
    make_adapter: MakeAdapter, job: Job, registry: Registry
) -> None:
    class Same(ptkit.Transform):
        name = "same"
        on = ("train", "test")

        def apply(self, records: Any, *, seed: int) -> Any:
            return records

    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_transforms(self) -> list[type[ptkit.Transform]]:
            return [Same]

    registry.register(Plugin(), Owner("same", "ptkit-same", "1.0"))
    said = Said()
    job(adapter=make_adapter("same", transforms=[{"kind": "same"}]), reporter=said)
    assert said.warnings == [
        "transform 'same' of the recipe is not applied to rows that are predicted"
    ]


def test_a_base_that_is_rounded_otherwise_is_warned_of_everywhere(
    job: Job,
    adapter: Path,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(TinyBackbone, "quantization", "int8")
    text = (
        f"{adapter}: was made on a base with quantization none, here it is int8: answers may differ"
    )
    said = Said()
    job(reporter=said)
    assert said.warnings == [text]
    said = Said()
    data = tmp_path / "validation.json"
    evaluate_file(adapter, data, device="cpu", registry=registry, reporter=said)
    assert said.warnings == [text]
    tuned = ptkit.load("tiny", adapter, registry=registry, device="cpu")
    assert tuned.warnings == (text,)
    Chat(tuned, interactive=False).introduce()
    assert f"warning: {text}" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- stops


class CrashError(BaseException):
    """Stands for a kill: nothing in the program may catch it."""


class Writes:
    """Counts what is done to files, and fails before, after or in the middle of one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, fail_at: int, failure: BaseException) -> None:
        self.calls = 0
        self.fail_at = fail_at
        self.failure = failure
        for module, name in (
            (os, "fsync"),
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "write_text"),
        ):
            patch.setattr(module, name, self.wrap(getattr(module, name)))
        real = answers.append

        def append(file: IO[bytes], data: bytes) -> None:
            self.step()
            for part in (data[: len(data) // 3], data[len(data) // 3 : -1]):
                file.write(part)
                file.flush()
                self.step()
            real(file, data[-1:])

        patch.setattr(answers, "append", append)

    def step(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise self.failure

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = real(*args, **kwargs)
            self.step()
            return result

        return wrapped


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("old", [False, True])
def test_a_crash_at_every_write_is_gone_on_from_to_the_same_bytes(
    job: Job, tmp_path: Path, old: bool
) -> None:
    """With an older output, the same command has --overwrite, and replaces it at the end."""
    job("whole.jsonl")
    wanted = (tmp_path / "whole.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        counting = Writes(patch, 0, CrashError())
        job("count.jsonl")
    total = counting.calls
    assert total > 25
    every = 1 if os.environ.get("PTKIT_SLOW_TESTS") else 4
    for fail_at in range(1 + 2 * old, total + 1, every):
        name = f"crash-{old}-{fail_at}.jsonl"
        if old:
            (tmp_path / name).write_text("old")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
            Writes(patch, fail_at, CrashError())
            job(name, overwrite=old)
        if (tmp_path / name).exists() and (tmp_path / name).read_bytes() == wanted:
            continue  # it was complete already
        assert not (tmp_path / name).exists() or (tmp_path / name).read_text() == "old"
        assert job(name, overwrite=old) == predicting.Answered(17, 3)
        assert (tmp_path / name).read_bytes() == wanted
        assert [path.name for path in tmp_path.glob(f"{name}*")] == [name]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("size", [1, 300, 700, 1100])
def test_a_file_that_is_cut_anywhere_is_gone_on_with(job: Job, tmp_path: Path, size: int) -> None:
    job("whole.jsonl")
    wanted = (tmp_path / "whole.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CrashError):
        Writes(patch, 10_000, CrashError())
        patch.setattr(
            answers.AnswerFile, "finish", lambda self: (_ for _ in ()).throw(CrashError())
        )
        job()
    growing = tmp_path / "out.jsonl.part"
    assert growing.read_bytes() == wanted
    growing.write_bytes(wanted[:size])
    said = Said()
    job(reporter=said)
    assert (tmp_path / "out.jsonl").read_bytes() == wanted
    whole_lines = wanted[:size].count(b"\n")
    kept = whole_lines // 4 * 4
    assert [s for s in said.stages if "going on" in s] == (
        [f"going on behind row {kept}"] if kept else []
    )


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_go_on(job: Job, tmp_path: Path, number: int) -> None:
    class Stop(Said):
        def progress(self, what: str, done: int, total: int | None, values: Any) -> None:
            if done >= 8:
                os.kill(os.getpid(), number)

    job("whole.jsonl")
    with pytest.raises(Interrupted) as stopped:
        job(reporter=Stop())
    assert stopped.value.exit_code == 128 + number
    assert stopped.value.lines == (
        "stopped with 8 of 17 rows answered; go on with the same command",
    )
    assert not (tmp_path / "out.jsonl").exists()
    job()
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.usefixtures("small_windows")
def test_a_full_disk_is_one_line_and_the_job_can_go_on(job: Job, tmp_path: Path) -> None:
    job("whole.jsonl")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(files.WriteError) as stopped:
        Writes(patch, 12, OSError(errno.ENOSPC, "No space left on device"))
        job()
    (line,) = stopped.value.lines
    assert line.startswith(str(tmp_path / "out.jsonl"))
    assert line.endswith(": can't be written: No space left on device")
    job()
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# ---------------------------------------------------------------------------------- refusals


def stop(job: Job, **changes: Any) -> None:
    """Leave a job behind that has answered two windows of four rows."""

    class Crash(Said):
        def progress(self, what: str, done: int, total: int | None, values: Any) -> None:
            if done >= 8:
                raise CrashError

    with pytest.raises(CrashError):
        job(reporter=Crash(), **changes)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"enabled": False}, "was begun with adapter on true, now it is false"),
        ({"batch_tokens": 9}, "was begun with batch tokens 16384, now it is 9"),
        ({"overrides": ["task.max_target_tokens=5"]}, "was begun with task {"),
        ({"overrides": ['dataset.prompt_column="number"']}, "was begun with dataset {"),
        ({"overrides": ['backbone.dtype="bfloat16"']}, 'dtype "float32", now it is "bfloat16"'),
    ],
)
def test_another_job_is_refused_with_what_differs(
    job: Job, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    stop(job)
    before = (tmp_path / "out.jsonl.part").read_bytes()
    with pytest.raises(PtkitError) as refused:
        job(**changes)
    first, last = refused.value.lines
    assert first.startswith(f"{tmp_path / 'out.jsonl.part'}: ")
    assert line in first
    assert "name another file with --output, or begin anew with --overwrite" in last
    assert (tmp_path / "out.jsonl.part").read_bytes() == before
    job(**changes, overwrite=True)
    job("fresh.jsonl", **changes)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


@pytest.mark.usefixtures("small_windows")
def test_another_adapter_or_input_is_refused(
    job: Job, make_adapter: MakeAdapter, rows: Path, tmp_path: Path
) -> None:
    stop(job)
    other = make_adapter("other", seed=1, task={"max_target_tokens": 6})
    with pytest.raises(PtkitError, match='part: was begun with adapter "'):
        job(adapter=other)
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"content": "红色"}\n')
    with pytest.raises(PtkitError, match='part: was begun with input sha256 "'):
        job()
    rows.rename(tmp_path / "moved.json")
    with pytest.raises(PtkitError, match='part: was begun with input "'):
        job(source=tmp_path / "moved.json")


def test_a_finished_output_is_refused(job: Job, tmp_path: Path) -> None:
    job()
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(PtkitError) as refused:
        job(enabled=False)
    assert refused.value.lines == (
        f"{tmp_path / 'out.jsonl'}: exists already; name another file with --output, or replace it "
        "with --overwrite",
    )
    assert (tmp_path / "out.jsonl").read_bytes() == before
    job(enabled=False, overwrite=True)
    assert (tmp_path / "out.jsonl").read_bytes() != before


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda p: p.with_name("out.jsonl.part.json").unlink(), "there is no out.jsonl.part.json"),
        (lambda p: p.with_name("out.jsonl.part.json").write_text("{"), "can't be read: "),
        (lambda p: p.with_name("out.jsonl.part.json").write_text("[]"), "must hold an object"),
    ],
)
def test_what_is_left_of_an_unknown_job_is_refused(
    job: Job, tmp_path: Path, damage: Callable[[Path], Any], line: str
) -> None:
    stop(job)
    damage(tmp_path / "out.jsonl.part")
    with pytest.raises(PtkitError) as refused:
        job()
    assert line in refused.value.lines[0]
    job(overwrite=True)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("change", [(b"in.json:2", b"in.json:9"), (b'{"origin"', b'"origin"')])
def test_a_line_that_was_changed_is_refused(
    job: Job, rows: Path, tmp_path: Path, change: tuple[bytes, bytes]
) -> None:
    stop(job)
    growing = tmp_path / "out.jsonl.part"
    growing.write_bytes(growing.read_bytes().replace(*change))
    line = 2 if change[0] == b"in.json:2" else 1
    with pytest.raises(PtkitError) as refused:
        job()
    assert refused.value.lines == (
        f"{growing}:{line}: is not the answer to {rows}:{line}; the file was changed, so it "
        "can't be gone on with: begin anew with --overwrite",
    )


@pytest.mark.usefixtures("small_windows")
def test_two_processes_do_not_write_one_file(job: Job, tmp_path: Path) -> None:
    stop(job)
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "out.jsonl.part").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PtkitError, match="part: another process is writing it at the moment"):
            job()
    job()


def test_places_that_cannot_be_written(job: Job, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PtkitError, match="folder: is a folder; name a file in it with --output"):
        job("folder")
    with pytest.raises(PtkitError, match=r"out.jsonl: there is no folder .*/no$"):
        job("no/out.jsonl")


def test_inputs_that_cannot_be_used(job: Job, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(PtkitError, match="dataset.train: no such file, folder or named source"):
        job(source=tmp_path / "no.json")
    with pytest.raises(PtkitError, match="must be a plain file, because it is read more than once"):
        job(source=tmp_path)
    rows.write_text('[{"content": "x"}, {"content": "y"} 3]')
    with pytest.raises(DataError, match="in.json:1: not JSON: expected ',' or ']'"):
        job()
    assert not list(tmp_path.glob("out*"))


# ---------------------------------------------------------------------------------- the command


def test_the_command(
    adapter: Path,
    rows: Path,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ptkit.registry.load_plugins", lambda: registry)
    monkeypatch.chdir(tmp_path)
    command = ["predict", "adapter", "--input", "in.json", "--output", "out.jsonl"]
    assert cli.main([*command, "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-2:] == ["wrote out.jsonl", "17 rows: 14 answered, 3 bad"]
    assert "backbone: tiny tiny, float32 on cpu" in shown.out
    assert read(tmp_path / "out.jsonl")[0]["origin"] == "in.json:1"
    assert cli.main(command) == 2
    assert "out.jsonl: exists already" in capsys.readouterr().err
    assert cli.main([*command, "--no-adapter", "--overwrite", "--batch-tokens", "50"]) == 0
    assert cli.main([*command, "--backbone", "no", "--overwrite"]) == 2
    assert capsys.readouterr().err == "no: no such model folder, and no plugin knows that name\n"
    assert cli.main(["predict", "adapter", "--input", "in.json"]) == 2
    assert "Missing option '--output'" in capsys.readouterr().err
    assert cli.main(["predict", "adapter", "--input", "i.json", "--output", "x.jsonl"]) == 2
    assert capsys.readouterr().err == (
        "--input i.json: no such file, folder or named source (did you mean 'in.json'?); "
        f"looked for {tmp_path / 'i.json'}\n"
    )
