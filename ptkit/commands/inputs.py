"""What a command was pointed at, looked at before torch is imported."""

from __future__ import annotations

from pathlib import Path

from ptkit.components import TaskHead
from ptkit.errors import PtkitError
from ptkit.manifest import read_manifest
from ptkit.records import GenerationRecord
from ptkit.registry import Registry
from ptkit.settings import FieldError, FromCommandLine, SourceContext, find_source


def check_inputs(adapter: Path, source: str, option: str, registry: Registry) -> None:
    """Raise `PtkitError` where there is no adapter, or no file that ``option`` names."""
    read_manifest(adapter)
    try:
        find_source(FromCommandLine(source), SourceContext(None, registry.resolve_source))
    except FieldError as error:
        raise PtkitError(f"{option} {source}: {error}") from None


def check_chats(adapter: Path, registry: Registry) -> None:
    """Raise `PtkitError` where there is no adapter, or one whose task doesn't answer prompts."""
    _, manifest = read_manifest(adapter)
    kind = manifest["task"]["kind"]
    known = registry.components["task"].get(kind)
    # a task that isn't installed is told when the adapter is put together
    if known is None or not issubclass(known.component, TaskHead):
        return
    accepts = known.component.accepts
    if not issubclass(GenerationRecord, accepts):
        raise PtkitError(
            f"{adapter}: task {kind!r} reads {accepts.__name__} rows, and a chat has prompts; "
            "answer a file of rows with ptkit predict"
        )
