"""Layers that can't be compiled, and steps that can't be captured: a line that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import pytest
import torch
from torch import Tensor

import ptkit
from ptkit.engine import fitting
from ptkit.engine.fitting import told_if_not_compiled
from ptkit.engine.model import Model
from ptkit.engine.outofmemory import causes
from ptkit.engine.probe import probe
from ptkit.engine.session import run
from ptkit.engine.tracking import read_events
from ptkit.errors import PtkitError
from ptkit.recipe import Recipe, TrainSettings
from ptkit.testing import tiny_model

from .recording import RecordingReporter

RecipeMaker = Callable[..., Recipe]
Compile = Callable[[Any], None]


@pytest.fixture
def compile_by(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compile]:
    """Let runs on this CPU compile as on a GPU, by a backend of torch.compile's."""
    real = Model.compile_layers

    def choose(backend: Any) -> None:
        monkeypatch.setattr(fitting, "has_kernels", lambda device: True)
        monkeypatch.setattr(Model, "use_graphs", lambda self: None)
        monkeypatch.setattr(Model, "compile_layers", lambda self: real(self, backend=backend))

    torch._dynamo.reset()
    yield choose
    torch._dynamo.reset()


def no_compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    from torch._inductor.exc import InvalidCxxCompiler

    raise InvalidCxxCompiler("gcc-99")


def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
    raise ValueError("\nfirst line\nsecond line")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (no_compiler, "InvalidCxxCompiler: Compiler: gcc-99 is not found."),
        (broken, "ValueError: first line"),
    ],
)
def test_a_backend_that_fails(
    make_recipe: RecipeMaker,
    tmp_path: Path,
    compile_by: Compile,
    backend: Any,
    reason: str,
) -> None:
    compile_by(backend)
    recipe = make_recipe(train={"compile": True, "max_steps": 1})
    with pytest.raises(PtkitError) as caught:
        run(recipe, out=tmp_path / "run", device="cpu")
    assert caught.value.lines == (f"torch.compile failed ({reason}); set train.compile = false",)
    assert caught.value.exit_code == 2
    plain = make_recipe(train={"compile": False, "max_steps": 1})
    run(plain, out=tmp_path / "plain", device="cpu")


def test_a_backward_pass_that_can_t_be_compiled(
    make_recipe: RecipeMaker, tmp_path: Path, compile_by: Compile
) -> None:
    """It is compiled later than the forward pass, while gradients are computed."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import nop

    def backward(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._inductor.exc import InductorError

        raise InductorError(OSError("no space left"), None)

    compile_by(aot_autograd(fw_compiler=nop, bw_compiler=backward))
    with pytest.raises(PtkitError) as caught:
        run(make_recipe(train={"compile": True}), out=tmp_path / "run", device="cpu")
    assert str(caught.value) == (
        "torch.compile failed (OSError: no space left); set train.compile = false"
    )


def test_memory_that_runs_out_while_compiling(
    make_recipe: RecipeMaker, tmp_path: Path, compile_by: Compile
) -> None:
    """It is no failure of the compiler: fewer tokens go through the model at once."""
    failed: list[str] = []

    def once(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        if not failed:
            failed.append("once")
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return graph.forward

    compile_by(once)
    reporter = RecordingReporter()
    recipe = make_recipe(train={"compile": True, "max_steps": 1})
    folder = run(recipe, out=tmp_path / "run", device="cpu", reporter=reporter).folder
    events = [event["event"] for event in read_events(folder / "events.jsonl")]
    assert events.count("out-of-memory") == 1
    assert events.count("train") == 1
    assert failed == ["once"]


# ------------------------------------------------------------------------------- what is not it


class Training:
    """As much of one as says that layers are compiled."""

    class processes:  # noqa: N801
        lock_step = None

    class model:  # noqa: N801
        device = torch.device("cpu")

    total = 1

    def __init__(self, *, compiles: bool = True) -> None:
        self.settings = TrainSettings(max_steps=1, compile=compiles)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., BaseException]:
    """What comes out of a with block in which something is raised."""
    monkeypatch.setattr(fitting, "has_kernels", lambda device: True)

    def raised(work: Callable[[], Any], *, compiles: bool = True) -> BaseException:
        training: Any = Training(compiles=compiles)
        with pytest.raises(BaseException) as caught, told_if_not_compiled(training):  # noqa: PT011
            work()
        return caught.value

    return raised


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error.with_traceback(None)

    return work


def module_named(name: str, source: str) -> dict[str, Any]:
    """Functions whose frames look like those of a module of torch's or ours."""
    found: dict[str, Any] = {"__name__": name}
    exec(source, found)
    return found


def test_a_capture_that_fails(told: Callable[..., BaseException]) -> None:
    """What ends the capture fails too, and hides the reason."""

    def capture() -> None:
        try:
            raise RuntimeError("a sync\nwas not allowed")
        finally:
            raise torch.AcceleratorError(
                "CUDA error: operation failed due to a previous error during capture"
            )

    error = told(capture)
    assert isinstance(error, PtkitError)
    assert str(error) == (
        "capturing a CUDA graph of a step failed (RuntimeError: a sync); set train.compile = false"
    )
    alone = RuntimeError("operation not permitted when stream is capturing")
    assert str(told(raising(alone))) == (
        "capturing a CUDA graph of a step failed (RuntimeError: operation not permitted when "
        "stream is capturing); set train.compile = false"
    )


def test_a_compiler_that_starts_when_compiled_code_runs(
    told: Callable[..., BaseException],
) -> None:
    """Triton looks for a C compiler when a kernel is first launched; one of ours would, too,
    however it is called."""
    source = "def call(work): work()"
    inductor = module_named("torch._inductor.runtime.triton_heuristics", source)["call"]
    triton = module_named("triton.runtime.build", source)["call"]
    ours = module_named("ptkit.engine.packed_attention", source)["call"]
    missing = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    fail = raising(missing)
    error = told(lambda: inductor(lambda: triton(fail)))
    assert str(error) == (
        "torch.compile failed (RuntimeError: Failed to find C compiler. Please specify via CC "
        "environment variable); set train.compile = false"
    )
    assert told(lambda: inductor(lambda: ours(lambda: triton(fail)))) is missing
    assert told(lambda: triton(fail)) is missing
    device = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert told(lambda: inductor(raising(device))) is device


def test_what_else_is_raised_passes_through(told: Callable[..., BaseException]) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    for error in (ValueError("a bug"), ptkit.DataError("row 3"), KeyboardInterrupt()):
        assert told(raising(error)) is error
    failed = InternalTorchDynamoError("TypeError: unknown\nsee capture_scalar_outputs")
    assert told(raising(failed), compiles=False) is failed
    assert str(told(raising(failed))) == (
        "torch.compile failed (InternalTorchDynamoError: TypeError: unknown); set train.compile = "
        "false"
    )


def test_a_head_s_fault_stays_the_head_s(
    make_recipe: RecipeMaker, tmp_path: Path, compile_by: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptkit_tasks.generation import Generation

    def loss(self: Any, module: Any, states: Any, rows: Any) -> ptkit.Loss:
        raise TypeError("not a tensor")

    monkeypatch.setattr(Generation, "loss", loss)
    compile_by("eager")
    recipe = make_recipe(train={"compile": True}, dataset={"validation": None})
    with pytest.raises(ptkit.PluginError, match=r"loss\(\) raised TypeError: not a tensor"):
        run(recipe, out=tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
            "Failed to find C compiler. Please specify via CC environment variable",
        ),
        (FileNotFoundError(2, "No such file", "cc-9"), "[Errno 2] No such file: 'cc-9'"),
        (
            CalledProcessError(1, ["gcc", "main.c"]),  # of which Triton shows what gcc wrote
            "Command '['gcc', 'main.c']' returned non-zero exit status 1.",
        ),
    ],
)
def test_our_own_kernels_without_a_c_compiler(error: Exception, reason: str) -> None:
    """They are needed with train.compile = false, too, and first used in a try before training."""
    model = tiny_model()
    build = module_named("triton.runtime.build", "def build(work): work()")["build"]
    model.body.register_forward_pre_hook(lambda *_: build(raising(error)))
    with pytest.raises(PtkitError) as caught:
        probe(model)
    assert caught.value.lines == (
        f"Triton can't build the kernels for this GPU ({reason}); install a C compiler, such as "
        "gcc, and Python's header files, or name another one in the variable CC",
    )


def test_other_errors_of_files_are_not_triton_s() -> None:
    model, error = tiny_model(), FileNotFoundError(2, "No such file", "weights")
    model.body.register_forward_pre_hook(lambda *_: raising(error)())
    with pytest.raises(FileNotFoundError):
        probe(model)


def test_causes() -> None:
    """As a traceback would show them; torch's compilers keep theirs in an attribute."""
    inner, outer = ValueError("inner"), KeyError("outer")
    outer.__context__ = inner
    assert list(causes(outer)) == [outer, inner]
    outer.__suppress_context__ = True  # raise … from None
    assert list(causes(outer)) == [outer]
    outer.__cause__ = inner
    assert list(causes(outer)) == [outer, inner]
    compiler: Any = RuntimeError("compiler")
    compiler.inner_exception = inner
    assert list(causes(compiler)) == [compiler, inner]
