"""``ptkit new recipe``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="recipe")
@click.argument("name", required=False)
@click.option("--list", "listing", is_flag=True, help="List the recipes that there are.")
@click.option(
    "--from-script",
    "script",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Make the recipe from a training script that a plugin knows, such as the published "
    "train.sh of ChatGLM2-6B; nothing of it is executed.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file to write; NAME.toml here, or beside the script, if not given.",
)
def command(
    name: str | None,
    listing: bool,  # noqa: FBT001 - click passes options by name
    script: Path | None,
    out: Path | None,
) -> None:
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
    if script is not None:
        if name is not None:
            raise click.UsageError("give a NAME or --from-script, not both")
        target = out or script.with_suffix(".toml")
        _write(target, recipe_from_script(script).encode())
        click.echo(f"wrote {target}; read its comments, then: ptkit check {target}")
        return
    if name is None:
        raise click.UsageError("which recipe? Give a NAME, or --list to see them")
    source = recipes.get(name.removesuffix(".toml"))
    if source is None:
        known = ", ".join(recipes) or "none"
        raise PtkitError(f"no recipe {name!r}{suggestion(name, recipes)}; there are: {known}")
    target = out or Path(source.name)
    _write(target, source.read_bytes())
    click.echo(f"wrote {target}; next: ptkit run {target}")


def recipe_from_script(script: Path) -> str:
    """The recipe that a plugin makes of ``script``. Raises `PtkitError` if none can."""
    from ptkit.errors import PtkitError
    from ptkit.registry import load_plugins

    try:
        text = script.read_bytes().decode()
    except FileNotFoundError:
        raise PtkitError(f"{script}: no such file") from None
    except OSError as error:
        raise PtkitError(f"{script}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PtkitError(f"{script}:{line}: not UTF-8; re-save the file as UTF-8") from None
    registry = load_plugins()
    recipe = registry.recipe_from_script(text, str(script))
    if recipe is None:
        failed = "".join(f"; {failure}" for failure in registry.failures)
        raise PtkitError(f"{script}: is no training script that an installed plugin knows{failed}")
    return recipe


def _write(target: Path, content: bytes) -> None:
    from ptkit.errors import PtkitError

    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise PtkitError(f"{target}: exists already; choose another file with --out") from None
    except OSError as error:
        raise PtkitError(f"{target}: can't be written: {error.strerror}") from error


def recipes_folder() -> Path:
    """The recipes that come with ptkit: inside the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")
