"""The base of every recipe section, and the types that its fields may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationInfo, WithJsonSchema

from ptkit.errors import PtkitError


class Settings(BaseModel):
    """A section of a recipe: frozen, and a key that it doesn't know is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class FromCommandLine(str):
    """A string given by ``--set``: paths in it are relative to the current folder, not to the recipe."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SourcePath:
    """A file or folder that a recipe names.

    ``name``: as the user wrote it. ``path``: where it is. ``named``: True if a plugin resolved it
    (``nano:train``), False for a path.
    """

    name: str
    path: Path
    named: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What is needed to find the sources of a recipe; handed to pydantic as the validation context."""

    folder: Path
    resolve: Callable[[str], Path | None]


def _find(value: object, info: ValidationInfo) -> SourcePath:
    if isinstance(value, SourcePath):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("must be a path or the name of a source, as a non-empty string")
    context = info.context
    if not isinstance(context, SourceContext):
        return SourcePath(str(value), Path(value))
    try:
        found = context.resolve(str(value))
    except PtkitError as error:
        raise ValueError(str(error)) from error
    if found is not None:
        return SourcePath(str(value), found, named=True)
    folder = Path.cwd() if isinstance(value, FromCommandLine) else context.folder
    path = folder / Path(value).expanduser()
    if not path.exists():
        raise ValueError(f"no such file or folder (looked for {path.resolve()})")
    return SourcePath(str(value), path)


def _write(source: SourcePath) -> str:
    return source.name if source.named else str(source.path.resolve())


Source = Annotated[
    SourcePath,
    BeforeValidator(_find),
    PlainSerializer(_write, return_type=str),
    WithJsonSchema(
        {"type": "string", "description": "a path (relative to the recipe) or a name such as nano:train"}
    ),
]
"""The type of a setting that names a file or folder; its value is a `SourcePath`."""


def dump(settings: BaseModel) -> dict[str, Any]:
    """``settings`` as TOML-ready values: sources as absolute paths or names, None left out."""
    return settings.model_dump(mode="json", exclude_none=True)
