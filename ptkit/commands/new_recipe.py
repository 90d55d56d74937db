"""``ptkit new recipe``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="recipe")
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="List the recipes that there are.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The file to write; NAME.toml here if not given."
)
def command(name: str | None, listing: bool, out: Path | None) -> None:  # noqa: FBT001
    """Write a recipe to start from.

    NAME is one of those that --list shows. A file that exists is never overwritten.
    """
    from ptkit.errors import PtkitError, suggestion

    recipes = {path.stem: path for path in sorted(recipes_folder().glob("*.toml"))}
    if listing:
        width = max(map(len, recipes), default=0)
        for stem, path in recipes.items():
            click.echo(f"{stem:<{width}}  {_first_comment(path)}".rstrip())
        return
    if name is None:
        raise click.UsageError("which recipe? Give a NAME, or --list to see them")
    source = recipes.get(name.removesuffix(".toml"))
    if source is None:
        known = ", ".join(recipes) or "none"
        raise PtkitError(f"no recipe {name!r}{suggestion(name, recipes)}; there are: {known}")
    target = out or Path(source.name)
    try:
        with target.open("xb") as file:
            file.write(source.read_bytes())
    except FileExistsError:
        raise PtkitError(f"{target}: exists already; choose another file with --out") from None
    except OSError as error:
        raise PtkitError(f"{target}: can't be written: {error.strerror}") from error
    click.echo(f"wrote {target}; next: ptkit run {target}")


def recipes_folder() -> Path:
    """The recipes that come with ptkit: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
