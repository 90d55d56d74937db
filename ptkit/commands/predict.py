"""``ptkit predict``."""

from __future__ import annotations

from pathlib import Path

import click

from ptkit.commands import options


@click.command(name="predict")
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--input", "source", required=True, metavar="FILE", help="The rows to answer.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Where the answers go, a line of JSON a row.",
)
@options.backbone
@options.device
@options.no_adapter
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=16384,
    show_default=True,
    help="Tokens that are worked on together, answers included: lower it if memory runs out.",
)
@options.overrides
@click.option(
    "--overwrite", is_flag=True, help="Replace the output, or what is left of another job."
)
def command(
    adapter: Path,
    source: str,
    output: Path,
    backbone: str | None,
    device: str,
    no_adapter: bool,  # noqa: FBT001 - click passes options by name
    batch_tokens: int,
    overrides: tuple[str, ...],
    overwrite: bool,  # noqa: FBT001
) -> None:
    """Answer the rows of a file with an adapter.

    ADAPTER is an adapter folder or the run folder that it lies in. Rows are read as its recipe
    says; answers may be missing in them. Every row gives one line, in order: its origin, prompt and
    prediction, or its origin and what is wrong with it. When it is stopped, the same command goes
    on where it was.
    """
    from ptkit.commands.inputs import check_inputs
    from ptkit.registry import load_plugins

    registry = load_plugins()
    check_inputs(adapter, source, "--input", registry)
    from rich.console import Console

    from ptkit.commands.console import ConsoleReporter
    from ptkit.engine.predicting import predict_file

    reporter = ConsoleReporter(Console())
    try:
        done = predict_file(
            adapter,
            source,
            output,
            backbone=backbone,
            device=device,
            enabled=not no_adapter,
            batch_tokens=batch_tokens,
            overrides=overrides,
            overwrite=overwrite,
            registry=registry,
            reporter=reporter,
        )
    finally:
        reporter.close()
    click.echo(f"wrote {output}")
    click.echo(str(done))
