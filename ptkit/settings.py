"""The base of every recipe section, and the types that its fields may have."""

from __future__ import annotations

import os
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    PlainSerializer,
    SerializationInfo,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import CoreSchema

from ptkit.errors import PtkitError, names_in, show_traceback, suggestion


def _take_scalars_strictly(node: object) -> None:
    # ConfigDict(strict=True) would also refuse an array for a tuple and a string for a path
    if isinstance(node, dict):
        if node.get("type") in ("int", "float", "bool", "str"):
            node["strict"] = True
        for key, value in node.items():
            if key not in ("default", "expected", "metadata", "serialization"):
                _take_scalars_strictly(value)
    elif isinstance(node, list | tuple):
        for value in node:
            _take_scalars_strictly(value)


class Settings(BaseModel):
    """A section of a recipe: frozen, and a key that it doesn't know is an error.

    Numbers, booleans and strings are taken as TOML has them: neither "5" nor true is a whole
    number. Arrays become tuples, and strings paths or enum members, where the field says so.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        _take_scalars_strictly(schema)
        return schema


class FieldError(ValueError):
    """What is wrong with the value of a field whose type is ptkit's own, such as `Source`."""


def _text_encoding(name: str) -> str:
    try:
        "".encode(name)  # which refuses codecs that aren't of text, such as base64
    except (LookupError, UnicodeError, ValueError):
        raise FieldError(
            f"unknown encoding {name!r}; use a name that Python knows, such as utf-8, latin-1 or "
            "gb18030"
        ) from None
    return name


Encoding = Annotated[str, AfterValidator(_text_encoding)]
"""The type of a setting that names the encoding of a text file."""


class FromCommandLine(str):
    """A string given by ``--set``: as a path it is relative to the current folder."""

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


PORTABLE = "portable"  # the serialization context that leaves the folders of paths out


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What is needed to find a recipe's sources; handed to pydantic as the validation context.

    ``folder``: what paths are relative to; None: only names of sources are taken, and paths from
    the command line.
    """

    folder: Path | None
    resolve: Callable[[str], Path | None]


def _find(value: object, info: ValidationInfo) -> SourcePath:
    return find_source(value, info.context)


def find_source(value: object, context: object) -> SourcePath:
    """The file or folder that ``value`` names. Raises `FieldError` if there is none.

    Outside of a `SourceContext`, as in tests of components, every string is a plain path.
    """
    if isinstance(value, SourcePath):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise FieldError("must be a path or the name of a source, as a non-empty string")
    if not isinstance(context, SourceContext):
        return SourcePath(str(value), Path(value))
    try:
        found = context.resolve(str(value))
    except PtkitError as error:
        show_traceback(error)
        raise FieldError("; ".join(error.lines)) from error
    if found is not None:
        if not os.path.exists(found):
            raise FieldError(f"{str(value)!r} stands for {found}, which does not exist")
        return SourcePath(str(value), found, named=True)
    folder = Path.cwd() if isinstance(value, FromCommandLine) else context.folder
    if folder is None:
        raise FieldError(f"{value!r} is no named source, and paths are taken from --set only")
    path = folder / os.path.expanduser(value)
    # os.path, because Path.exists() raises for a name that is too long or a locked folder
    if not os.path.exists(path):
        close = suggestion(path.name, names_in(path.parent))
        raise FieldError(
            f"no such file, folder or named source{close}; looked for {os.path.abspath(path)}"
        )
    return SourcePath(str(value), path)


def _write(source: SourcePath, info: SerializationInfo) -> str:
    if source.named:
        return source.name
    return source.path.name if info.context == PORTABLE else os.path.abspath(source.path)


Source = Annotated[
    SourcePath,
    BeforeValidator(_find),
    PlainSerializer(_write, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "description": "a path (relative to the recipe) or a name such as nano:train",
        }
    ),
]
"""The type of a setting that names a file or folder; its value is a `SourcePath`."""


def dump(settings: BaseModel, *, portable: bool = False) -> dict[str, Any]:
    """``settings`` as TOML-ready values: sources as absolute paths or names, None left out.

    ``portable``: of a path, only the last part is kept.
    """
    values: dict[str, Any] = settings.model_dump(
        mode="json", exclude_none=True, by_alias=True, context=PORTABLE if portable else None
    )
    return values


_Settings = Settings  # which the name is inside a component


class Component(ABC):
    """The base of everything that a recipe can name."""

    name: ClassVar[str]

    owner: str = ""
    """The distribution and version that it comes from, set by a recipe; for messages."""

    class Settings(_Settings):
        pass

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
