"""Published weights into transformers' native GLM: tensor by tensor from mapped files, every name
accounted for."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import ptkit
from ptkit_chatglm2.config import ChatGLM2Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

IGNORED = frozenset({"transformer.rotary_pos_emb.inv_freq"})
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SHOWN = 5  # names of missing or unexpected tensors in a message


def expected_shapes(config: ChatGLM2Config) -> dict[str, tuple[int, ...]]:
    """Every published tensor and its shape."""
    h, f, v = config.hidden_size, config.ffn_hidden_size, config.padded_vocab_size
    qkv = config.query_size + 2 * config.key_value_size
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.embedding.word_embeddings.weight": (v, h),
        "transformer.encoder.final_layernorm.weight": (h,),
        "transformer.output_layer.weight": (v, h),
    }
    for layer in range(config.num_layers):
        prefix = f"transformer.encoder.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (h,),
            f"{prefix}self_attention.query_key_value.weight": (qkv, h),
            f"{prefix}self_attention.query_key_value.bias": (qkv,),
            f"{prefix}self_attention.dense.weight": (h, config.query_size),
            f"{prefix}post_attention_layernorm.weight": (h,),
            f"{prefix}mlp.dense_h_to_4h.weight": (2 * f, h),
            f"{prefix}mlp.dense_4h_to_h.weight": (h, f),
        }
    return shapes


def native_tensors(
    name: str, tensor: Tensor, config: ChatGLM2Config
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of GlmForCausalLM that a published one becomes.

    ``query_key_value`` holds query, key and value rows in this order; all others are renamed only.
    """
    renamed = {
        "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.encoder.final_layernorm.weight": "model.norm.weight",
        "transformer.output_layer.weight": "lm_head.weight",
    }
    if name in renamed:
        yield renamed[name], tensor
        return
    native = name.replace("transformer.encoder.layers.", "model.layers.")
    native = native.replace("self_attention.dense.", "self_attn.o_proj.")
    native = native.replace("mlp.dense_h_to_4h.", "mlp.gate_up_proj.")
    native = native.replace("mlp.dense_4h_to_h.", "mlp.down_proj.")
    if "self_attention.query_key_value." not in native:
        yield native, tensor
        return
    sizes = [config.query_size, config.key_value_size, config.key_value_size]
    for part, rows in zip("qkv", tensor.split(sizes), strict=True):
        yield native.replace("self_attention.query_key_value.", f"self_attn.{part}_proj."), rows


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights: safetensors before .bin, an index before a single
    file."""
    for index_name, single in zip(INDEX_FILES, SINGLE_FILES, strict=True):
        index = folder / index_name
        if index.is_file():
            try:
                named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
                files = sorted({folder / name for name in named})
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise ptkit.CheckpointError(
                    f"{index}: is not an index: it needs an object 'weight_map' of tensor to file"
                ) from None
            if any(file.parent != folder for file in files):
                raise ptkit.CheckpointError(f"{index}: names a file outside its folder")
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise ptkit.CheckpointError(
                    f"{folder}: {len(missing)} of {len(files)} weight files are missing: "
                    f"{', '.join(missing[:SHOWN])}"
                )
            return files
        if (folder / single).is_file():
            return [folder / single]
    names = ", ".join((*SINGLE_FILES, *INDEX_FILES))
    raise ptkit.CheckpointError(f"{folder}: holds no weights; looked for {names}")


Getter = Callable[[], "Tensor"]


def open_tensors(files: list[Path], stack: ExitStack) -> dict[str, Getter]:
    """Each tensor's name and a function that reads it from its mapped file. Pickles load weights
    only."""
    import torch
    from safetensors import SafetensorError, safe_open

    getters: dict[str, Getter] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                opened = stack.enter_context(safe_open(file, framework="pt"))
                found = {
                    name: (lambda o=opened, n=name: o.get_tensor(n))
                    for name in opened.keys()  # noqa: SIM118
                }
            else:
                state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
                if not isinstance(state, Mapping):
                    raise ValueError("it holds no dictionary of tensors")
                found = {name: (lambda t=tensor: t) for name, tensor in state.items()}
        except (
            OSError,
            SafetensorError,
            RuntimeError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise ptkit.CheckpointError(
                f"{file}: can't be read as weights ({reason}); is it a whole download?"
            ) from None
        getters |= found
    return getters


def check_names(folder: Path, found: set[str], expected: set[str]) -> None:
    """Raise `ptkit.CheckpointError` unless the weights are exactly the expected ones."""
    problems = []
    for what, names in (("missing", expected - found), ("unexpected", found - expected - IGNORED)):
        if names:
            shown = ", ".join(sorted(names)[:SHOWN])
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            problems.append(f"{folder}: {what} tensors: {shown}{more}")
    if problems:
        raise ptkit.CheckpointError(*problems)


def load_native(folder: Path, config: ChatGLM2Config, device: str, dtype: torch.dtype) -> nn.Module:
    """GlmForCausalLM with the weights of ``folder``; each tensor goes from its file to its place
    and dtype."""
    import torch
    from torch import nn
    from transformers import GlmForCausalLM

    with torch.device("meta"):
        model = GlmForCausalLM(config.transformers())
    shapes = expected_shapes(config)
    with ExitStack() as stack:
        getters = open_tensors(weight_files(folder), stack)
        check_names(folder, set(getters), set(shapes))
        wrong = []
        for name, shape in shapes.items():
            tensor = getters[name]()
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                wrong.append(f"{folder}: {name} must be a float tensor of {list(shape)}, got {got}")
                continue
            for native, part in native_tensors(name, tensor, config):
                owner, _, attribute = native.rpartition(".")
                placed = part.to(device=device, dtype=dtype, copy=True).contiguous()
                setattr(
                    model.get_submodule(owner), attribute, nn.Parameter(placed, requires_grad=False)
                )
        if wrong:
            raise ptkit.CheckpointError(*wrong)
    # buffers are not in the checkpoint: the rotary table is computed anew, in float32
    model.model.rotary_emb = type(model.model.rotary_emb)(config.transformers()).to(device)
    left = [name for name, p in [*model.named_parameters(), *model.named_buffers()] if p.is_meta]
    if left:
        raise RuntimeError(f"left without a value: {left}")
    return model.eval()


def fingerprint(folder: Path, config: ChatGLM2Config) -> str:
    """A hash that is equal for equal weights in any file layout or wider float type.

    It samples the norms and the first row of every fused query/key/value weight, as float32: some
    hundred kilobytes of a 6B model.
    """
    digest = hashlib.sha256(repr(config).encode())
    with ExitStack() as stack:
        getters = open_tensors(weight_files(folder), stack)
        check_names(folder, set(getters), set(expected_shapes(config)))
        for name in sorted(expected_shapes(config)):
            if "layernorm" in name or "query_key_value.bias" in name:
                digest.update(getters[name]().float().numpy().tobytes())
            elif "query_key_value.weight" in name:
                digest.update(getters[name]()[0].float().numpy().tobytes())
    return digest.hexdigest()
