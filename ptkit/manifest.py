"""The manifest of an adapter folder, ``adapter.json``, read without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptkit.errors import CheckpointError

FORMAT = 1
MANIFEST = "adapter.json"


def read_manifest(path: Path) -> tuple[Path, dict[str, Any]]:
    """The adapter folder at ``path``, or in the run folder ``path``, and what its manifest says.

    Raises `CheckpointError` if it is not whole, was altered, or is of another version.
    """
    folder = adapter_folder(path)
    return folder, _manifest(folder / MANIFEST, bytes_inside(folder, MANIFEST))


def prefix_shape(path: Path) -> tuple[int, int | None]:
    """Virtual tokens a layer of the adapter at ``path``; the width of its projection, or None."""
    folder, manifest = read_manifest(path)
    shape = manifest.get("prefix")
    length, hidden = (
        (shape.get("length"), shape.get("projection_hidden_size"))
        if isinstance(shape, dict)
        else (None, None)
    )
    if type(length) is not int or not (hidden is None or type(hidden) is int):
        raise CheckpointError(f"{folder / MANIFEST}: is damaged: it has no shape of the prefix")
    return length, hidden


def checksum(manifest: Mapping[str, Any]) -> str:
    """The SHA-256 of all that a manifest says, its own checksum aside."""
    rest = {key: value for key, value in manifest.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def adapter_folder(path: Path) -> Path:
    inner = path / "adapter"
    if not path.exists():
        raise CheckpointError(f"{path}: no such adapter folder")
    if (path / MANIFEST).exists():
        return path
    if (inner / MANIFEST).exists():
        return inner
    hint = f"; did you mean {inner}?" if inner.is_dir() else ""
    raise CheckpointError(f"{path}: is no adapter, it has no {MANIFEST}{hint}")


def bytes_inside(folder: Path, name: str) -> bytes:
    """The bytes of a file of the folder, which must not be a link that leads out of it."""
    path = folder / name
    found = path.resolve()
    if found.parent != folder.resolve():
        raise CheckpointError(
            f"{path}: is a link out of the adapter, to {found}; put the file there"
        )
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing; the adapter is not whole") from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None


def _manifest(path: Path, content: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
    got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if type(got) is not int or got != FORMAT:
        newer = "a newer" if isinstance(got, int) and got > FORMAT else "another"
        raise CheckpointError(
            f"{path}: format must be {FORMAT}, got {got!r}; it was made by {newer} version of ptkit"
        )
    if "checksum" not in manifest:
        raise CheckpointError(f"{path}: is damaged: it has no checksum")
    if manifest["checksum"] != checksum(manifest):
        raise CheckpointError(f"{path}: was altered after it was made (its checksum is another)")
    return dict(manifest)
