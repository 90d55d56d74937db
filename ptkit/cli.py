"""The command line. Listing the commands imports none of them; each is imported when called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import click

from ptkit import __version__
from ptkit.errors import PtkitError, show_traceback, suggestion

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


@dataclass(frozen=True)
class Entry:
    """A command that isn't imported yet: its one-liner, its module or (a group) its commands."""

    help: str
    module: str = ""
    commands: Mapping[str, Entry] = field(default_factory=dict)

    def load(self, name: str) -> click.Command:
        if self.commands:
            return LazyGroup(self.commands, name=name, help=self.help)
        command: click.Command = import_module(self.module).command
        return command


COMMANDS: Mapping[str, Entry] = {
    "bench": Entry("Measure how fast a recipe trains.", "ptkit.commands.bench"),
    "check": Entry("Show what a recipe will do to its data.", "ptkit.commands.check"),
    "chat": Entry("Talk to an adapter or to a base model.", "ptkit.commands.chat"),
    "compare": Entry("Show finished runs side by side.", "ptkit.commands.compare"),
    "convert": Entry("Write an adapter in another program's format.", "ptkit.commands.convert"),
    "evaluate": Entry("Score an adapter on a file of rows.", "ptkit.commands.evaluate"),
    "new": Entry(
        "Start from something that works.",
        commands={
            "plugin": Entry("Write a plugin to start from.", "ptkit.commands.new_plugin"),
            "recipe": Entry("Write a recipe to start from.", "ptkit.commands.new_recipe"),
        },
    ),
    "plugins": Entry("List the installed plugins and what they add.", "ptkit.commands.plugins"),
    "predict": Entry("Answer the rows of a file with an adapter.", "ptkit.commands.predict"),
    "report": Entry("Make the report of a finished run again.", "ptkit.commands.report"),
    "run": Entry("Train and score the adapter of a recipe.", "ptkit.commands.run"),
    "schema": Entry("Print the JSON Schema of a recipe.", "ptkit.commands.schema"),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and lists them from the table."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        *,
        name: str,
        help: str,  # noqa: A002
        epilog: str | None = None,
    ) -> None:
        super().__init__(name=name, help=help, epilog=epilog)
        self.entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        return None if entry is None else entry.load(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.entries and not name.startswith("-"):
            ctx.fail(f"no such command {name!r}{suggestion(name, self.entries)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in sorted(self.entries.items())])


class Main(LazyGroup):
    """The commands of ptkit, and behind them those of plugins.

    Entry points are read only for a name that isn't ours: scanning them takes longer than
    everything else that ``ptkit --help`` does.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in self.entries or name.startswith("-"):
            return super().resolve_command(ctx, args)
        from ptkit.commands.outside import outside_command, outside_names
        from ptkit.entrypoints import find_entries

        entries = find_entries()
        command = outside_command(name, entries)
        if command is None:
            known = [*self.entries, *outside_names(entries)]
            ctx.fail(f"no such command {name!r}{suggestion(name, known)}")
        return name, command, args[1:]

    def invoke(self, ctx: click.Context) -> None:
        super().invoke(ctx)  # what a plugin's command returns is no exit code


def _group() -> LazyGroup:
    group = Main(
        COMMANDS,
        name="ptkit",
        help="A data file, a frozen model, one recipe: a small adapter that is shown to work.",
        epilog="Plugins may add commands; `ptkit plugins` lists them.",
    )
    return click.version_option(__version__, message="%(prog)s %(version)s")(group)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; 2: bad input, a line a problem on stderr."""
    try:
        code = _group().main(
            args=None if arguments is None else list(arguments),
            prog_name="ptkit",
            standalone_mode=False,
        )
    except PtkitError as error:
        show_traceback(error)
        for line in error.lines:
            click.echo(line, err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    return code if isinstance(code, int) else 0
