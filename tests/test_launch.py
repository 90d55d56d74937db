"""The launcher of ``ptkit run --processes``, with processes that do little."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ptkit.commands import launch as launching
from ptkit.commands.launch import launch
from ptkit.engine.processes import ENDED_BY_OTHERS, resume_command
from ptkit.errors import PtkitError

Launched = Callable[..., int]


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launched:
    """``launched(code)``: that Python code in two processes, which aren't given much time."""
    monkeypatch.setattr(launching, "GRACE", 0.5)
    monkeypatch.setattr(launching, "KILL_AFTER", 0.5)

    def run(code: str) -> int:
        head = "import os, sys, time, signal\nrank = int(os.environ['RANK'])\n"
        return launch([sys.executable, "-c", head + code], 2, tmp_path / "out")

    return run


def test_the_launcher_sets_what_torchrun_sets(launched: Launched, tmp_path: Path) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR"
    code = f"open(rf'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[n] for n in '''{names}'''"
    assert launched(f"{code}.split()))\nprint('said by', rank)") == 0
    assert (tmp_path / "0").read_text() == "0 0 2 2 127.0.0.1"
    assert (tmp_path / "1").read_text() == "1 1 2 2 127.0.0.1"


def test_only_the_first_process_writes_to_the_terminal(
    launched: Launched, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launched("print('said by', rank); print('and', rank, file=sys.stderr)") == 0
    assert capfd.readouterr() == ("said by 0\n", "and 0\n")


def test_the_first_process_has_said_why_it_failed(launched: Launched) -> None:
    assert launched(f"sys.exit({ENDED_BY_OTHERS} if rank else 130)") == 130


@pytest.mark.parametrize(
    ("code", "lines", "shown"),
    [
        (
            "rank and sys.exit(print('x.json:1: bad', file=sys.stderr) or 2); sys.exit(3)",
            ("rank 1: x.json:1: bad",),
            "",
        ),
        (
            "rank and sys.exit(print('Traceback', file=sys.stderr) or 1); sys.exit(3)",
            ("rank 1 of 2 failed with exit code 1; nothing was written",),
            "Traceback\n",
        ),
        (
            "sys.exit(3)",
            ("the 2 processes of the run lost each other; nothing was written",),
            "",
        ),
    ],
)
def test_what_another_process_says_is_shown(
    launched: Launched,
    code: str,
    lines: tuple[str, ...],
    shown: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(PtkitError) as caught:
        launched(code)
    assert caught.value.lines == lines
    assert capfd.readouterr() == ("", shown)


def test_processes_that_hang_are_ended_when_one_has_failed(
    launched: Launched, tmp_path: Path
) -> None:
    """Rank 0 doesn't even listen to SIGTERM."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.toml").touch()
    started = time.monotonic()
    with pytest.raises(PtkitError) as caught:
        launched(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "time.sleep(0.5)\n"
            "os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)"
        )
    again = f"go on with: {resume_command(tmp_path / 'out', 2)}"
    assert caught.value.lines == (f"rank 1 of 2 was killed by SIGKILL; {again}",)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_reaches_every_process_once(tmp_path: Path, name: str) -> None:
    """The launcher in a process of its own, which gets the signal as from a terminal."""
    worker = (
        "import os, signal, sys, time\n"
        f"path = rf'{tmp_path}/' + os.environ['RANK']\n"
        f"signal.signal(signal.{name}, lambda *a: open(path + '.got', 'a').write('x'))\n"
        "open(path, 'w')\n"
        f"while not os.path.exists(rf'{tmp_path}/end'): time.sleep(0.05)\n"
        "sys.exit(130)\n"
    )
    code = (
        "import sys; from pathlib import Path; from ptkit.commands.launch import launch\n"
        f"sys.exit(launch([sys.executable, '-c', {worker!r}], 2, Path('none')))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], process_group=0)
    wait_for(lambda: all((tmp_path / rank).exists() for rank in "01"))
    os.killpg(parent.pid, signal.Signals[name])
    wait_for(lambda: all((tmp_path / f"{rank}.got").exists() for rank in "01"))
    (tmp_path / "end").touch()
    assert parent.wait(30) == 130
    assert [(tmp_path / f"{rank}.got").read_text() for rank in "01"] == ["x", "x"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
