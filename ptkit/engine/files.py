"""Files that are either whole or not there: written under a temporary name, fsynced, renamed.

A name that ends in ``.partial`` is never read; the next writer of the same path clears it away.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ptkit.errors import PtkitError

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial"


class WriteError(PtkitError):
    """Something that could not be written; what was there before is unharmed."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path) -> None:
    """Put ``source`` in the place of ``target``, on the disk too."""
    source.replace(target)
    _sync(target.parent)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what a write to ``path`` raises inside a with block into a `WriteError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WriteError(f"{path}: can't be written: {reason}") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write; renamed to ``path`` if the block ends without an error.

    Raises `WriteError` for a full disk, a read-only folder and the like.
    """
    partial = path.with_name(path.name + PARTIAL)
    with explained(path):
        try:
            yield partial
            _sync(partial)
            rename(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of ``path`` if the block ends without an
    error."""
    partial = path.with_name(path.name + PARTIAL)
    with explained(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.iterdir():
                _sync(file)
            _sync(partial)
            remove_folder(path)
            rename(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def remove_folder(path: Path) -> None:
    """Remove a folder, under a temporary name first: half of it is never taken for the whole."""
    if path.exists():
        doomed = path.with_name(f"{path.name}.old{PARTIAL}")
        shutil.rmtree(doomed, ignore_errors=True)
        rename(path, doomed)
        shutil.rmtree(doomed)


def clear_partials(folder: Path) -> None:
    """Remove what a killed writer left below ``folder``."""
    for path in sorted(folder.rglob(f"*{PARTIAL}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file without metadata: equal tensors give equal bytes."""
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode & 0o777  # as the user has it for new files
    save_file({name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}, path)
    path.chmod(mode)  # safetensors leaves it readable for its owner only
