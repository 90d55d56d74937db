"""A folder's weights as a transformers model, every tensor accounted for, and its attention
modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import TYPE_CHECKING, Any

import ptkit
from ptkit_transformers.config import ModelConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

SHOWN = 5  # names of tensors in a message
BUFFERS = ("position_ids", "inv_freq", "masked_bias", "attn.bias")  # computed, in old files saved


def load_model(config: ModelConfig, dtype: str) -> PreTrainedModel:
    """The model of transformers with the weights of the folder, in eval mode on the CPU.

    Raises `ptkit.CheckpointError` for weights that are missing, of another shape, or belong to a
    part of the model that has no place for them. Heads of an encoder are left out.
    """
    import torch

    made = _transformers_config(config)
    cls = _model_class(config, made)
    try:
        with _quiet():
            model, told = cls.from_pretrained(
                config.folder,
                config=made,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                output_loading_info=True,
                **_without_pooling(cls),
                **({} if config.gguf is None else {"gguf_file": config.gguf.name}),
            )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ptkit.CheckpointError(
            f"{config.folder}: can't be loaded by transformers ({reason})"
        ) from None
    _check_names(config, model, told)
    loaded: PreTrainedModel = model.eval()
    return loaded


def outline(config: ModelConfig) -> PreTrainedModel:
    """The model without values, on torch's meta device."""
    import torch

    made = _transformers_config(config)
    cls = _model_class(config, made)
    with torch.device("meta"):
        model: PreTrainedModel = cls(made, **_without_pooling(cls)).eval()
    return model


def lm_head(config: ModelConfig, model: PreTrainedModel) -> nn.Module:
    """Hidden states to logits, as the whole model computes them.

    Raises `ptkit.CheckpointError` for a model of an unknown family that does more on the way.
    """
    import torch

    head: Any = model.get_output_embeddings()
    if head is None:
        raise ptkit.CheckpointError(
            f"{type(model).__name__}: has no LM head; this model is not supported"
        )
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap:
        from ptkit_transformers.softcap import SoftcappedHead

        head = SoftcappedHead(head, float(cap))
    if not config.known and not _is_meta(model):
        with torch.no_grad():
            ids = torch.tensor([[0, 1]])
            body: Any = model.base_model
            states = body(input_ids=ids, use_cache=False).last_hidden_state
            whole = model(input_ids=ids, use_cache=False).logits
            same = torch.allclose(head(states).float(), whole.float(), rtol=1e-3, atol=1e-3)
        if not same:
            raise ptkit.CheckpointError(
                f"{type(model).__name__}: its logits are not those of its LM head alone; this "
                "model is not supported"
            )
    found: nn.Module = head
    return found


def _is_meta(model: PreTrainedModel) -> bool:
    return next(model.parameters()).is_meta


def _model_class(config: ModelConfig, made: Any) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    mapping = (AutoModelForCausalLM if config.family.causal else AutoModel)._model_mapping
    if type(made) not in mapping:
        raise ptkit.CheckpointError(
            f"{config.folder}: transformers has no such model for model_type {config.model_type!r}"
        )
    cls = mapping[type(made)]
    return cls[0] if isinstance(cls, tuple) else cls


def _without_pooling(cls: type[Any]) -> dict[str, bool]:
    import inspect

    takes = "add_pooling_layer" in inspect.signature(cls).parameters
    return {"add_pooling_layer": False} if takes else {}


def _transformers_config(config: ModelConfig) -> Any:
    from transformers import CONFIG_MAPPING

    try:
        cls = CONFIG_MAPPING[config.model_type]
    except KeyError:
        raise ptkit.CheckpointError(
            f"{config.folder / 'config.json'}: this version of transformers has no model_type "
            f"{config.model_type!r}; update transformers, or use another model"
        ) from None
    raw = {key: value for key, value in config.raw.items() if key != "auto_map"}
    made = cls.from_dict(raw)
    heads = made.num_attention_heads
    got = {
        "layers": made.num_hidden_layers,
        "heads": heads,
        "kv_groups": getattr(made, "num_key_value_heads", None) or heads,
        "head_size": getattr(made, "head_dim", None) or made.hidden_size // heads,
        "hidden_size": made.hidden_size,
        "vocab_size": made.vocab_size,
    }
    geometry = config.geometry(0)
    other = [f"{k} = {v}" for k, v in got.items() if getattr(geometry, k) != v]
    if other:
        raise ptkit.CheckpointError(
            f"{config.folder / 'config.json'}: transformers takes it as {', '.join(other)}; write "
            "these values into it under the names that the family has for them"
        )
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own bars and reports: what is wrong with the weights is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the bar of its GGUF reader can't be switched off
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_names(
    config: ModelConfig, model: PreTrainedModel, told: Mapping[str, Sequence[str]]
) -> None:
    missing = sorted(told["missing_keys"])
    own = {name for name, _ in model.named_children()}
    prefix = f"{model.base_model_prefix}."
    unexpected = [
        name
        for name in sorted(told["unexpected_keys"])
        if not name.endswith(BUFFERS)
        and (config.family.causal or name.removeprefix(prefix).split(".")[0] in own)
    ]
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            shown = ", ".join(names[:SHOWN])
            problems.append(f"{config.folder}: {what} tensors: {shown}{more}")
    if problems:
        raise ptkit.CheckpointError(*problems)


def repeated_layers(body: nn.Module, attention: nn.Module) -> nn.ModuleList:
    """The list of layers that the attention module of one of them is in."""
    from torch import nn

    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    # modules come from the outside in, and the innermost may be a list inside a layer
    return next(found for found in lists if any(m is attention for m in found.modules()))


def attention_modules(config: ModelConfig, body: PreTrainedModel) -> list[nn.Module]:
    """The module of each layer that calls the attention interface, or holds the layer's prefix."""
    if config.model_type == "albert":
        from ptkit_transformers.albert import separate_layers

        return separate_layers(body)
    layers = config.numbers["num_hidden_layers"]
    for path in config.family.attentions:
        try:
            return [body.get_submodule(path.format(index)) for index in range(layers)]
        except AttributeError:
            continue
    raise ptkit.CheckpointError(
        f"{type(body).__name__}: its attention modules are not where ptkit looks for them "
        f"({', '.join(config.family.attentions)}); this model is not supported"
    )
