"""Models of transformers for ptkit: the backbones ``encoder`` and ``causal-lm``, and ``hub:…``."""

from __future__ import annotations

from pathlib import Path

import ptkit


@ptkit.hookimpl
def ptkit_register_backbones() -> list[type[ptkit.Backbone]]:
    from ptkit_transformers.backbone import CausalLM, Encoder

    return [Encoder, CausalLM]


@ptkit.hookimpl
def ptkit_resolve_source(source: str) -> Path | None:
    """``hub:owner/name`` or ``hub:owner/name@revision`` is a model of the Hugging Face hub."""
    if not source.startswith("hub:"):
        return None
    from ptkit_transformers.hub import fetch

    return fetch(source)
