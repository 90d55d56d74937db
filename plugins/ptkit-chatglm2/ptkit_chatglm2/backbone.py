"""The backbone ``chatglm2``: a folder in the published layout as transformers' native GLM."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import ptkit
from ptkit_chatglm2.characters import CharacterTokenizer
from ptkit_chatglm2.config import ChatGLM2Config, read_config
from ptkit_chatglm2.tokenizer import ChatGLM2Tokenizer, ChatGLM3Tokenizer
from ptkit_chatglm2.variants import Prompt, Scaling, decide_prompt, decide_scaling

if TYPE_CHECKING:
    from torch import nn


class ChatGLM2(ptkit.Backbone):
    """ChatGLM2 in the published layout: config.json, tokenizer.model, .bin or safetensors
    weights. ChatGLM3-6B and CodeGeeX2 are laid out alike."""

    name = "chatglm2"

    class Settings(ptkit.Backbone.Settings):
        quantization: ptkit.Quantization = "none"
        """Round the linears of every layer while loading; int4 as the published int4 model is
        made."""
        prompt: Literal["auto", "chatglm2", "chatglm3"] = "auto"
        """Whose prompt format; auto: as the files of the model say."""
        rope: Literal["float32", "published-half"] = "float32"
        """Precision of the rotary embedding; published-half: that of the published float16 code."""
        rope_scaling: Literal["auto", "positions", "base"] = "auto"
        """What rope_ratio in config.json scales; auto: as the files of the model say."""

    settings: Settings

    @cached_property
    def config(self) -> ChatGLM2Config:
        """Raises `ptkit.CheckpointError` for what can't be used, and where a setting
        contradicts."""
        config = read_config(self.settings.source.path)
        own, chosen = config.quantization, self.settings.quantization
        if own != "none" and chosen not in ("none", own):
            raise ptkit.CheckpointError(
                f"{self.settings.source.path}: is quantised to {own} (quantization_bit in "
                f'config.json), so backbone.quantization can\'t be "{chosen}"; remove it'
            )
        return config

    @cached_property
    def geometry(self) -> ptkit.Geometry:
        _ = self._scaling  # what can't be decided is found before anything is loaded
        return self.config.geometry()

    @cached_property
    def _prompt(self) -> tuple[Prompt, str]:
        return decide_prompt(self.settings.source.path, self.config, self.settings.prompt)

    @cached_property
    def _scaling(self) -> tuple[Scaling, str]:
        return decide_scaling(self.settings.source.path, self.config, self.settings.rope_scaling)

    @cached_property
    def tokenizer(self) -> ptkit.Tokenizer:
        path = self.settings.source.path / "tokenizer.model"
        if self.config.seed is not None and self._prompt[0] == "chatglm2" and not path.exists():
            config = self.settings.source.path / "config.json"
            return CharacterTokenizer(self.config.padded_vocab_size, config)
        made = ChatGLM3Tokenizer if self._prompt[0] == "chatglm3" else ChatGLM2Tokenizer
        tokenizer = made(path)
        if tokenizer.vocab_size > self.config.padded_vocab_size:
            raise ptkit.CheckpointError(
                f"{path}: has {tokenizer.vocab_size} ids, but padded_vocab_size in config.json is "
                f"{self.config.padded_vocab_size}; they belong to different models"
            )
        return tokenizer

    @cached_property
    def fingerprint(self) -> str:
        from ptkit_chatglm2.weights import fingerprint

        return fingerprint(self.settings.source.path, self.config)

    @property
    def variant(self) -> Mapping[str, str]:
        return {
            "prompt": self._prompt[0],
            "rope": self.settings.rope,
            "rope_scaling": self._scaling[0],
        }

    @property
    def quantization(self) -> str:
        own = self.config.quantization
        return self.settings.quantization if own == "none" else own

    @property
    def notes(self) -> Sequence[str]:
        prompt, reason = self._prompt
        names = {"chatglm2": "ChatGLM2", "chatglm3": "ChatGLM3"}
        notes = [f"prompt: {names[prompt]}'s format ({reason})"]
        if self.config.seed is not None:
            notes.append(
                f"weights: random, from seed {self.config.seed}; good for measuring speed and "
                "memory, and for nothing else"
            )
        scaling, reason = self._scaling
        ratio = f"{self.config.rope_ratio:g}"
        if scaling == "positions":
            notes.append(f"positions are divided by rope_ratio = {ratio} ({reason})")
        elif scaling == "base":
            notes.append(f"the rotary base is multiplied by rope_ratio = {ratio} ({reason})")
        if self.settings.rope == "published-half":
            notes.append("the rotary embedding is in half precision, as in the published code")
        if self.quantization != "none":
            how = "while loading" if self.config.quantization == "none" else "as published"
            notes.append(f"the linears of every layer are {self.quantization}, quantised {how}")
        return notes

    def load(
        self, device: str, dtype: str, progress: Callable[[int, int], None] | None = None
    ) -> ptkit.LoadedBackbone:
        import torch

        from ptkit_chatglm2.weights import Target, load_native

        rotary = self._rotary()
        target = Target(device, getattr(torch, dtype), self.quantization)
        model = load_native(self.settings.source.path, self.config, target, progress)
        body = model.model
        if rotary is not None:
            body.rotary_emb = rotary.to(device)
        return ptkit.LoadedBackbone(
            body=body, attentions=[layer.self_attn for layer in body.layers], lm_head=model.lm_head
        )

    @classmethod
    def recognises(cls, source: Path) -> bool:
        try:
            data = json.loads((source / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(data, dict) and data.get("model_type") == "chatglm"

    def outline(self) -> ptkit.LoadedBackbone:
        import torch
        from transformers import GlmForCausalLM

        config = self.config.transformers()
        with torch.device("meta"):
            model = GlmForCausalLM(config)
        body = model.model
        body.rotary_emb = self._rotary(exact=True) or type(body.rotary_emb)(config)
        return ptkit.LoadedBackbone(body, [layer.self_attn for layer in body.layers], model.lm_head)

    def _rotary(self, *, exact: bool = False) -> nn.Module | None:
        """The rotary embedding that takes the place of transformers' own, if it differs.

        ``exact``: in full precision, whatever the setting; other programs have no other.
        """
        import torch

        from ptkit_chatglm2.rope import PublishedRotary

        scaling, half = self._scaling[0], self.settings.rope == "published-half" and not exact
        if scaling == "none" and not half:
            return None
        # ChatGLM3's code has float32 angles, and rounds cosines and sines only
        half_angles = half and self._prompt[0] == "chatglm2" and scaling != "base"
        return PublishedRotary(
            self.config.kv_channels // 2,
            divisor=self.config.rope_ratio if scaling == "positions" else 1.0,
            factor=self.config.rope_ratio if scaling == "base" else 1.0,
            angles=torch.float16 if half_angles else torch.float32,
            table=torch.float16 if half else torch.float32,
        )
