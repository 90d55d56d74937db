"""What the contract checks share: how a fault is told, comparing, what every component must be."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel

from ptkit.components import SECTIONS
from ptkit.hookspecs import hookimpl
from ptkit.registry import Owner, empty_registry
from ptkit.settings import Component

T = TypeVar("T")
_IMPORT = """
import importlib, sys
try:
    importlib.import_module(sys.argv[1])
except BaseException:
    print("failed")
else:
    print("torch" if "torch" in sys.modules else "clean")
"""


def same(left: Any, right: Any, tolerance: float = 0.0) -> bool:
    """Whether two values are equal by content, floats up to ``tolerance`` (relative above 1).

    Looks into dataclasses, mappings, sequences, arrays and tensors. NaN equals NaN.
    """
    if hasattr(left, "shape") and hasattr(left, "tolist"):
        if getattr(right, "shape", None) != left.shape:
            return False
        return same(left.tolist(), right.tolist(), tolerance)
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
    if dataclasses.is_dataclass(left) and not isinstance(left, type):
        return all(
            same(getattr(left, field.name), getattr(right, field.name), tolerance)
            for field in dataclasses.fields(left)
        )
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(
            same(value, right[key], tolerance) for key, value in left.items()
        )
    if isinstance(left, Sequence) and not isinstance(left, str | bytes):
        return len(left) == len(right) and all(map(lambda a, b: same(a, b, tolerance), left, right))
    return bool(left == right)


def one_line(error: BaseException) -> str:
    """An exception as ``Type: message`` on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


class Subject:
    """The component under check, and how its faults are told."""

    def __init__(self, component: Component, base: type[Component]) -> None:
        self.component = component
        self.section = next(section for section in SECTIONS if section.base is base)
        if not isinstance(component, base):
            raise AssertionError(
                f"{component!r} is not a ptkit.{base.__name__}; hand the check an instance, "
                "such as MyComponent(MyComponent.Settings())"
            )

    def fault(self, text: str) -> AssertionError:
        kind = self.section.title.removesuffix("s")
        name = getattr(self.component, "name", type(self.component).__name__)
        return AssertionError(f"{kind} {name!r}: {text}")

    def call(self, what: str, function: Callable[[], T], hint: str = "") -> T:
        """The result of ``function``; what it raises becomes a fault of ``what``."""
        try:
            return function()
        except Exception as error:
            raise self.fault(f"{what} raised {one_line(error)}{hint}") from error

    def check_component(self) -> None:
        """What holds for any component: its name, and settings that refuse unknown keys.

        The registry is asked, so that this check and a run can't disagree.
        """
        component = type(self.component)
        plugin = ModuleType("checked")
        plugin.__dict__[self.section.hook] = hookimpl(lambda: [component])
        registry = empty_registry()
        registry.register(plugin, Owner("checked", "checked", "0"))
        for failure in registry.failures:
            raise self.fault(failure.reason.removeprefix(f"{self.section.hook}: "))
        for model in _models_in(component.Settings):
            if model.model_config.get("extra") != "forbid":
                raise self.fault(
                    f"{model.__qualname__} takes unknown keys, so that a misspelt setting does "
                    "nothing; make it a subclass of ptkit.Settings"
                )

    def check_import(self) -> None:
        """Importing the component's module must not import torch; tried in a fresh interpreter.

        A module that can't be imported by its name there (a test file, a script) is passed over.
        """
        module = type(self.component).__module__
        command = [sys.executable, "-P", "-c", _IMPORT, module]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.stdout.split()[-1:] == ["torch"]:
            raise self.fault(
                f"importing {module} imports torch, which costs every command seconds; import it "
                "inside the functions that need it"
            )


def _models_in(model: type[BaseModel], seen: set[type] | None = None) -> Iterator[type[BaseModel]]:
    """A settings class and all that its fields hold."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    waiting: list[Any] = [field.annotation for field in model.model_fields.values()]
    while waiting:
        annotation = waiting.pop()
        waiting += get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _models_in(annotation, seen)
