"""From components to what trains and what does not: the frozen model, and a head's own module."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

from ptkit.components import TaskHead
from ptkit.engine.frozen_embedding import HostEmbedding
from ptkit.engine.model import Model, pick_device, pick_dtype
from ptkit.isolation import blamed, check_type
from ptkit.models import Backbone, LoadedBackbone
from ptkit.records import EncodedRow, HeadInfo


def load_model(
    backbone: Backbone,
    device: str,
    progress: Callable[[int, int], None] | None = None,
    *,
    whole: bool = True,
) -> Model:
    """The frozen model of a backbone on a device, ready for rows.

    ``progress`` gets the number of tensors that are loaded, and of all. ``whole``: False leaves the
    weights on the CPU, in the type that suits the device, for `shard` to spread.
    """
    chosen = pick_device(device)
    tokenizer = backbone.tokenizer
    with blamed(backbone, "load()"):
        dtype = pick_dtype(backbone.settings.dtype, chosen)
        loaded = backbone.load(chosen if whole else "cpu", dtype, progress)
        check_type(backbone, "load()", loaded, LoadedBackbone, "a ptkit.LoadedBackbone")
    if backbone.settings.embeddings == "host" and chosen != "cpu":
        loaded.body.set_input_embeddings(HostEmbedding.of(loaded.body.get_input_embeddings()))
    return Model(
        loaded,
        backbone.geometry,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        stop_ids=tokenizer.stop_ids,
    )


def build_head(
    head: TaskHead,
    backbone: Backbone,
    model: Model,
    seed: int,
    rows: Iterable[EncodedRow] = (),
) -> nn.Module | None:
    """The head's trainable module, if it has one, on the model's device.

    ``rows``: those that it will be trained on.
    """
    shape = backbone.geometry
    info = HeadInfo(shape.hidden_size, shape.vocab_size, shape.causal, seed, rows)
    with blamed(head, "build()"):
        module = head.build(info)
        wanted = "a torch module or None"
        check_type(head, "build()", module, nn.Module | None, wanted)
    return None if module is None else module.to(model.device).eval()
