"""ChatGLM2 for ptkit: the backbone ``chatglm2``."""

from __future__ import annotations

from pathlib import Path

import ptkit


@ptkit.hookimpl
def ptkit_register_backbones() -> list[type[ptkit.Backbone]]:
    from ptkit_chatglm2.backbone import ChatGLM2

    return [ChatGLM2]


@ptkit.hookimpl
def ptkit_resolve_source(source: str) -> Path | None:
    """``random:chatglm2-6b`` is a model of that shape with random weights, to measure with.

    ``random:chatglm2-tiny`` is one that runs anywhere. Raises `ptkit.PtkitError` for another
    ``random:chatglm…``.
    """
    from ptkit_chatglm2.random_weights import resolve

    return resolve(source)


@ptkit.hookimpl
def ptkit_register_adapter_formats() -> list[type[ptkit.AdapterFormat]]:
    from ptkit_chatglm2.published import PublishedPrefix

    return [PublishedPrefix]


@ptkit.hookimpl
def ptkit_recipe_from_script(text: str, name: str) -> str | None:
    from ptkit_chatglm2.scripts import recipe_from_script

    return recipe_from_script(text, name)
