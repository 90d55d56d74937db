"""``ptkit evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from ptkit.commands import options


@click.command(name="evaluate")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--data", "source", required=True, metavar="FILE", help="Rows with their answers.")
@options.backbone
@options.device
@options.no_adapter
@click.option("--limit", type=click.IntRange(min=1), help="Only so many rows, from the start.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the scores to a JSON file.")
@options.overrides
def command(
    adapter: Path,
    source: str,
    backbone: str | None,
    device: str,
    no_adapter: bool,  # noqa: FBT001 - click passes options by name
    limit: int | None,
    out: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Score an adapter on a file of rows.

    ADAPTER is an adapter folder or the run folder that it lies in. Rows are read and scored as its
    recipe says, without the adapter and with it. Bad rows are errors; skip them with
    --set 'dataset.on_bad_row="skip"'.
    """
    from ptkit.commands.inputs import check_inputs
    from ptkit.registry import load_plugins

    registry = load_plugins()
    check_inputs(adapter, source, "--data", registry)
    from rich.console import Console

    from ptkit.commands.console import ConsoleReporter
    from ptkit.engine.scoring import evaluate_file

    reporter = ConsoleReporter(Console())
    try:
        evaluate_file(
            adapter,
            source,
            backbone=backbone,
            device=device,
            enabled=not no_adapter,
            limit=limit,
            out=out,
            overrides=overrides,
            registry=registry,
            reporter=reporter,
        )
    finally:
        reporter.close()
    if out is not None:
        click.echo(f"wrote {out}")
