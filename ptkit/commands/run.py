"""``ptkit run``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ptkit.commands import options

if TYPE_CHECKING:
    from ptkit.recipe import Recipe


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
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Share the run among N processes on this machine, a GPU each.",
)
@click.pass_context
def command(
    context: click.Context,
    recipe: Path,
    out: Path | None,
    device: str,
    overrides: tuple[str, ...],
    resume: bool,  # noqa: FBT001 - click passes options by name
    processes: int,
) -> None:
    """Train and score the adapter of a recipe.

    The results go to a new folder: the adapter, scores before and after, predictions, the loss
    curve, and what is needed to repeat the run. Paths in a recipe are relative to it, those of
    --set to the current folder. For several machines, start it with torchrun:
    torchrun --nproc-per-node N -m ptkit run RECIPE.
    """
    from ptkit.recipe import Recipe

    loaded = Recipe.load(recipe, overrides=overrides)
    if processes > 1:
        arguments = [str(recipe), "--device", device]
        arguments += [word for override in overrides for word in ("--set", override)]
        arguments += ["--resume"] if resume else []
        context.exit(_share(loaded, arguments, out, processes, resume=resume))

    from rich.console import Console

    from ptkit.commands.console import ConsoleReporter
    from ptkit.engine import session  # imports torch: only once the recipe is known to be right

    reporter = ConsoleReporter(Console())
    try:
        session.run(loaded, out=out, device=device, resume=resume, reporter=reporter)
    finally:
        reporter.close()


def _share(
    recipe: Recipe, arguments: list[str], out: Path | None, count: int, *, resume: bool
) -> int:
    """Run ``ptkit run`` with these arguments in several processes; returns the exit code."""
    from ptkit.commands.launch import launch
    from ptkit.engine.resume import free_folder
    from ptkit.errors import PtkitError

    if "WORLD_SIZE" in os.environ:
        raise PtkitError(
            f"--processes: {count} are to be started, but WORLD_SIZE says that a launcher has "
            "started this one; leave --processes out"
        )
    folder = free_folder(recipe.name, out, resume=resume)
    base = [sys.executable, "-m", "ptkit", "run", *arguments, "--out", str(folder)]
    return launch(base, count, folder)
