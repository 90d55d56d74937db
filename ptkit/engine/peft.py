"""The prefix-tuning folder of Hugging Face's PEFT: ``adapter_config.json`` and one flat tensor.

PEFT hands the prefix over as a cache of p tokens, so that real tokens are at p, p+1, …; ptkit has
them at 0, 1, …. Rotary attention sees distances only: keys rotated by p positions make one of the
other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ptkit.engine.adapter import Adapter
from ptkit.engine.files import save_tensors, write_json
from ptkit.engine.rotary import rotated
from ptkit.errors import CheckpointError
from ptkit.interchange import AdapterFormat
from ptkit.models import Backbone

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
TENSOR = "prompt_embeddings"
KIND = "PREFIX_TUNING"


class PeftFormat(AdapterFormat):
    """Prefix tuning of a causal language model, as ``peft.PeftModel.from_pretrained`` takes it."""

    name = "peft"
    looks_for = CONFIG

    def recognises(self, folder: Path) -> bool:
        return (folder / CONFIG).is_file()

    def read(self, folder: Path, backbone: Backbone) -> dict[str, Tensor]:
        config = _config(folder / CONFIG)
        path = folder / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; pickled weights are not read")
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: can't be read: {error}") from None
        if set(tensors) != {TENSOR}:
            names = ", ".join(sorted(tensors)) or "nothing"
            raise CheckpointError(f"{path}: must hold {TENSOR} and no other tensor, got {names}")
        flat = tensors[TENSOR]
        length = config.get("num_virtual_tokens")
        if flat.ndim != 2 or flat.shape[0] != length:
            raise CheckpointError(
                f"{path}: {TENSOR} has the shape {list(flat.shape)}, but {CONFIG} has "
                f"num_virtual_tokens {length}"
            )
        if flat.shape[1] != backbone.geometry.prefix_parameters(1):
            return {"embedding.weight": flat}  # refused where all formats are
        return {"embedding.weight": moved_keys(flat.float(), backbone, by=-length)}

    def write(self, folder: Path, adapter: Adapter, backbone: Backbone | None) -> list[str]:
        assert backbone is not None
        shape = backbone.geometry
        if not shape.causal:
            raise CheckpointError(
                f"{backbone.name}: reads in both directions, and only prefixes of causal language "
                "models are written for PEFT"
            )
        moved = moved_keys(adapter.prefix.flat().detach(), backbone, by=adapter.length)
        save_tensors(folder / WEIGHTS, {TENSOR: moved})
        width = shape.kv_groups * shape.head_size
        config = {
            "base_model_name_or_path": None,
            "encoder_hidden_size": width,
            "inference_mode": True,
            "num_attention_heads": shape.kv_groups,  # PEFT counts those of keys and values
            "num_layers": shape.layers,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": adapter.length,
            "peft_type": KIND,
            "prefix_projection": False,
            "task_type": "CAUSAL_LM",
            "token_dim": width,
        }
        write_json(folder / CONFIG, config)
        if adapter.prefix.trans is None:
            return []
        return ["the projection was worked out: PEFT loads the flat prefix that it gives"]


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
    got = config.get("peft_type") if isinstance(config, dict) else None
    if got != KIND:
        raise CheckpointError(
            f"{path}: peft_type must be {KIND!r}, got {got!r}; only a prefix can become a prefix"
        )
    submodules = config.get("num_transformer_submodules")
    if submodules not in (None, 1):
        raise CheckpointError(
            f"{path}: num_transformer_submodules must be 1, got {submodules!r}; models with an "
            "encoder and a decoder are not supported"
        )
    return dict(config)


def moved_keys(flat: Tensor, backbone: Backbone, *, by: int) -> Tensor:
    """A flat prefix, [p, 2·l·g·d], with its keys rotated ``by`` positions, values as they are.

    Raises `CheckpointError` for a model whose keys can't be moved.
    """
    shape = backbone.geometry
    split = flat.view(len(flat), 2 * shape.layers, shape.kv_groups, shape.head_size).clone()
    keys = split[:, 0::2].permute(1, 2, 0, 3)  # [l, g, p, d]
    split[:, 0::2] = rotated(backbone.outline(), keys, by).permute(2, 0, 1, 3)
    return split.flatten(1)
