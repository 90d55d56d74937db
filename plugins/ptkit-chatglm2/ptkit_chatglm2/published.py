"""The published script's P-Tuning v2 checkpoint: ``pytorch_model.bin`` with the prefix encoder
alone, and a config.json with ``pre_seq_len`` and ``prefix_projection``."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ptkit

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "pytorch_model.bin"
IN_MODEL = "transformer.prefix_encoder."
EMBEDDING = "embedding.weight"
PROJECTION = frozenset({"trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"})
SHOWN = 5  # names of tensors in a message


class PublishedPrefix(ptkit.AdapterFormat):
    """A prefix as the published ChatGLM2 training script saves it, flat or with its projection."""

    name = "published"
    looks_for = f"{CONFIG} with pre_seq_len beside {WEIGHTS}"
    backbone_kind = "chatglm2"
    needs_backbone = False

    def recognises(self, folder: Path) -> bool:
        if not (folder / WEIGHTS).is_file():
            return False
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(config, dict) and config.get("pre_seq_len") is not None

    def read(self, folder: Path, backbone: ptkit.Backbone) -> dict[str, Tensor]:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        _check_base(folder / CONFIG, config, backbone)
        path = folder / WEIGHTS
        tensors = _prefix_tensors(path)
        wanted = {EMBEDDING, *(PROJECTION if config.get("prefix_projection") else ())}
        if tensors.keys() != wanted:
            missing, extra = wanted - tensors.keys(), tensors.keys() - wanted
            what = [f"no {name}" for name in sorted(missing)]
            what += [f"{name} besides" for name in sorted(extra)]
            raise ptkit.CheckpointError(
                f"{path}: has {', '.join(what)}, but {CONFIG} has prefix_projection = "
                f"{json.dumps(bool(config.get('prefix_projection')))}"
            )
        rows, length = list(tensors[EMBEDDING].shape), config["pre_seq_len"]
        if len(rows) != 2 or rows[0] != length:
            raise ptkit.CheckpointError(
                f"{path}: {EMBEDDING} has the shape {rows}, but {CONFIG} has pre_seq_len = "
                f"{json.dumps(length)}"
            )
        return tensors

    def write(
        self, folder: Path, adapter: ptkit.Adapter, backbone: ptkit.Backbone | None
    ) -> list[str]:
        import torch

        shape = adapter.manifest["backbone"]["geometry"]
        hidden = adapter.prefix.projection_hidden_size
        if hidden not in (None, shape["hidden_size"]):
            raise ptkit.CheckpointError(
                f"{adapter.folder}: has a projection of width {hidden}; the published code knows "
                f"none but the model's hidden size, {shape['hidden_size']}"
            )
        tensors = {
            f"{IN_MODEL}{name}": tensor.detach().cpu()
            for name, tensor in adapter.prefix.state_dict().items()
        }
        saved = io.BytesIO()
        torch.save(tensors, saved)
        (folder / WEIGHTS).write_bytes(saved.getbuffer())
        config: dict[str, Any] = {
            "model_type": "chatglm",
            "num_layers": shape["layers"],
            "kv_channels": shape["head_size"],
            "multi_query_group_num": shape["kv_groups"],
            "hidden_size": shape["hidden_size"],
            "padded_vocab_size": shape["vocab_size"],
        }
        if backbone is not None:
            source = backbone.settings.source.path / CONFIG
            config = json.loads(source.read_text(encoding="utf-8"))
        config |= {"pre_seq_len": adapter.length, "prefix_projection": hidden is not None}
        text = json.dumps(config, ensure_ascii=False, indent=1)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        if backbone is not None:
            return []
        return [f"{CONFIG} lacks what only the base knows; add it with --backbone"]


def _check_base(path: Path, config: Mapping[str, Any], backbone: ptkit.Backbone) -> None:
    """Raise `ptkit.CheckpointError`, naming all that differs, if it says that it is for another."""
    shape = backbone.geometry
    mine = {
        "num_layers": shape.layers,
        "multi_query_group_num": shape.kv_groups,
        "kv_channels": shape.head_size,
        "hidden_size": shape.hidden_size,
        "padded_vocab_size": shape.vocab_size,
    }
    differ = [
        f"{key} {json.dumps(config[key])}, not {value}"
        for key, value in mine.items()
        if config.get(key, value) != value
    ]
    if differ:
        raise ptkit.CheckpointError(
            f"{path}: is for another base than {backbone.settings.source}: {'; '.join(differ)}"
        )


def _prefix_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the prefix encoder, under its own names; no other may be there."""
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises IndexError, struct.error and others, too
        reason = " ".join(str(error).split())[:200]
        raise ptkit.CheckpointError(f"{path}: can't be read as weights ({reason})") from None
    tensors = state if isinstance(state, Mapping) else {}
    strange = [
        str(name)
        for name, tensor in tensors.items()
        if not (
            isinstance(name, str)
            and name.startswith(IN_MODEL)
            and isinstance(tensor, torch.Tensor)
            and tensor.is_floating_point()
        )
    ]
    if strange or not tensors:
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        names = ", ".join(sorted(strange)[:SHOWN]) + more
        raise ptkit.CheckpointError(
            f"{path}: must hold {IN_MODEL}* and nothing else, got {names or 'nothing'}"
        )
    return {name.removeprefix(IN_MODEL): tensor for name, tensor in tensors.items()}
