"""Models of the Hugging Face hub, downloaded once and then taken from its cache."""

from __future__ import annotations

import re
from pathlib import Path

import ptkit

SMALL = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHTS = ("*.safetensors",), ("*.bin",)  # pickles only where there is nothing else
_NAME = re.compile(r"hub:(?P<repo>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")


def fetch(source: str) -> Path:
    """The local folder of ``hub:owner/name[@revision]``; without the network if it is there.

    Raises `ptkit.PtkitError` for a name of another form and for what can't be downloaded.
    """
    found = _NAME.fullmatch(source)
    if found is None:
        raise ptkit.PtkitError(f"{source!r}: must be hub:owner/name or hub:owner/name@revision")
    for offline in (True, False):
        try:
            for weights in WEIGHTS:
                folder = _snapshot(found["repo"], found["revision"], weights, offline=offline)
                if has_weights(folder) and (folder / "config.json").is_file():
                    return folder
        except (OSError, ValueError) as error:  # huggingface_hub's errors are one or the other
            if not offline:
                reason = " ".join(str(error).split())[:200]
                raise ptkit.PtkitError(
                    f"{source!r}: can't be downloaded ({reason}); check the name and the network, "
                    "or name a local folder"
                ) from None
    raise ptkit.PtkitError(
        f"{source!r}: has no config.json with .safetensors or .bin weights; name another model"
    )


def _snapshot(repo: str, revision: str | None, weights: tuple[str, ...], *, offline: bool) -> Path:
    import huggingface_hub

    patterns = [*SMALL, *weights]
    return Path(
        huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=patterns, local_files_only=offline
        )
    )


def has_weights(folder: Path) -> bool:
    return any(True for pattern in WEIGHTS for _ in folder.glob(pattern[0]))
