"""Which of the published models a folder holds, where their code differs: the prompt, long
positions.

ChatGLM2 (and CodeGeeX2) and ChatGLM3 have the same tensors and the same ``model_type``. What tells
them apart is what stands beside the weights; it is read as text, and never executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ptkit
from ptkit_chatglm2.config import ChatGLM2Config

Prompt = Literal["chatglm2", "chatglm3"]
Scaling = Literal["none", "positions", "base"]

ROLE = "<|user|>"  # a special token of ChatGLM3 that ChatGLM2 doesn't have
NAMES: dict[str, Prompt] = {
    "chatglm2": "chatglm2",
    "codegeex2": "chatglm2",
    "chatglm3": "chatglm3",
}
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_CODE = "tokenization_chatglm.py"
MODEL_CODE = "modeling_chatglm.py"
READ_AT_MOST = 2**20  # bytes of such a file


@dataclass(frozen=True)
class Evidence:
    """A file that says what the model is, and how it says it."""

    prompt: Prompt
    where: str


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(READ_AT_MOST).decode("utf-8", "replace")
    except OSError:
        return ""


def _named(text: str, where: str) -> Iterator[Evidence]:
    for name, prompt in NAMES.items():
        if name in text.casefold():
            yield Evidence(prompt, f"{where} names {name}")


def evidence(folder: Path, config: ChatGLM2Config) -> list[Evidence]:
    """What the files of a model folder say about it."""
    found = list(_named(config.name, "config.json"))
    for file in TOKENIZER_FILES:
        text = _text(folder / file)
        if ROLE in text:
            found.append(Evidence("chatglm3", f"{file} has {ROLE}"))
        else:
            found += _named(text, file)
    code = _text(folder / TOKENIZER_CODE)
    if ROLE in code:
        found.append(Evidence("chatglm3", f"{TOKENIZER_CODE} has {ROLE}"))
    elif code:
        found.append(Evidence("chatglm2", f"{TOKENIZER_CODE} has no {ROLE}"))
    return found


def decide_prompt(
    folder: Path, config: ChatGLM2Config, setting: Literal["auto", "chatglm2", "chatglm3"]
) -> tuple[Prompt, str]:
    """The prompt format, and why. Raises `ptkit.CheckpointError` if the files disagree."""
    if setting != "auto":
        return setting, "backbone.prompt says so"
    found = evidence(folder, config)
    first = {one.prompt: one.where for one in reversed(found)}
    if len(first) > 1:
        reasons = ", ".join(f"{where} ({prompt})" for prompt, where in sorted(first.items()))
        raise ptkit.CheckpointError(
            f"{folder}: can't tell ChatGLM2 from ChatGLM3: {reasons}; "
            'set backbone.prompt = "chatglm2" or "chatglm3"'
        )
    if not found:
        return "chatglm2", "no file names ChatGLM3 or has its special tokens"
    return found[0].prompt, found[0].where


def decide_scaling(
    folder: Path, config: ChatGLM2Config, setting: Literal["auto", "positions", "base"]
) -> tuple[Scaling, str]:
    """What ``rope_ratio`` does, and why: ChatGLM2 divides positions by it, ChatGLM3 multiplies the
    base of the rotary embedding. Raises `ptkit.CheckpointError` if nothing says which."""
    if config.rope_ratio == 1:
        return "none", "rope_ratio is 1"
    if setting != "auto":
        return setting, "backbone.rope_scaling says so"
    code = _text(folder / MODEL_CODE)
    divides = re.search(r"/\s*self\.rope_ratio", code) is not None
    multiplies = re.search(r"base\s*\*=?\s*self\.rope_ratio", code) is not None
    if divides != multiplies:
        return ("positions" if divides else "base"), f"{MODEL_CODE} does so"
    found = evidence(folder, config)
    if len({one.prompt for one in found}) == 1:
        rule: Scaling = "positions" if found[0].prompt == "chatglm2" else "base"
        return rule, found[0].where
    raise ptkit.CheckpointError(
        f"{folder / 'config.json'}: rope_ratio = {config.rope_ratio:g} divides positions in "
        "ChatGLM2 and multiplies the base in ChatGLM3, and nothing here tells which this is; "
        'set backbone.rope_scaling = "positions" or "base"'
    )
