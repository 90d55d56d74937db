"""``ptkit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptkit.commands.tables import show_table

if TYPE_CHECKING:
    from ptkit.engine.compare import Comparison


@click.command(name="compare")
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN RUN...", type=click.Path(path_type=Path)
)
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a page with the loss curves of all runs in one chart.",
)
def command(runs: tuple[Path, ...], html: Path | None) -> None:
    """Show finished runs side by side.

    What they were, what they scored, and where their recipes differ. Scores after training are
    compared with those of the first RUN, with a 95 % interval if both answered the same rows.
    """
    if len(runs) < 2:
        raise click.UsageError("one run is nothing to compare: name two or more run folders")
    from ptkit.engine.compare import RUN_COLUMNS, compare_runs, run_row

    comparison = compare_runs(runs)
    places = range(len(comparison.runs))
    show_table(RUN_COLUMNS, [run_row(comparison, place) for place in places], numbers=(2, 4, 5))
    if comparison.metrics:
        click.echo()
        _show_scores(comparison)
    click.echo()
    if comparison.differences:
        rows = [(row.key, *row.values) for row in comparison.differences]
        show_table(("recipe", *comparison.names), rows)
    else:
        click.echo("the recipes are the same")
    for text in comparison.warnings:
        click.echo(f"warning: {text}", err=True)
    if html is not None:
        from ptkit.engine.compare_page import write_page

        write_page(comparison, html)
        click.echo(f"\npage: {html}")


def _show_scores(comparison: Comparison) -> None:
    from ptkit.engine.page import number, span

    columns = ("before", "constant", "after")
    header = ("score", "run", *columns, f"after − {comparison.names[0]}'s", "95 %")
    rows = []
    for metric in comparison.metrics:
        for place, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True)):
            gain = comparison.gain(place, metric)
            shown = "–" if gain is None else number(gain.value, signed=True)
            scores = [number(run.scores.get(column, {}).get(metric)) for column in columns]
            title = metric if place == 0 else ""
            rows.append((title, name, *scores, shown, span(gain, signed=True)))
    show_table(header, rows, numbers=(2, 3, 4, 5, 6))
