"""``ptkit convert``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="convert")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="ptkit, peft, or a format that a plugin adds, such as published.",
)
@click.option(
    "--backbone",
    metavar="SOURCE",
    help="The base model of the adapter: a folder, or a name such as nano. Needed unless SRC is "
    "ptkit's and was made on one with a name.",
)
@click.option("--kind", help="The backbone plugin that reads the base model.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the base model, such as --set 'backbone.dtype=\"float32\"'.",
)
def command(
    source: Path,
    target: Path,
    to: str,
    backbone: str | None,
    kind: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Write an adapter in another program's format.

    SRC is recognised by what is in it: an adapter of ptkit (or the run folder that it lies in), a
    folder of PEFT's prefix tuning, or one that a plugin reads. DST is made, whole or not at all.
    """
    from ptkit.engine.conversion import convert

    done = convert(source, target, to, backbone=backbone, kind=kind, overrides=overrides)
    hidden = done.projection_hidden_size
    projected = "" if hidden is None else f", projection of width {hidden:,}"
    click.echo(f"read {source}: {done.found}, {done.length} virtual tokens{projected}")
    for note in done.notes:
        click.echo(note)
    click.echo(f"wrote {target}: {to}")
