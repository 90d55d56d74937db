"""The backbones ``encoder`` and ``causal-lm``: a folder of any transformers model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import ptkit
from ptkit_transformers.chat import ChatTemplate, find_template
from ptkit_transformers.chat_tokenizer import ChatTokenizer
from ptkit_transformers.config import ModelConfig, read_config, read_json
from ptkit_transformers.families import FAMILIES
from ptkit_transformers.gguf import gguf_tensors
from ptkit_transformers.tokenizer import (
    NAMED,
    FastTokenizer,
    TokenizerFiles,
    read_files,
    token_name,
)
from ptkit_transformers.weights import Stored, fingerprint, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TransformersBackbone(ptkit.Backbone):
    """What both kinds share. Reading the folder's small files needs neither torch nor
    transformers."""

    causal: ClassVar[bool]

    class Settings(ptkit.Backbone.Settings):
        quantization: ptkit.Quantization = "none"
        """Round the linears of every layer while loading."""

    settings: Settings

    @classmethod
    def recognises(cls, source: Path) -> bool:
        """A folder whose model_type is one of the tested families of this kind, or a GGUF file."""
        if source.suffix == ".gguf":
            return cls.causal
        try:
            kind = str(read_json(source / "config.json").get("model_type"))
        except ptkit.CheckpointError:
            return False
        return kind in FAMILIES and FAMILIES[kind].causal == cls.causal

    @cached_property
    def config(self) -> ModelConfig:
        """Raises `ptkit.CheckpointError` for what can't be used."""
        return read_config(self.settings.source.path, causal=self.causal)

    @cached_property
    def _tensors(self) -> dict[str, Stored]:
        """The stored tensors that the model uses, under the names that its body has for them."""
        prefix, causal = f"{self.config.family.prefix}.", self.config.family.causal
        gguf = self.config.gguf
        stored = stored_tensors(self.config.folder) if gguf is None else gguf_tensors(gguf)
        prefixed = any(name.startswith(prefix) for name in stored)
        found = {}
        for name, tensor in stored.items():
            inner = name.removeprefix(prefix)
            head = inner == name if prefixed else inner.split(".")[0] in _HEADS
            tied = causal and name == "lm_head.weight" and self._tied
            buffer = name.endswith(("position_ids", "inv_freq"))
            if not (buffer or tied or (head and not causal) or inner.startswith("pooler.")):
                found[inner] = tensor
        return found

    @property
    def _tied(self) -> bool:
        """Whether the LM head is the table of embeddings."""
        by_default = self.config.model_type.startswith(("gemma", "smollm"))
        return bool(self.config.raw.get("tie_word_embeddings", by_default))

    @cached_property
    def geometry(self) -> ptkit.Geometry:
        return self.config.geometry(sum(tensor.count for tensor in self._tensors.values()))

    @cached_property
    def tokenizer(self) -> ptkit.Tokenizer:
        return FastTokenizer(self.config, self._tokenizer_files)

    @cached_property
    def _tokenizer_files(self) -> TokenizerFiles:
        return read_files(self.config)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self._tensors)

    @property
    def quantization(self) -> str:
        return self.settings.quantization

    @property
    def notes(self) -> Sequence[str]:
        notes = []
        if self.quantization != "none":
            notes.append(f"the linears of every layer are {self.quantization}")
        if self.config.gguf is not None:
            notes.append("the weights of the GGUF file are dequantised while loading")
        if not self.config.known:
            notes.append(
                f"model_type {self.config.model_type!r} is not among the tested families; a probe "
                "decides whether a prefix reaches its layers"
            )
        return notes

    def load(
        self, device: str, dtype: str, progress: Callable[[int, int], None] | None = None
    ) -> ptkit.LoadedBackbone:
        from ptkit_transformers.loading import load_model, repeated_layers

        loaded = self._parts(load_model(self.config, dtype))
        if self.quantization != "none":
            layers = repeated_layers(loaded.body, loaded.attentions[0])
            ptkit.quantize_linears(
                layers, self.quantization, device, source=str(self.settings.source.path)
            )
        for module in (loaded.body, loaded.lm_head):
            if module is not None:
                module.to(device)
        if progress is not None:
            progress(len(self._tensors), len(self._tensors))
        return loaded

    def outline(self) -> ptkit.LoadedBackbone:
        from ptkit_transformers.loading import outline

        loaded = self._parts(outline(self.config))
        rotary = getattr(loaded.body, "rotary_emb", None)
        if rotary is not None:  # computed, not loaded: it has values also here
            loaded.body.rotary_emb = type(rotary)(config=loaded.body.config)
        return loaded

    def _parts(self, model: PreTrainedModel) -> ptkit.LoadedBackbone:
        from ptkit_transformers.loading import attention_modules, lm_head

        body: PreTrainedModel = model.base_model  # type: ignore[assignment]
        return ptkit.LoadedBackbone(
            body,
            attention_modules(self.config, body),
            lm_head(self.config, model) if self.causal else None,
            first_position=self.config.first_position,
            position_table=self.config.family.position_table,
        )


_HEADS = frozenset(
    {
        "classifier",
        "cls",
        "decoder",
        "discriminator_predictions",
        "generator_lm_head",
        "generator_predictions",
        "head",
        "lm_head",
        "pre_classifier",
        "predictions",
        "qa_outputs",
        "sop_classifier",
        "vocab_layer_norm",
        "vocab_projector",
        "vocab_transform",
    }
)


class Encoder(TransformersBackbone):
    """BERT and its likes: a folder with config.json, tokenizer.json and weights, or hub:name."""

    name = "encoder"
    causal = False


class CausalLM(TransformersBackbone):
    """Llama and its likes: a folder with config.json, tokenizer.json and weights, or hub:name."""

    name = "causal-lm"
    causal = True

    class Settings(TransformersBackbone.Settings):
        prompt: Literal["auto", "plain", "chat"] = "auto"
        """How a prompt is laid out: by the model's chat template, or as plain text, a line a turn;
        auto: by the template if the model has one."""

    settings: Settings

    @cached_property
    def _chat(self) -> ChatTemplate | None:
        """The template of its prompts. Raises `ptkit.CheckpointError` for one that can't be used,
        and for none where it must have one."""
        if self.settings.prompt == "plain":
            return None
        files, gguf = self._tokenizer_files, self.config.gguf
        found = find_template(self.config.folder, files.settings, gguf)
        if found is not None:
            names = (*NAMED, "unk_token")
            named = {name: token_name(files.settings.get(name)) for name in names}
            return ChatTemplate(*found, {k: v for k, v in named.items() if v is not None})
        if self.settings.prompt == "chat":
            where = gguf or self.config.folder
            raise ptkit.CheckpointError(
                f'{where}: has no chat template, which backbone.prompt = "chat" needs; '
                'add chat_template.jinja, or set "plain"'
            )
        return None

    @cached_property
    def tokenizer(self) -> ptkit.Tokenizer:
        files = self._tokenizer_files
        if self._chat is None:
            return FastTokenizer(self.config, files)
        return ChatTokenizer(self.config, files, self._chat)

    @property
    def variant(self) -> Mapping[str, str]:
        """The layout of prompts, and which template."""
        if self._chat is None:
            return {"prompt": "plain"}
        return {"prompt": "chat", "chat_template": self._chat.fingerprint}

    @property
    def notes(self) -> Sequence[str]:
        if self._chat is not None:
            return [*super().notes, f"prompt: the model's chat template ({self._chat.source.name})"]
        why = "" if self.settings.prompt == "plain" else "; the model has no chat template"
        return [*super().notes, f"prompt: plain text{why}"]
