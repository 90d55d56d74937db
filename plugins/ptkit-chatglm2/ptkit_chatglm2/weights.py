"""Published weights into transformers' native GLM: tensor by tensor from mapped files, quantised or
not, every name accounted for."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import ptkit
from ptkit_chatglm2.config import OPTIONAL, REQUIRED, ChatGLM2Config
from ptkit_chatglm2.random_weights import random_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import GlmForCausalLM

IGNORED = frozenset({"transformer.rotary_pos_emb.inv_freq"})
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SHOWN = 5  # names of missing or unexpected tensors in a message
LINEARS = (
    "self_attention.query_key_value",
    "self_attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)  # what is quantised of a layer
FINGERPRINT_ROWS = 16  # of a layer's query_key_value


def is_linear(name: str) -> bool:
    """Whether a published tensor is the weight of one of a layer's four linears."""
    return name.endswith(tuple(f"{linear}.weight" for linear in LINEARS))


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
    if config.quantization_bit:
        for name in [name for name in shapes if is_linear(name)]:
            rows, columns = shapes[name]
            shapes[name] = (rows, columns * config.quantization_bit // 8)
            shapes[f"{name}_scale"] = (rows,)
    return shapes


def native_name(name: str) -> str:
    """The name that a published tensor has in `native_model`."""
    renamed = {
        "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.encoder.final_layernorm.weight": "model.norm.weight",
        "transformer.output_layer.weight": "lm_head.weight",
    }
    if name in renamed:
        return renamed[name]
    native = name.replace("transformer.encoder.layers.", "model.layers.")
    native = native.replace("self_attention.query_key_value.", "self_attn.qkv_proj.")
    native = native.replace("self_attention.dense.", "self_attn.o_proj.")
    native = native.replace("mlp.dense_h_to_4h.", "mlp.gate_up_proj.")
    return native.replace("mlp.dense_4h_to_h.", "mlp.down_proj.")


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


def _same(tensor: Tensor) -> Tensor:
    return tensor


def open_tensors(files: list[Path], stack: ExitStack) -> dict[str, Getter]:
    """Each tensor's name and a function that reads it from its mapped file. Pickles load weights
    only."""
    import torch
    from safetensors import SafetensorError, safe_open

    getters: dict[str, Getter] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                found: dict[str, Getter]
                opened = stack.enter_context(safe_open(file, framework="pt"))
                found = {
                    name: partial(opened.get_tensor, name)
                    for name in opened.keys()  # noqa: SIM118
                }
            else:
                state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
                if not isinstance(state, Mapping):
                    raise ValueError("it holds no dictionary of tensors")
                found = {name: partial(_same, tensor) for name, tensor in state.items()}
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


def check_shapes(folder: Path, config: ChatGLM2Config, getters: Mapping[str, Getter]) -> None:
    """Raise `ptkit.CheckpointError` for tensors of another shape or type. No weight is read for
    it."""
    import torch

    problems = []
    for name, shape in expected_shapes(config).items():
        tensor = getters[name]()
        packed = config.quantization_bit and is_linear(name)
        fits = tensor.dtype == torch.int8 if packed else tensor.is_floating_point()
        if tuple(tensor.shape) != shape or not fits:
            wanted = "an int8" if packed else "a float"
            got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
            problems.append(f"{folder}: {name} must be {wanted} tensor of {list(shape)}, got {got}")
    if problems:
        raise ptkit.CheckpointError(*problems)


@dataclass(frozen=True)
class Target:
    """Where weights go, and what they become; ``quantization``: of a layer's linears."""

    device: str
    dtype: torch.dtype
    quantization: str = "none"

    def place(self, owner: nn.Module, attribute: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """What a tensor of the module ``owner`` becomes on the device: itself, or quantised.

        It is copied before it is converted: on the way to a GPU the host then holds no copy.
        """
        packed = not tensor.is_floating_point()
        if attribute == "weight" and isinstance(owner, ptkit.QuantizedLinear) and not packed:
            return owner.quantized(tensor, self.device)
        placed = tensor.to(self.device)
        if attribute == "weight_scale":
            placed = placed.float()
        elif placed.is_floating_point():
            placed = placed.to(self.dtype)
        # a tensor of the file itself would keep it mapped, and change when the file does
        return {attribute: placed.clone() if placed.data_ptr() == tensor.data_ptr() else placed}


def native_model(folder: Path, config: ChatGLM2Config, quantization: str) -> GlmForCausalLM:
    """GlmForCausalLM without values (on torch's meta device), its linears as published, quantised
    or not."""
    import torch
    from transformers import GlmForCausalLM

    from ptkit_chatglm2.layers import use_fused

    with torch.device("meta"):
        model: GlmForCausalLM = GlmForCausalLM(config.transformers())
        use_fused(model)
    if quantization != "none":
        ptkit.quantize_linears(model.model.layers, quantization, source=str(folder))
    return model


def load_native(
    folder: Path,
    config: ChatGLM2Config,
    target: Target,
    progress: Callable[[int, int], None] | None = None,
) -> GlmForCausalLM:
    """GlmForCausalLM with the weights of ``folder``; each tensor goes from its file to its place
    and type, in the order of the files."""
    from torch import nn

    model = native_model(folder, config, target.quantization)
    with ExitStack() as stack:
        if config.seed is not None:
            shapes = expected_shapes(config)
            getters = random_tensors(shapes, config.seed, target.device, target.dtype)
        else:
            getters = open_tensors(weight_files(folder), stack)
            check_names(folder, set(getters), set(expected_shapes(config)))
            check_shapes(folder, config, getters)
        total = len(getters)
        for done, name in enumerate(list(getters), start=1):
            tensor = getters.pop(name)()
            if name not in IGNORED:
                path, _, attribute = native_name(name).rpartition(".")
                owner = model.get_submodule(path)
                for own, placed in target.place(owner, attribute, tensor).items():
                    parameter = nn.Parameter(placed.contiguous(), requires_grad=False)
                    setattr(owner, own, parameter)
            if progress is not None:
                progress(done, total)
    # buffers are not in the checkpoint: the rotary table is computed anew, in float32
    model.model.rotary_emb = type(model.model.rotary_emb)(config.transformers()).to(target.device)
    left = [name for name, p in [*model.named_parameters(), *model.named_buffers()] if p.is_meta]
    if left:
        raise RuntimeError(f"left without a value: {left}")
    loaded: GlmForCausalLM = model.eval()
    return loaded


def fingerprint(folder: Path, config: ChatGLM2Config) -> str:
    """A hash that is equal for equal weights in any file layout or wider float type.

    It samples the norms and biases, and the largest weight of some rows of every query_key_value as
    the scale that int4 gives the row: a base and its published int4 version count as one. An int8
    version doesn't, because int4 scales don't follow from its own.
    """
    import torch

    shape = [getattr(config, name) for name in (*REQUIRED, *OPTIONAL)]
    digest = hashlib.sha256(repr(shape).encode())
    if config.seed is not None:
        digest.update(f"random weights, seed {config.seed}".encode())
        return digest.hexdigest()
    with ExitStack() as stack:
        getters = open_tensors(weight_files(folder), stack)
        check_names(folder, set(getters), set(expected_shapes(config)))
        for name in sorted(expected_shapes(config)):
            if "layernorm" in name or "query_key_value.bias" in name:
                sample = getters[name]()
            elif name.endswith("query_key_value.weight_scale"):
                sample = getters[name]()[:FINGERPRINT_ROWS]
            elif name.endswith("query_key_value.weight") and not config.quantization_bit:
                _, sample = ptkit.quantize_rows(getters[name]()[:FINGERPRINT_ROWS], 4)
            else:
                continue
            digest.update(sample.to(torch.float16).numpy().tobytes())
    return digest.hexdigest()
