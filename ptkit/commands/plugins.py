"""``ptkit plugins``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ptkit.commands.tables import show_table

if TYPE_CHECKING:
    from ptkit.registry import Owner, Registry


@click.command(name="plugins")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--timings",
    is_flag=True,
    help="Also load each plugin and command alone, in an interpreter of its own, and show what "
    "that costs.",
)
def command(as_json: bool, timings: bool) -> None:  # noqa: FBT001
    """List the installed plugins and what they add.

    Also what failed and why, what PTKIT_DISABLE_PLUGINS disables, and names that two plugins share.
    """
    from ptkit.registry import load_plugins

    registry = load_plugins()
    report = describe(registry)
    if registry.commands:
        from ptkit.commands.outside import command_problems

        report["problems"] += command_problems(registry.commands, _ours())
    if timings:
        from ptkit.commands.timings import show_timings, time_entries

        report["timings"] = time_entries()
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
        return
    rows = [
        (
            str(plugin["distribution"]),
            str(plugin["version"]),
            str(plugin["plugin"]),
            _adds(plugin),
        )
        for plugin in report["plugins"]
    ]
    if rows:
        show_table(("distribution", "version", "plugin", "adds"), rows)
    else:
        click.echo("no plugin is installed; install ptkit[all] for those of ptkit")
    if report.get("commands"):
        click.echo()
        keys = ("distribution", "version", "command")
        show_table(keys, [[entry[key] for key in keys] for entry in report["commands"]])
    if timings:
        click.echo()
        show_timings(report["timings"])
    for warning in report.get("warnings", ()):
        click.echo(f"warning: {warning}")
    for problem in report["problems"]:
        click.echo(f"problem: {problem}")


def _ours() -> list[str]:
    """The names of ptkit's own commands, from the group that called this one."""
    context = click.get_current_context()
    root = context.find_root().command
    return root.list_commands(context) if isinstance(root, click.Group) else []


def describe(registry: Registry) -> dict[str, Any]:
    """What is installed, as JSON values.

    ``plugins``: one entry a plugin with distribution, version, plugin, status ("ok", "failed",
    "disabled"), ``adds`` (section to kinds; "hooks": what else it implements) and its own problems.
    ``commands``: one entry a command with distribution, version, command; none of them is imported.
    ``collisions``: kinds that several plugins give, so that none can be used.
    ``problems``: the lines of all of them. ``warnings``: lines on what can be used all the same.
    """
    from ptkit import __version__
    from ptkit.registry import collision

    def named(owner: Owner, key: str = "plugin") -> dict[str, str]:
        return {
            "distribution": owner.distribution,
            "version": owner.version,
            key: owner.plugin,
        }

    failed = {failure.owner for failure in registry.failures}
    loaded = set(registry.owners.values())
    plugins = []
    for owner in sorted(
        failed | loaded | set(registry.disabled), key=lambda o: (o.distribution, o.plugin)
    ):
        status = "failed" if owner in failed else "disabled" if owner in registry.disabled else "ok"
        reasons = [failure.reason for failure in registry.failures if failure.owner == owner]
        adds = _added(registry, owner) if owner in loaded else {}
        plugins.append({**named(owner), "status": status, "adds": adds, "problems": reasons})
    collisions = [
        {"section": section, "kind": kind, "owners": [named(owner) for owner in owners]}
        for (section, kind), owners in sorted(registry.collisions.items())
    ]
    return {
        "ptkit": __version__,
        "plugins": plugins,
        "commands": [named(found.owner, "command") for found in registry.commands],
        "collisions": collisions,
        "problems": [str(failure) for failure in registry.failures]
        + [
            f"{section}.kind {collision(kind, owners)}"
            for (section, kind), owners in sorted(registry.collisions.items())
        ],
        "warnings": [str(warning) for warning in registry.warnings],
    }


def _added(registry: Registry, owner: Owner) -> dict[str, list[str]]:
    from ptkit.registry import COLLECTED

    adds = {}
    for section in COLLECTED:
        known = registry.components[section.key]
        kinds = sorted(kind for kind, registered in known.items() if registered.owner == owner)
        if kinds:
            adds[section.key] = kinds
    plugin = registry.manager.get_plugin(owner.plugin)
    callers = registry.manager.get_hookcallers(plugin) or []
    registration = {section.hook for section in COLLECTED}
    hooks = sorted(caller.name for caller in callers if caller.name not in registration)
    return {**adds, "hooks": hooks} if hooks else adds


def _adds(plugin: dict[str, Any]) -> str:
    added = "; ".join(f"{section}: {', '.join(names)}" for section, names in plugin["adds"].items())
    if plugin["status"] == "ok":
        return added or "nothing"
    return f"{plugin['status']}; {added}" if added else str(plugin["status"])
