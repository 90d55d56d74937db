"""``ptkit new plugin``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import click

LONGEST = 30  # characters of a name, so that no line of the code gets too long
FOLDERS = ("data", "tests")


@click.command(name="plugin")
@click.argument("name")
@click.option(
    "--adds",
    required=True,
    metavar="PARTS",
    help="What it is to add, with commas between: format, head, metric, backbone, tracker, "
    "transform, command.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="FOLDER",
    help="Where to make the folder NAME; here if not given.",
)
def command(name: str, adds: str, into: Path) -> None:
    """Write a plugin to start from.

    An installable package NAME with a small working component of each kind, tests that call ptkit's
    contract checks, data, and a recipe that runs on a tiny model. A folder that exists is never
    touched.
    """
    from ptkit import __version__
    from ptkit.commands.plugin_files import kinds, plugin_files

    parts = parse_adds(adds)
    check_name(name)
    check_free(name, kinds(name, parts))
    target = into / name
    files = plugin_files(name, parts, __version__)
    write_all(target, files)
    click.echo(f"wrote {target}: {len(files)} files. Next:")
    click.echo(f"  cd {target}")
    click.echo("  python -m pip install -e '.[test]'")
    click.echo("  python -m pytest")
    click.echo("  ptkit plugins")
    click.echo("  ptkit run recipe.toml")
    if "command" in parts:
        data = next(path for path in files if path.startswith("data/train"))
        click.echo(f"  ptkit {kinds(name, parts)['command']} {data}")


def parse_adds(adds: str) -> list[str]:
    """The parts that ``--adds`` names. Raises `PtkitError` for others, and for none."""
    from ptkit.commands.plugin_files import PARTS
    from ptkit.errors import PtkitError, suggestion

    wanted = [part.strip() for part in adds.split(",") if part.strip()]
    there_are = f"there are: {', '.join(PARTS)}"
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        raise PtkitError(
            *(f"--adds: unknown {part!r}{suggestion(part, PARTS)}; {there_are}" for part in unknown)
        )
    if not wanted:
        raise PtkitError(f"--adds: names nothing; {there_are}")
    return wanted


def check_name(name: str) -> None:
    """Raises `PtkitError` if ``name`` can't be that of a distribution and, with ``_``, a module."""
    import keyword
    import sys

    from ptkit.entrypoints import KEBAB
    from ptkit.errors import PtkitError

    module = name.replace("-", "_")
    problem = None
    if not KEBAB.fullmatch(name):
        problem = "must be lower-case words with hyphens between, such as 'my-plugin'"
    elif len(name) > LONGEST:
        problem = f"has {len(name)} characters; use at most {LONGEST}"
    elif keyword.iskeyword(module):
        problem = "is a keyword of Python; use another name"
    elif module in sys.stdlib_module_names:
        problem = "is a module of Python's standard library; use another name"
    elif name in FOLDERS:
        problem = "is the name of a folder inside every new plugin; use another name"
    if problem is not None:
        raise PtkitError(f"{name!r} {problem}")


def check_free(name: str, kinds: Mapping[str, str]) -> None:
    """Raises `PtkitError`, naming whose it is, if something installed has one of the names."""
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    from ptkit.commands.plugin_files import PARTS, base_name
    from ptkit.errors import PtkitError
    from ptkit.registry import COLLECTED, load_plugins

    try:
        raise PtkitError(
            f"{name!r} is installed already ({name} {version(name)}); use another name"
        )
    except PackageNotFoundError:
        pass
    module = name.replace("-", "_")
    spec = find_spec(module)
    if spec is not None and spec.origin is not None:  # without: a folder that happens to be here
        raise PtkitError(f"{name!r}: the module {module} is installed already; use another name")
    registry, base = load_plugins(), base_name(name)
    owner = registry.owners.get(base)
    if owner is not None:
        raise PtkitError(f"{name!r}: {base!r} is the entry point of {owner}; use another name")
    keys = {section.hook: section.key for section in COLLECTED}
    for part, kind in kinds.items():
        if part == "command":
            owners = [one.owner for one in registry.commands if one.owner.plugin == kind]
        else:
            known = registry.components[keys[PARTS[part].hook]].get(kind)
            owners = [known.owner] if known is not None else []
        if owners:
            raise PtkitError(
                f"{name!r}: its {part} would be {kind!r}, which is one of {owners[0]}; "
                "use another name"
            )


def write_all(target: Path, files: Mapping[str, str]) -> None:
    """Make the folder ``target`` with ``files``, or nothing. Raises `PtkitError`."""
    from ptkit.errors import PtkitError

    if os.path.lexists(target):
        raise PtkitError(f"{target}: exists already; use another name, or another folder (--into)")
    partial = target.parent / f".{target.name}-{os.getpid()}"
    try:
        partial.mkdir()
        try:
            for path, text in files.items():
                place = partial / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text, encoding="utf-8", newline="\n")
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise PtkitError(f"{target}: can't be written: {error.strerror}") from error
