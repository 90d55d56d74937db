"""``ptkit check``."""

from __future__ import annotations

from pathlib import Path

import click

from ptkit.commands import options


@click.command(name="check")
@click.argument("recipe", type=click.Path(path_type=Path))
@options.recipe_overrides
@options.device
@click.option(
    "--rows",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How many training rows to show whole.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    recipe: Path,
    overrides: tuple[str, ...],
    device: str,
    rows: int,
    as_json: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Show what a recipe will do to its data.

    Reads and encodes the data as a run would, but loads no weights and writes nothing. Shows the
    first rows, lengths and what is cut, rows that are there twice, steps, what trains, and how much
    memory that takes; --device cuda looks up whether the GPU has it. Exits with 2 if the recipe or
    its data would be refused.
    """
    import json
    import sys

    from rich.console import Console

    from ptkit.check import check
    from ptkit.commands.checked import Encoding, show
    from ptkit.recipe import Recipe

    def gpu() -> tuple[str, int] | None:
        if device == "cuda" or (device == "auto" and "torch" in sys.modules):
            from ptkit.engine.fitting import free_memory

            return free_memory(required=device == "cuda")
        return None  # torch alone takes seconds to import

    loaded = Recipe.load(recipe, overrides=overrides)
    with Encoding(Console(stderr=True)) as progress:
        report = check(loaded, progress, shown=rows, gpu=gpu)
    if as_json:
        click.echo(json.dumps(report.as_dict(), ensure_ascii=False, indent=2, default=str))
    else:
        show(report, Console())
