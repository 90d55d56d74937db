"""ChatGLM2 for ptkit: the backbone ``chatglm2``."""

from __future__ import annotations

import ptkit


@ptkit.hookimpl
def ptkit_register_backbones() -> list[type[ptkit.Backbone]]:
    from ptkit_chatglm2.backbone import ChatGLM2

    return [ChatGLM2]
