"""``ptkit chat``."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptkit.commands import options
from ptkit.errors import PtkitError, suggestion

if TYPE_CHECKING:
    from ptkit.engine.tuned import Tuned

HELP = {
    "/adapter on|off": "answer with the adapter, or with the base model alone",
    "/clear": "forget the conversation",
    "/history": "show the conversation",
    "/help": "this list",
    "/quit": "end; so does Ctrl-D. Ctrl-C stops an answer",
}


@click.command(name="chat")
@click.argument("adapter", required=False, type=click.Path(path_type=Path))
@options.backbone
@click.option(
    "--kind", help="The backbone plugin that reads the base model; the adapter's if not given."
)
@options.device
@options.overrides
def command(
    adapter: Path | None,
    backbone: str | None,
    kind: str | None,
    device: str,
    overrides: tuple[str, ...],
) -> None:
    """Talk to an adapter or to a base model.

    ADAPTER is an adapter folder or the run folder that it lies in; without one, --backbone names
    the base model. It must be of a task that answers prompts, such as generation; ptkit predict is
    for all. With input from a pipe, every line is answered, and only answers go to the output.
    """
    if adapter is None and backbone is None:
        raise PtkitError("ptkit chat needs an ADAPTER folder, or --backbone with a base model")
    from ptkit.commands.inputs import check_chats
    from ptkit.registry import load_plugins

    registry = load_plugins()
    if adapter is not None:
        check_chats(adapter, registry)
    from ptkit.engine.tuned import load

    tuned = load(
        backbone, adapter, kind=kind, device=device, overrides=overrides, registry=registry
    )
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    chat = Chat(tuned, interactive=interactive)
    chat.introduce()
    chat.run(_read_terminal if interactive else _read_pipe)


def _read_terminal() -> str | None:
    with suppress(ImportError):  # Windows has its own
        import readline  # noqa: F401 - gives input() line editing
    try:
        return input("\n> ")
    except EOFError:
        click.echo()
        return None


def _read_pipe() -> str | None:
    return sys.stdin.readline() or None


class Chat:
    """A conversation: lines in, answers to stdout as they grow, everything else to stderr."""

    def __init__(self, tuned: Tuned, *, interactive: bool) -> None:
        self.tuned = tuned
        self.interactive = interactive
        self.history: list[tuple[str, str]] = []

    def introduce(self) -> None:
        backbone, model = self.tuned.backbone, self.tuned.model
        adapter = self.tuned.adapter
        with_it = "" if adapter is None else f" with {adapter.folder}"
        dtype = str(model.dtype).removeprefix("torch.")
        self._note(
            f"{backbone.name} {backbone.settings.source.name}{with_it}, {dtype} on {model.device}"
        )
        for text in self.tuned.warnings:
            self._note(f"warning: {text}")
        if self.interactive:
            self._note("/help lists what else can be said; Ctrl-D ends")

    def run(self, read: Callable[[], str | None]) -> None:
        """Answer what ``read`` returns, line by line, until it returns None or /quit is said."""
        while True:
            try:
                line = read()
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self._note("\nCtrl-D or /quit ends")
                continue
            if line is None:
                return
            line = line.strip()
            if line.startswith("/"):
                if not self._obey(line):
                    return
            elif line:
                self._answer(line)

    def _answer(self, query: str) -> None:
        pieces: list[str] = []

        def show(piece: str) -> None:
            pieces.append(piece)
            click.echo(_printable(piece) if self.interactive else piece, nl=False)

        note = ""
        try:
            left_out = self.tuned.left_out(query, self.history)
            if left_out:
                note = f"({left_out:,} tokens of the conversation did not fit and were left out)"
            self.tuned.chat(query, self.history, each=show)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            note = "(stopped)"
        except PtkitError as error:
            if not self.interactive:
                raise
            self._note(str(error))
            return
        click.echo()
        if note:
            self._note(note)
        self.history.append((query, "".join(pieces)))

    def _obey(self, line: str) -> bool:
        """Do what a /command says; False: end."""
        word, _, rest = line.partition(" ")
        if word == "/quit" and not rest:
            return False
        if word == "/clear" and not rest:
            self.history.clear()
            self._note("the conversation is forgotten")
        elif word == "/history" and not rest:
            self._note(
                "\n".join(f"> {query}\n{answer}" for query, answer in self.history) or "nothing yet"
            )
        elif word == "/help" and not rest:
            self._note("\n".join(f"{name:<16}  {text}" for name, text in HELP.items()))
        elif word == "/adapter":
            self._switch(rest.strip())
        else:
            known = [name.partition(" ")[0] for name in HELP]
            close = "" if word in known else suggestion(word, known)
            self._note(f"no command {line!r}{close}; /help lists them")
        return True

    def _switch(self, to: str) -> None:
        if to not in ("", "on", "off"):
            self._note(f"/adapter takes on or off, got {to!r}")
            return
        if self.tuned.adapter is None:
            self._note("there is no adapter: none was loaded")
            return
        if to:
            self.tuned.enabled = to == "on"
        self._note("adapter on" if self.tuned.enabled else "adapter off: the base model alone")

    def _note(self, text: str) -> None:
        click.echo(click.style(text, dim=True), err=True)


def _printable(text: str) -> str:
    """What a terminal can show; a model's control characters must not drive it."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
