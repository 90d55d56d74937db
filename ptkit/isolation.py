"""Faults of a plugin's component, told as one line: where, whose, which component, which method.

Whatever a component raises becomes a `PluginError` with the original as its cause. What is raised
on purpose passes through: a `PtkitError`, Ctrl-C, and memory that ran out, which is no fault of the
component that happened to ask for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import UnionType
from typing import Any

from ptkit.components import SECTIONS
from ptkit.errors import REPORT, PluginError, PtkitError
from ptkit.interchange import ADAPTER_FORMATS
from ptkit.settings import Component

_NO_MEMORY = (  # in plain RuntimeErrors: torch's allocator of the CPU, on Linux and Windows; cuBLAS
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def named(component: Component) -> str:
    """``task head 'mood' (ptkit-mood 0.3.0)``."""
    sections = (*SECTIONS, ADAPTER_FORMATS)
    titles = [section.title for section in sections if isinstance(component, section.base)]
    title = titles[0].removesuffix("s") if titles else "component"
    owner = f" ({component.owner})" if component.owner else ""
    return f"{title} {component.name!r}{owner}"


def one_line(error: BaseException) -> str:
    """``KeyError: 'x'``, whatever line breaks the message has."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's errors are known by name and text, torch isn't imported
    here."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def fault(component: Component, problem: str, where: object = "") -> PluginError:
    """An error for what is wrong with ``component``: ``problem`` begins with the method."""
    place = f"{where}: " if str(where) else ""
    return PluginError(f"{place}{named(component)}: {problem}; {REPORT}")


@contextmanager
def blamed(component: Component, what: str, where: object = "") -> Iterator[None]:
    """Turn what is raised inside into a `PluginError` that names the component.

    ``what`` is being asked of it, such as "encode()". ``where``: the origin of the row, or a
    function that is asked for it after the fault.
    """
    try:
        yield
    except PtkitError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        place = where() if callable(where) else where
        raise fault(component, f"{what} raised {one_line(error)}", place) from error


def check_type(
    component: Component,
    what: str,
    value: Any,
    kind: type | UnionType,
    wanted: str,
    where: object = "",
) -> None:
    """Raise a `PluginError` unless ``value``, which ``what`` returned, is a ``kind``."""
    if not isinstance(value, kind):
        problem = f"{what} must return {wanted}, got {type(value).__name__}"
        raise fault(component, problem, where)
