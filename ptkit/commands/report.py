"""``ptkit report``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report")
@click.argument("run", type=click.Path(path_type=Path))
def command(run: Path) -> None:
    """Make the report of a finished run again.

    report.html is written in the folder RUN, from the other files there.
    """
    from ptkit.engine.report import REPORT, write_report

    write_report(run)
    click.echo(f"wrote {run / REPORT}")
