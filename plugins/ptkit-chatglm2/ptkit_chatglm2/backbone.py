"""The backbone ``chatglm2``: a folder in the published layout as transformers' native GLM."""

from __future__ import annotations

from functools import cached_property

import ptkit
from ptkit_chatglm2.config import ChatGLM2Config, read_config
from ptkit_chatglm2.tokenizer import ChatGLM2Tokenizer


class ChatGLM2(ptkit.Backbone):
    """ChatGLM2 in the published layout: config.json, tokenizer.model, .bin or safetensors
    weights."""

    name = "chatglm2"

    class Settings(ptkit.Backbone.Settings):
        pass

    settings: Settings

    @cached_property
    def config(self) -> ChatGLM2Config:
        return read_config(self.settings.source.path)

    @property
    def geometry(self) -> ptkit.Geometry:
        return self.config.geometry()

    @cached_property
    def tokenizer(self) -> ptkit.Tokenizer:
        path = self.settings.source.path / "tokenizer.model"
        tokenizer = ChatGLM2Tokenizer(path)
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

    def load(self, device: str, dtype: str) -> ptkit.LoadedBackbone:
        import torch

        from ptkit_chatglm2.weights import load_native

        model = load_native(self.settings.source.path, self.config, device, getattr(torch, dtype))
        body = model.model
        return ptkit.LoadedBackbone(
            body=body, attentions=[layer.self_attn for layer in body.layers], lm_head=model.lm_head
        )
