"""What is wrong with a section in plain words: pydantic's errors rewritten, one a mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ptkit.errors import closest, suggestion
from ptkit.settings import FieldError

Keys = tuple[str | int, ...]

ONE_OF_MISSING = "one_of_missing"
"""The type of an error for keys of which one must be given; its context names the ``keys``."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN = 60  # characters of a value
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "path": "a path",
    "list": "an array",
    "tuple": "an array",
    "set": "an array",
    "frozen_set": "an array",
    "dict": "a table",
    "mapping": "a table",
    "model": "a table",
    "model_attributes": "a table",
    "dataclass": "a table",
    "date": "a date",
    "datetime": "a date with time",
    "time": "a time",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_SIZES = {
    "too_short": ("at least", "min_length", "value"),
    "too_long": ("at most", "max_length", "value"),
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
}


@dataclass(frozen=True)
class Problem:
    """One mistake: the ``keys`` that lead to it, and what is wrong, what was got and what to do."""

    keys: Keys
    text: str

    def __str__(self) -> str:
        text = " ".join(self.text.split())
        return f"{dotted(self.keys)}: {text}" if self.keys else text


def dotted(keys: Iterable[str | int]) -> str:
    """``metrics.0.kind``; a key that TOML would quote is quoted."""
    return ".".join(
        str(key) if _BARE_KEY.fullmatch(str(key)) else _quoted(str(key)) for key in keys
    )


def _quoted(key: str) -> str:
    return json.dumps(key, ensure_ascii=not key.isprintable())


def shown(value: object) -> str:
    """A short, one-line form of a value from a recipe."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, str):
        text = str.__repr__(value[: _SHOWN + 1])
    elif isinstance(value, list | tuple) and len(value) > 8:
        return f"an array of {len(value)}"
    else:
        text = " ".join(_safe_repr(value).split())
    return text if len(text) <= _SHOWN + 2 else f"{text[:_SHOWN]}…"


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # a whole number of more than 4,300 digits, for one
        return f"a value of type {type(value).__name__}"


def settings_problems(
    model: type[BaseModel], data: Mapping[str, Any], error: ValidationError, kind: str | None = None
) -> list[Problem]:
    """The mistakes behind ``error``, which ``model`` raised for ``data``, a mistake once.

    ``kind``: the component whose settings they are; named where its own validator wrote the text.
    """
    located = [_Located.of(details, data) for details in error.errors(include_url=False)]
    chosen = _without_other_branches(located, 0)
    misspelt = {
        (*found.keys[:-1], name)
        for found in chosen
        if found.type == "extra_forbidden"
        and (name := closest(str(found.keys[-1]), _known_keys(model, found.keys[:-1])))
    }
    problems: dict[Keys, Problem] = {}
    for found in chosen:
        if found.type == "missing" and found.keys in misspelt:
            continue
        if found.type == ONE_OF_MISSING:
            names = found.context["keys"]
            if any((*found.keys[:-1], name) in misspelt for name in names):
                continue
            keys = found.keys if len(names) == 1 else found.keys[:-1]
            problems.setdefault(keys, Problem(keys, found.details["msg"]))
        elif found.type == "extra_forbidden":
            known = _known_keys(model, found.keys[:-1])
            problems.setdefault(found.keys, Problem(found.keys, unknown_key(found.keys[-1], known)))
        elif found.type == "missing" and isinstance(found.keys[-1], int):
            # a value of a fixed-size array: the last one that is missing tells the size
            text = f"must have {found.keys[-1] + 1} values, got {len(found.details['input'])}"
            problems[found.keys[:-1]] = Problem(found.keys[:-1], text)
        else:
            whose = f" (kind {kind!r})" if kind is not None and found.is_of_plugin else ""
            problems.setdefault(found.keys, Problem(found.keys, f"{found.text()}{whose}"))
    return list(problems.values())


def unknown_key(key: object, known: Sequence[str], what: str = "key") -> str:
    """``unknown key (did you mean 'length'?)``, or all known keys if none is close."""
    close = suggestion(str(key), known)
    return f"unknown {what}{close or '; known: ' + (', '.join(known) or 'none')}"


@dataclass(frozen=True)
class _Located:
    """One of pydantic's errors. ``marks``: its location, True: a key, False: a union's branch."""

    details: ErrorDetails
    marks: tuple[tuple[bool, str | int], ...]

    @classmethod
    def of(cls, details: ErrorDetails, data: Any) -> _Located:
        marks = []
        value = data
        for position, part in enumerate(details["loc"]):
            if isinstance(value, list | tuple) and isinstance(part, int):
                is_key = part < len(value)
            else:
                is_key = isinstance(value, Mapping) and part in value
            if is_key:
                value = value[part]
            else:  # absent from the data: a field of the section itself, a missing key, or a branch
                last = position == len(details["loc"]) - 1
                is_key = position == 0 or (last and details["type"] == "missing")
            marks.append((is_key, part))
        return cls(details, tuple(marks))

    @property
    def type(self) -> str:
        return self.details["type"]

    @property
    def context(self) -> Mapping[str, Any]:
        return self.details.get("ctx", {})

    @property
    def keys(self) -> Keys:
        return tuple(part for is_key, part in self.marks if is_key)

    @property
    def is_of_plugin(self) -> bool:
        """Whether a validator of the component raised it, and not pydantic or a type of ours."""
        raised = self.context.get("error")
        return isinstance(raised, Exception) and not isinstance(raised, FieldError)

    @property
    def wanted(self) -> str | None:
        """The name of the type that the value should have had, if that is what is wrong."""
        kind = re.fullmatch(r"(\w+?)_(type|parsing|parsing_size|from_float)", self.type)
        return _TYPES.get(kind[1]) if kind else None

    @property
    def branch_takes(self) -> str | None:
        """What the branch of a union takes, if the value is not even of that type."""
        if self.type == "literal_error" and not isinstance(self.details["input"], str):
            return str(self.context["expected"])
        return self.wanted

    def branch(self, start: int) -> int | None:
        """The index of the first branch of a union at or behind ``start``."""
        return next(
            (i for i, (is_key, _) in enumerate(self.marks) if i >= start and not is_key), None
        )

    def text(self) -> str:
        got = shown(self.details["input"])
        if self.wanted:
            return f"must be {self.wanted}, got {got}"
        if self.type == "missing":
            return "is missing"
        if self.type == "finite_number":
            return f"must be a finite number, got {got}"
        if self.type in _BOUNDS:
            words, key = _BOUNDS[self.type]
            bound = self.context[key]
            return (
                f"must be {words} {f'{bound:g}' if isinstance(bound, float) else bound}, got {got}"
            )
        if self.type in _SIZES:
            words, key, noun = _SIZES[self.type]
            size = self.context[key]
            return f"must have {words} {size} {noun}{'s' if size != 1 else ''}, got {got}"
        if self.type in ("literal_error", "enum"):
            expected = self.context["expected"]
            given = self.details["input"]
            close = (
                suggestion(given, re.findall(r"'([^']*)'", expected))
                if isinstance(given, str)
                else ""
            )
            return f"must be {expected}, got {got}{close}"
        if self.type in ("value_error", "assertion_error"):
            return str(self.context["error"]) or f"is not valid, got {got}"
        if self.type == "invalid_key":
            return "keys must be strings"
        text = self.details["msg"]
        return (
            f"{text.replace('Input should ', 'must ')}, got {got}"
            if "Input should" in text
            else text
        )


def _without_other_branches(errors: Sequence[_Located], start: int) -> list[_Located]:
    """The errors without those of the branches of unions that the value wasn't meant for.

    ``limit = {train = 0}`` for ``Limit | int``: pydantic reports that 0 is too small, and that a
    table is no whole number; only the first is of interest. Where no branch takes the type, one
    error names them all.
    """
    kept = []
    unions: dict[Keys, dict[str | int, list[_Located]]] = {}
    for error in errors:
        at = error.branch(start)
        if at is None:
            kept.append(error)
        else:
            prefix = tuple(part for _, part in error.marks[:at])
            unions.setdefault(prefix, {}).setdefault(error.marks[at][1], []).append(error)
    for prefix, branches in unions.items():
        behind = len(prefix) + 1
        entered = [
            branch
            for branch in branches.values()
            if any(len(error.marks) > behind or not error.branch_takes for error in branch)
        ]
        if entered:
            kept += _without_other_branches(min(entered, key=len), behind)
        else:
            kept.append(_one_for_all([branch[0] for branch in branches.values()]))
    return kept


def _one_for_all(errors: Sequence[_Located]) -> _Located:
    first = errors[0]
    # scalars first: "a whole number or a table"
    wanted = sorted(
        {str(e.branch_takes) for e in errors}, key=lambda w: (w in ("a table", "an array"), w)
    )
    text = f"must be {' or '.join(wanted)}, got {shown(first.details['input'])}"
    details: ErrorDetails = {**first.details, "type": "union", "msg": text}
    return _Located(details, first.marks)


def _known_keys(model: type[BaseModel], keys: Keys) -> list[str]:
    """The keys of the table behind ``keys``, or of all tables that a union leaves possible."""
    models = [model]
    for key in keys:
        fields = [f for m in models for name, f in m.model_fields.items() if key in (name, f.alias)]
        models = [found for f in fields for found in _models_in(f.annotation)] if fields else models
    return [field.alias or name for m in models for name, field in m.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
