"""GGUF files as transformers reads them: one file with configuration, tokenizer and weights.

Reading its configuration and tokenizer imports torch, because transformers' readers do.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ptkit
from ptkit_transformers.weights import SAMPLE, Stored

if TYPE_CHECKING:
    import numpy as np

NAMED = ("bos_token", "eos_token", "pad_token")


def find_gguf(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or the only one in a folder without config.json.

    Raises `ptkit.CheckpointError` where there are several.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ptkit.CheckpointError(f"{path}: holds several GGUF files ({names}); name one of them")
    return found[0] if found else None


def _checked(path: Path) -> Path:
    if find_spec("gguf") is None:
        raise ptkit.CheckpointError(
            f"{path}: GGUF files need the package gguf; pip install 'ptkit-transformers[gguf]'"
        )
    return path


def read_gguf_config(path: Path) -> dict[str, Any]:
    """What config.json would hold. Raises `ptkit.CheckpointError`."""
    from transformers import AutoConfig

    try:
        made = AutoConfig.from_pretrained(
            _checked(path).parent, gguf_file=path.name, local_files_only=True
        )
    except ptkit.CheckpointError:
        raise
    except Exception as error:  # transformers raises whatever its reader stumbles over
        reason = " ".join(str(error).split())[:200]
        raise ptkit.CheckpointError(
            f"{path}: can't be read as a model by transformers ({reason})"
        ) from None
    raw: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    return {key: value for key, value in raw.items() if value is not None}


def read_gguf_tokenizer(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What tokenizer.json and tokenizer_config.json would hold. Raises `ptkit.CheckpointError`."""
    from transformers import PreTrainedTokenizerFast

    try:
        made = PreTrainedTokenizerFast.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
        data: dict[str, Any] = json.loads(made.backend_tokenizer.to_str())
        # the file's list is whole: what transformers adds behind it is no token of the model
        known = len(data["model"]["vocab"])
        data["added_tokens"] = [t for t in data["added_tokens"] if t["id"] < known]
    except Exception as error:  # transformers raises whatever its reader stumbles over
        reason = " ".join(str(error).split())[:200]
        raise ptkit.CheckpointError(
            f"{path}: its tokenizer can't be read by transformers ({reason})"
        ) from None
    settings = {name: getattr(made, name) for name in NAMED}
    return data, {**settings, "chat_template": _chat_template(path)}


def _chat_template(path: Path) -> str | None:
    """The model's own; transformers leaves it out."""
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.chat_template")
    return None if field is None else str(field.contents())


def gguf_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor by its name in the file; quantised ones as the bytes that they are."""
    from gguf import GGUFReader

    found = {}
    for tensor in GGUFReader(path).tensors:
        if not tensor.name.startswith("rope_"):  # tables, computed by transformers
            first = bytes(tensor.data.reshape(-1)[:SAMPLE].tobytes()[:SAMPLE])
            found[tensor.name] = Stored(tuple(map(int, tensor.shape)), _Bytes(first))
    return found


class _Bytes:
    """Bytes as the numbers that a fingerprint takes."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __call__(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        import numpy as np

        return np.frombuffer(self.content, np.uint8).astype(np.float16)
