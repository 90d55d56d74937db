"""``ptkit run``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the results; runs/RECIPE-TIME if not given.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs; auto takes a GPU if there is one.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting, such as --set train.max_steps=50; the value is written as in TOML.",
)
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
