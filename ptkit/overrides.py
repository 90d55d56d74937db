"""The TOML behind a recipe: its file, and ``--set a.b=value`` from the command line."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptkit.errors import RecipeError, suggestion
from ptkit.settings import FromCommandLine

Keys = tuple[str | int, ...]
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = 80  # characters of a bad argument


def read_toml(path: Path) -> dict[str, Any]:
    """What a recipe file says. Raises `RecipeError` with its line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        close = suggestion(path.name, [p.name for p in path.parent.glob("*.toml")])
        raise RecipeError(f"{path}: no such file{close}; `ptkit new recipe` writes one") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; name the recipe file in it") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: is not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError(f"{str(path)!r}: can't be read: {reason}") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        line_number, problem = describe_toml_error(error)
        if line_number == "at the end":
            line_number = str(text.count("\n") + 1)
        where = f"{path}:{line_number}" if line_number else str(path)
        raise RecipeError(f"{where}: not valid TOML: {problem}") from error


def apply_overrides(
    data: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], frozenset[Keys]]:
    """A copy of ``data`` with all ``overrides``, and the keys that they set.

    Numbers index lists, one behind the last adds an item: ``metrics.0.kind="bleu-char"``.
    Raises `RecipeError` with a line for each bad one.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(data))
    keys_set: set[Keys] = set()
    lines = []
    for override in overrides:
        try:
            path, value = _parse(override)
            keys_set.add(_put(changed, path, value))
        except ValueError as error:
            lines.append(f"--set {_shown(override)}: {error}")
    if lines:
        raise RecipeError(*lines)
    return changed, frozenset(keys_set)


def _parse(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError("has no '='; write --set section.key=value")
    path = [part.strip() for part in key.split(".")]
    for part in path:
        if not part:
            raise ValueError("a key is empty; write --set section.key=value")
        if not _KEY.fullmatch(part):
            raise ValueError(f"{part!r} is not a key; keys are letters, digits, '_' and '-'")
    return path, _value(".".join(path), text.strip())


def _value(key: str, text: str) -> Any:
    if not text:
        raise ValueError(f"has no value; an empty string is {_quoted(key, '')}")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if text[0] in "[{\"'":
            raise ValueError(f"not a TOML value: {describe_toml_error(error)[1]}") from error
    else:
        if list(parsed) == ["value"]:
            return _from_command_line(parsed["value"])
    if text.lower() in ("true", "false"):
        raise ValueError(f"not a TOML value; write --set {key}={text.lower()}")
    raise ValueError(f"not a TOML value; a string needs quotes: {_quoted(key, text)}")


def _quoted(key: str, text: str) -> str:
    literal = json.dumps(text, ensure_ascii=not text.isprintable())
    return f"--set {shlex.quote(f'{key}={literal}')}"


def describe_toml_error(error: Exception) -> tuple[str | None, str]:
    """The line of a TOML error ("3", "at the end"; None: unknown) and what is wrong there."""
    if isinstance(error, RecursionError):
        return None, "arrays or tables are nested too deeply"
    found = re.fullmatch(
        r"(.*?) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.S
    )
    if found is None:
        return None, " ".join(str(error).split())
    text = " ".join(found[1].split())
    return found[2] or "at the end", text[:1].lower() + text[1:]


def _from_command_line(value: Any) -> Any:
    if isinstance(value, str):
        return FromCommandLine(value)
    if isinstance(value, list):
        return [_from_command_line(item) for item in value]
    if isinstance(value, dict):
        return {key: _from_command_line(item) for key, item in value.items()}
    return value


def _put(data: dict[str, Any], path: list[str], value: Any) -> Keys:
    """Set ``value`` in place. Returns the keys, those that index lists as numbers."""
    done: list[str | int] = []
    at: Any = data
    for position, part in enumerate(path):
        last = position == len(path) - 1
        # a missing level becomes a list if a number follows, else a table
        new = value if last else [] if path[position + 1].isdecimal() else {}
        where = ".".join(str(key) for key in done)
        if isinstance(at, dict):
            done.append(part)
            if last or part not in at:
                at[part] = new
            at = at[part]
        elif isinstance(at, list):
            if not part.isdecimal():
                raise ValueError(f"{where!r} is a list; write {where}.0.{part}=…")
            index = int(part)
            if index > len(at):
                items = f"{len(at)} item{'' if len(at) == 1 else 's'}"
                raise ValueError(f"{where!r} has {items}, so {len(at)} is the highest index")
            done.append(index)
            if index == len(at):
                at.append(new)
            elif last:
                at[index] = new
            at = at[index]
        else:
            raise ValueError(f"{where!r} is neither a table nor a list, so it has no {part!r}")
    return tuple(done)


def _shown(override: str) -> str:
    text = shlex.quote(" ".join(override.split()))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
