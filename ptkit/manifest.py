"""The manifest of an adapter folder, ``adapter.json``, read without torch."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptkit.errors import CheckpointError, names_in, suggestion

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
    """The adapter folder at ``path``, or in the run folder ``path``.

    Raises `CheckpointError` if neither is one, and says where there is one nearby.
    """
    inner = path / "adapter"
    if not path.exists():
        close = suggestion(path.name, names_in(path.parent))
        raise CheckpointError(f"{path}: no such adapter folder{close}")
    if (path / MANIFEST).exists():
        return path
    if (inner / MANIFEST).exists():
        return inner
    raise CheckpointError(f"{path}: is no adapter, it has no {MANIFEST}{_nearby(path)}")


def _nearby(path: Path) -> str:
    """What was probably meant by a folder without an adapter."""
    if (path / "adapter").is_dir():
        return f"; did you mean {path / 'adapter'}?"
    recipe = path / "recipe.toml"
    if recipe.is_file() and (path / "checkpoints").is_dir():
        command = shlex.join(["ptkit", "run", str(recipe), "--out", str(path), "--resume"])
        return f": the run is not finished; go on with: {command}"
    runs = [path / name for name in sorted(names_in(path))]
    runs = [run for run in runs if (run / "adapter" / MANIFEST).is_file()]
    return f"; name one of its runs, such as {runs[-1]}" if runs else ""


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
