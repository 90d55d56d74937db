"""Weight files looked at without torch: names, sizes, a fingerprint; pickles need torch for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import ptkit

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float16]]

SAMPLE = 64  # numbers of a tensor that go into the fingerprint
FILES = (
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its shape, and a function that reads its first numbers as float16."""

    shape: tuple[int, ...]
    head: Callable[[], Numbers]

    @property
    def count(self) -> int:
        return prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The files with a model's weights, safetensors before pickles. Raises
    `ptkit.CheckpointError` if there are none, or not all."""
    for index_name, single in FILES:
        index = folder / index_name
        if index.is_file():
            try:
                named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                files = sorted(folder / str(name) for name in named)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise ptkit.CheckpointError(
                    f"{index}: is not an index: it needs an object 'weight_map' of tensor to file"
                ) from None
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ptkit.CheckpointError(
                    f"{folder}: {len(missing)} of {len(files)} weight files are missing: "
                    f"{', '.join(missing[:5])}; is it a whole download?"
                )
            return files
        if (folder / single).is_file():
            return [folder / single]
    names = ", ".join(name for pair in FILES for name in reversed(pair))
    raise ptkit.CheckpointError(f"{folder}: holds no weights; looked for {names}")


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the weight files by its name. Raises `ptkit.CheckpointError`."""
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        found.update(_safetensors(file) if file.suffix == ".safetensors" else _pickled(file))
    return found


def _safetensors(path: Path) -> Iterator[tuple[str, Stored]]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 0 < size < _LONGEST_HEADER else None
        if not isinstance(header, dict):
            raise ValueError("it has no header")
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                kind, shape = str(entry["dtype"]), tuple(map(int, entry["shape"]))
                yield name, Stored(shape, _head(path, kind, 8 + size + start, stop - start))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ptkit.CheckpointError(
            f"{path}: can't be read as weights ({error}); is it a whole download?"
        ) from None


def _head(path: Path, kind: str, start: int, size: int) -> Callable[[], Numbers]:
    def read() -> Numbers:
        import numpy as np

        if kind not in _TYPES:
            return np.zeros(0, np.float16)  # whole numbers: buffers, such as position ids
        dtype = np.dtype(_TYPES[kind])
        with path.open("rb") as file:
            file.seek(start)
            numbers = np.frombuffer(file.read(min(size, SAMPLE * dtype.itemsize)), dtype)
        if kind == "BF16":  # the upper half of a float32
            numbers = (numbers.astype("<u4") << 16).view("<f4")
        with np.errstate(over="ignore"):
            return numbers.astype(np.float16)

    return read


def _pickled(path: Path) -> Iterator[tuple[str, Stored]]:
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        for name, tensor in state.items():
            yield name, Stored(tuple(tensor.shape), partial(_head_of, tensor))
    except (OSError, RuntimeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ptkit.CheckpointError(
            f"{path}: can't be read as weights ({reason}); is it a whole download?"
        ) from None


def _head_of(tensor: Tensor) -> Numbers:
    import numpy as np

    if not tensor.is_floating_point():
        return np.zeros(0, np.float16)
    sample: Numbers = tensor.flatten()[:SAMPLE].half().numpy()
    return sample


def fingerprint(tensors: Mapping[str, Stored]) -> str:
    """Equal for equal weights in any split into files, and in any wider float type.

    It covers names, shapes and the first numbers of every tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.head().tobytes())
    return digest.hexdigest()
