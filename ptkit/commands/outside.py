"""Commands of plugins: the entry point group ``ptkit.commands``, a name to a click command."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from ptkit.entrypoints import (
    COMMANDS,
    DISABLE_VARIABLE,
    KEBAB,
    Entries,
    Found,
    LoadError,
    collision,
    watched,
)
from ptkit.errors import PluginError


def outside_names(entries: Entries) -> list[str]:
    """The names that plugins give their commands."""
    return list(_grouped(entries.of(COMMANDS).wanted))


def outside_command(name: str, entries: Entries) -> click.Command | None:
    """The command that a plugin calls ``name``, imported now; None if there is none.

    Raises `PluginError` naming the distributions: of a name that is shared, of a command that is
    disabled, can't be imported, or is no command.
    """
    commands = entries.of(COMMANDS)
    found = _grouped(commands.wanted).get(name, [])
    if not found:
        for one in commands.disabled:
            if one.owner.plugin == name:
                raise PluginError(
                    f"command {name!r}: {one.owner} is disabled by {DISABLE_VARIABLE}"
                )
        return None
    problem = _name_problem(name, found)
    if problem is not None:
        raise PluginError(problem)
    return load_command(found[0])


def load_command(found: Found) -> click.Command:
    """The click command behind an entry point. Raises `PluginError`, one line."""
    label = f"command {found.owner.plugin!r} ({found.owner})"
    with watched() as watch:
        try:
            command = found.load()
        except LoadError as error:
            raise PluginError(f"{label}: {error}") from error
    if watch.printed:
        click.echo(f"{label}: {watch.warnings()[0]}", err=True)
    if not isinstance(command, click.Command):
        got = type(command).__name__
        raise PluginError(
            f"{label}: {found.entry_point.value} must be a click command, got {got}; put "
            "@click.command() on it"
        )
    return command


def command_problems(commands: Sequence[Found], ours: Collection[str]) -> list[str]:
    """What can be said of commands without importing them, a line each.

    ``ours``: the names of ptkit's own, which always win.
    """
    lines = []
    for name, found in _grouped(commands).items():
        if name in ours:
            lines += [
                f"command {name!r} ({one.owner}): is a name of ptkit's own, which stays; rename it"
                for one in found
            ]
        elif (problem := _name_problem(name, found)) is not None:
            lines.append(problem)
    return lines


def _name_problem(name: str, found: Sequence[Found]) -> str | None:
    owners = [one.owner for one in found]
    if len(owners) > 1:
        return f"command {collision(name, owners)}"
    if not KEBAB.fullmatch(name):
        return f"command {name!r} ({owners[0]}): its name must be kebab-case such as 'my-name'"
    return None


def _grouped(commands: Sequence[Found]) -> dict[str, list[Found]]:
    grouped: dict[str, list[Found]] = {}
    for one in commands:
        grouped.setdefault(one.owner.plugin, []).append(one)
    return grouped
