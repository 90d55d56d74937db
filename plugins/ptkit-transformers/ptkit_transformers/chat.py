"""Chat templates: the Jinja text that comes with an instruct model, rendered as transformers does.

A template is a file of somebody else: it runs in Jinja's sandbox and sees nothing but texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ptkit

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Turns = Sequence[tuple[str, str]]  # roles, "user" or "assistant", with what they say
FILE = "chat_template.jinja"
TODAY = datetime(2024, 7, 26)
"""The date that a template is told, which is the one that Llama 3.1's takes if nobody tells any: a
prompt with the true date would differ between training and use."""
_SHOWN = 200  # characters of an error


def find_template(
    folder: Path, settings: Mapping[str, Any], gguf: Path | None = None
) -> tuple[Path, str] | None:
    """The file and the text of a model's chat template, None if it has none.

    ``settings``: what tokenizer_config.json holds, or ``gguf``. A file of its own comes first, and
    "default" of several. Raises `ptkit.CheckpointError` for what can't be used.
    """
    path = folder / FILE
    if gguf is None and path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ptkit.CheckpointError(f"{path}: can't be read: {error}") from None
    path = gguf or folder / "tokenizer_config.json"
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = [entry for entry in found if isinstance(entry, dict)]
        templates = {str(entry.get("name")): entry.get("template") for entry in named}
        if "default" not in templates:
            raise ptkit.CheckpointError(
                f"{path}: chat_template has no template of the name default (it has: "
                f'{", ".join(templates)}); set backbone.prompt = "plain" to go without'
            )
        found = templates["default"]
    if found is None:
        return None
    if not isinstance(found, str):
        raise ptkit.CheckpointError(
            f"{path}: chat_template must be a text, got {type(found).__name__}; "
            'set backbone.prompt = "plain" to go without'
        )
    return path, found


class ChatTemplate:
    """A compiled template. ``variables``: the names of control tokens, such as ``bos_token``.

    Raises `ptkit.CheckpointError` for a text that is no template, and for one that fails.
    """

    def __init__(self, source: Path, text: str, variables: Mapping[str, str]) -> None:
        self.source, self.text = source, text
        self._variables = dict(variables)
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(text)
        except Exception as error:  # Jinja's, and those of Python's own compiler
            raise self._failure(error) from None

    def render(self, turns: Turns, *, answer: bool = True) -> str:
        """The text of a conversation; ``answer``: up to where the model is to answer.

        Thinking is switched off where a template can do so.
        """
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=answer,
                enable_thinking=False,
                **self._variables,
            )
        except Exception as error:  # a template can raise whatever Python can
            raise self._failure(error) from None

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    @cached_property
    def literals(self) -> str:
        """All texts that the template itself holds, one behind the other with a null between."""
        from jinja2 import nodes

        tree = self._environment.parse(self.text)
        texts = [node.data for node in tree.find_all(nodes.TemplateData)]
        constants = [node.value for node in tree.find_all(nodes.Const)]
        return "\0".join([*texts, *(value for value in constants if isinstance(value, str))])

    def _failure(self, error: Exception) -> ptkit.CheckpointError:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
        return ptkit.CheckpointError(
            f"{self.source}: the chat template fails ({reason}); set backbone.prompt = "
            '"plain" to go without it'
        )


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers has it, apart from the date."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError, TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}`` marks what the model says; for a prompt it changes nothing."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Names(Namespace):
        """Jinja's object to keep values in, which must not pose as one with special methods."""

        def __init__(self, /, *args: Any, **values: Any) -> None:
            super().__init__()
            for name, value in dict(*args, **values).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a namespace can't hold {name!r}")
            super().__setitem__(name, value)

    def make_dict(*args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fail(message: str) -> None:
        raise TemplateError(message)

    def as_json(value: Any, **options: Any) -> str:  # Jinja's own escapes what HTML needs
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = as_json
    environment.globals |= {
        "dict": make_dict,  # the type itself would show its methods
        "namespace": Names,
        "raise_exception": fail,
        "strftime_now": TODAY.strftime,
    }
    return environment
