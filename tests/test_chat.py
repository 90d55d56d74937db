"""``ptkit chat``: streaming that is the answer, commands, pipes and a terminal."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ptkit import cli
from ptkit.commands.chat import Chat, _printable
from ptkit.engine.stream import TextStream
from ptkit.engine.tuned import Tuned, load
from ptkit.errors import PtkitError
from ptkit.manifest import checksum
from ptkit.records import LabelledRecord, Sampling
from ptkit.registry import Registry

MakeAdapter = Callable[..., Path]

# ---------------------------------------------------------------------------------- text


def decode(ids: Sequence[int]) -> str:
    """Ids are bytes."""
    return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("裙😀", ["裙", "😀"]),
        (" a b ", ["a", " b"]),
        ("a\n\n b", ["a", "\n\n b"]),
        ("", []),
        ("  ", []),
    ],
)
def test_characters_come_whole_and_blanks_wait(text: str, pieces: list[str]) -> None:
    got: list[str] = []
    stream = TextStream(decode, got.append)
    for byte in text.encode():
        stream.add(byte)
    stream.finish(text.strip())
    assert got == pieces


def test_an_answer_that_ends_in_half_a_character_is_shown_as_it_is() -> None:
    got: list[str] = []
    stream = TextStream(decode, got.append)
    half = "a裙".encode()[:-1]
    for byte in half:
        stream.add(byte)
    assert got == ["a"]
    stream.finish(decode(half).strip())
    assert "".join(got) == "a\N{REPLACEMENT CHARACTER}"


# ---------------------------------------------------------------------------------- Tuned.chat


@pytest.fixture
def tuned(make_adapter: MakeAdapter, registry: Registry) -> Tuned:
    return load("tiny", make_adapter(), registry=registry, device="cpu")


@pytest.mark.parametrize("on", [True, False])
def test_the_pieces_are_the_answer_and_the_answer_is_that_of_generate(
    tuned: Tuned, on: bool
) -> None:
    tuned.enabled = on
    history = [("红色", "好看"), ("蓝色", "很 好看")]
    pieces: list[str] = []
    answer = tuned.chat("白色", history, each=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == answer
    assert answer == tuned.chat("白色", history) == tuned.generate(["白色"], history=history)[0]
    assert answer != tuned.chat("白色")
    assert tuned.model.watcher is None


def test_a_stream_can_be_stopped(tuned: Tuned) -> None:
    pieces: list[str] = []

    def two(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned.chat("白色", each=two)
    assert len(pieces) == 2
    assert tuned.model.watcher is None


def test_the_base_model_forgets_the_oldest_turns(registry: Registry) -> None:
    base = load("tiny", registry=registry, device="cpu")
    long = " ".join(["红"] * 150)
    history = [(long, "x"), (long, "y"), ("蓝", "z")]
    assert base.chat("白", history) == base.chat("白", history[1:])
    assert base.chat("白", history[1:]) != base.chat("白", history[2:])
    assert base.left_out("白", history) == 0
    with pytest.raises(PtkitError, match="the message has 301 tokens, the model takes 256 beside"):
        base.chat(" ".join(["红"] * 300))
    drawn = Sampling(max_new_tokens=5, temperature=1.0, seed=3)
    pieces: list[str] = []
    answer = base.chat("白", sampling=drawn, each=pieces.append)
    assert "".join(pieces) == answer == base.generate(["白"], sampling=drawn)[0]


def test_what_the_task_cuts_is_counted(make_adapter: MakeAdapter, registry: Registry) -> None:
    folder = make_adapter(task={"max_source_tokens": 10})
    tuned = load("tiny", folder, registry=registry, device="cpu")
    assert tuned.left_out("白", [("红", "x")]) == 0
    assert tuned.left_out("白", [(" ".join(["红"] * 20), "x")]) == 21


def test_a_task_of_other_rows_counts_no_prompts(
    make_adapter: MakeAdapter, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = load("tiny", make_adapter(), registry=registry, device="cpu")
    monkeypatch.setattr(tuned.head, "accepts", LabelledRecord, raising=False)
    with pytest.raises(PtkitError, match="takes LabelledRecord, got GenerationRecord$"):
        tuned.left_out("白")


# ---------------------------------------------------------------------------------- the terminal


class Script:
    """Says lines; an exception among them is raised."""

    def __init__(self, lines: Iterable[Any]) -> None:
        self.lines = iter(lines)

    def __call__(self) -> str | None:
        line = next(self.lines, None)
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture
def talk(
    tuned: Tuned, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[str], list[str]]]:
    """Returns the lines of stdout and of stderr."""

    def call(
        *lines: Any, interactive: bool = True, model: Tuned = tuned
    ) -> tuple[list[str], list[str]]:
        Chat(model, interactive=interactive).run(Script(lines))
        shown = capsys.readouterr()
        return shown.out.splitlines(), shown.err.splitlines()

    return call


Talk = Callable[..., tuple[list[str], list[str]]]


def test_a_conversation(talk: Talk, tuned: Tuned) -> None:
    first = tuned.chat("红色")
    second = tuned.chat("蓝色", [("红色", first)])
    out, err = talk(" 红色 \n", "\n", "蓝色", "/history", "/clear", "蓝色", "/history")
    assert out == [first, second, tuned.chat("蓝色")]
    assert err == [
        *("> 红色", first, "> 蓝色", second),
        "the conversation is forgotten",
        *("> 蓝色", tuned.chat("蓝色")),
    ]


def test_the_adapter_can_be_switched(talk: Talk, tuned: Tuned, registry: Registry) -> None:
    on = tuned.chat("红色")
    with tuned.adapter_off():
        off = tuned.chat("红色")
    assert on != off
    said = ("红色", "/adapter off", "/clear", "红色", "/adapter", "/adapter on", "/adapter up")
    out, err = talk(*said)
    assert out == [on, off]
    assert err == [
        "adapter off: the base model alone",
        "the conversation is forgotten",
        "adapter off: the base model alone",
        "adapter on",
        "/adapter takes on or off, got 'up'",
    ]
    base = load("tiny", registry=registry, device="cpu")
    assert talk("/adapter on", model=base)[1] == ["there is no adapter: none was loaded"]


def test_other_commands(talk: Talk) -> None:
    out, err = talk("/history", "/hlep", "/clear all", "/help", "/quit", "红色")
    assert out == []
    assert err[:3] == [
        "nothing yet",
        "no command '/hlep' (did you mean '/help'?); /help lists them",
        "no command '/clear all'; /help lists them",
    ]
    assert [line.split()[0] for line in err[3:]] == [
        "/adapter",
        "/clear",
        "/history",
        "/help",
        "/quit",
    ]


def test_ctrl_c_stops_an_answer_and_not_the_chat(
    talk: Talk, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tuned.chat("红色").split()[0]
    chat = Tuned.chat
    stops = iter([True, False])

    def interrupted(self: Tuned, query: str, history: Any, *, each: Any) -> str:
        stop = next(stops)

        def once(piece: str) -> None:
            each(piece)
            if stop:
                raise KeyboardInterrupt

        return chat(self, query, history, each=once)

    monkeypatch.setattr(Tuned, "chat", interrupted)
    out, err = talk("红色", KeyboardInterrupt(), "/history", "蓝色")
    assert out[0] == first
    assert len(out) == 2
    assert err == ["(stopped)", "", "Ctrl-D or /quit ends", "> 红色", first]


def test_in_a_pipe_ctrl_c_and_errors_end_it(
    talk: Talk, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load("tiny", registry=registry, device="cpu")
    long = " ".join(["红"] * 300)
    assert "the message has 301 tokens" in talk(long, model=base)[1][0]
    with pytest.raises(PtkitError, match="the message has 301 tokens"):
        talk(long, model=base, interactive=False)
    with pytest.raises(KeyboardInterrupt):
        talk(KeyboardInterrupt(), interactive=False)
    monkeypatch.setattr(Tuned, "chat", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        talk("红色", interactive=False)


def test_what_did_not_fit_is_said(
    talk: Talk, make_adapter: MakeAdapter, registry: Registry
) -> None:
    folder = make_adapter("short", task={"max_source_tokens": 3, "max_target_tokens": 2})
    tuned = load("tiny", folder, registry=registry, device="cpu")
    _, err = talk("一 二 三 四 五", model=tuned)
    assert err == ["(3 tokens of the conversation did not fit and were left out)"]


def test_control_characters_do_not_drive_the_terminal() -> None:
    assert _printable("红\x1b[2J\n\tb\x07") == "红\ufffd[2J\n\tb\ufffd"


# ---------------------------------------------------------------------------------- the command


def test_the_command(
    make_adapter: MakeAdapter,
    registry: Registry,
    tuned: Tuned,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import io

    monkeypatch.setattr("ptkit.registry.load_plugins", lambda: registry)
    folder = make_adapter()
    monkeypatch.setattr(sys, "stdin", io.StringIO("红色\n/quit\n"))
    assert cli.main(["chat", str(folder), "--device", "cpu"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tuned.chat('红色')}\n"
    assert shown.err == f"tiny tiny with {folder}, float32 on cpu\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert cli.main(["chat", "--backbone", "tiny", "--kind", "tiny"]) == 0
    assert cli.main(["chat"]) == 2
    assert "ptkit chat needs an ADAPTER folder, or --backbone with a base model" in (
        capsys.readouterr().err
    )
    assert cli.main(["chat", "--backbone", "tiny", "--kind", "tinny"]) == 2
    assert "unknown kind 'tinny' (did you mean 'tiny'?)" in capsys.readouterr().err


def test_an_adapter_that_answers_no_prompts_is_refused(
    make_adapter: MakeAdapter,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ptkit.registry.load_plugins", lambda: registry)
    folder = make_adapter()
    path = folder / "adapter.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["task"]["kind"] = "sequence-classification"
    path.write_text(json.dumps({**manifest, "checksum": checksum(manifest)}), encoding="utf-8")
    assert cli.main(["chat", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"{folder}: task 'sequence-classification' reads LabelledRecord rows, and a chat has "
        "prompts; answer a file of rows with ptkit predict\n"
    )
    assert cli.main(["chat", f"{folder}s"]) == 2
    assert capsys.readouterr().err == (
        f"{folder}s: no such adapter folder (did you mean 'adapter'?)\n"
    )


CHAT = [sys.executable, "-m", "ptkit", "chat", "--backbone", "nano", "--device", "cpu"]


def test_through_a_pipe_with_a_bad_byte() -> None:
    pytest.importorskip("ptkit_nano")
    said = "你好\n".encode() + b"\xff\xfe\n/quit\n"
    done = subprocess.run(CHAT, input=said, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().strip()
    assert done.stderr.decode() == "chatglm2 nano, float32 on cpu\n"


def test_on_a_terminal() -> None:
    """Prompt, answer, Ctrl-C at the prompt, a command, Ctrl-D."""
    pytest.importorskip("ptkit_nano")
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    chat = subprocess.Popen(
        CHAT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    shown = ""

    def until(text: str, count: int = 1) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while shown.count(text) < count:
            ready, _, _ = select.select([ours], [], [], end - time.monotonic())
            assert ready, f"{text!r} does not come: {shown!r}"
            shown += os.read(ours, 4096).decode("utf-8", "replace")
        time.sleep(0.5)  # what is sent while the line editor starts can get lost

    try:
        until("\n> ")
        assert "/help lists what else can be said; Ctrl-D ends" in shown
        os.write(ours, "你好\n".encode())
        until("\n> ", 2)
        os.write(ours, b"\x03")
        until("Ctrl-D or /quit ends")
        until("\n> ", 3)
        os.write(ours, b"/history\n")
        until("\n> ", 4)
        assert "\x1b[2m> 你好" in shown  # the note; the echo of what was typed is not dim
        os.write(ours, b"\x04")
        assert chat.wait(30) == 0
    finally:
        chat.kill()
        chat.wait()
        os.close(ours)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
