"""``ptkit run``."""

from __future__ import annotations

from pathlib import Path

import click

from ptkit.commands import options


@click.command(name="run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results; runs/RECIPE-TIME if not given.",
)
@options.device
@options.recipe_overrides
@click.option(
    "--resume", is_flag=True, help="Go on with the run in --out from its newest checkpoint."
)
def command(
    recipe: Path,
    out: Path | None,
    device: str,
    overrides: tuple[str, ...],
    resume: bool,  # noqa: FBT001 - click passes options by name
) -> None:
    """Train and score the adapter of a recipe.

    The results go to a new folder: the adapter, scores before and after, predictions, the loss
    curve, and what is needed to repeat the run. Paths in a recipe are relative to it, those of
    --set to the current folder.
    """
    from ptkit.recipe import Recipe

    loaded = Recipe.load(recipe, overrides=overrides)

    from rich.console import Console

    from ptkit.commands.console import ConsoleReporter
    from ptkit.engine import session  # imports torch: only once the recipe is known to be right

    reporter = ConsoleReporter(Console())
    try:
        session.run(loaded, out=out, device=device, resume=resume, reporter=reporter)
    finally:
        reporter.close()
