"""Where control tokens stand around one text or two, from ``post_processor`` in tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ptkit

TEXTS = ("A", "B")


@dataclass(frozen=True, slots=True)
class Part:
    """A text, "A" or "B", or control tokens with their names; all of one token type."""

    text: str | None
    ids: tuple[int, ...]
    names: tuple[str, ...]
    type: int


@dataclass(frozen=True, slots=True)
class Template:
    """What a single text and a pair of texts become."""

    single: tuple[Part, ...]
    pair: tuple[Part, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(i for part in (*self.single, *self.pair) for i in part.ids)

    @property
    def start(self) -> tuple[int, ...]:
        """The control tokens before a single text."""
        place = next(i for i, part in enumerate(self.single) if part.text is not None)
        return tuple(i for part in self.single[:place] for i in part.ids)

    @property
    def end(self) -> tuple[int, ...]:
        """The control tokens behind a single text."""
        place = next(i for i, part in enumerate(self.single) if part.text is not None)
        return tuple(i for part in self.single[place + 1 :] for i in part.ids)

    def join(
        self, first: Sequence[int], second: Sequence[int] | None, *, segments: bool
    ) -> ptkit.Joined:
        """Texts with their control tokens. Example ([CLS] = 2, [SEP] = 3, texts 7 8 and 9)::

        tokens (2, 7, 8, 3, 9, 3)   token_types (0, 0, 0, 0, 1, 1)   first 1   second 4
        """
        tokens: list[int] = []
        types: list[int] = []
        starts = {}
        texts = {"A": first, "B": () if second is None else second}
        for part in self.single if second is None else self.pair:
            ids = part.ids
            if part.text is not None:
                starts[part.text] = len(tokens)
                ids = tuple(texts[part.text])
            tokens += ids
            types += [part.type] * len(ids)
        behind = starts["A"] + len(first)
        return ptkit.Joined(
            tuple(tokens), tuple(types) if segments else (), starts["A"], starts.get("B", behind)
        )


_PLAIN = Template(
    (Part("A", (), (), 0),),
    (Part("A", (), (), 0), Part("B", (), (), 1)),
)


def control_names(template: Template) -> set[str]:
    """The names of the control tokens of a template."""
    return {name for part in (*template.single, *template.pair) for name in part.names}


def read_template(processor: Any, path: Path) -> Template:
    """The template of a post-processor; without one, texts stand alone.

    Raises `ptkit.CheckpointError` for one that is damaged or of an unknown kind.
    """
    if not isinstance(processor, Mapping):
        return _PLAIN
    kind = processor.get("type")
    try:
        if kind == "Sequence":
            found = [read_template(inner, path) for inner in processor["processors"]]
            return next((template for template in found if template != _PLAIN), _PLAIN)
        if kind == "ByteLevel":
            return _PLAIN
        if kind == "TemplateProcessing":
            single, pair = (_parts(processor, key) for key in ("single", "pair"))
            return Template(single, pair)
        if kind in ("BertProcessing", "RobertaProcessing"):
            return _two_marks(processor, twice=kind == "RobertaProcessing")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ptkit.CheckpointError(
            f"{path}: post_processor is damaged ({type(error).__name__}: {error}); save the "
            "tokenizer again with transformers"
        ) from None
    raise ptkit.CheckpointError(
        f"{path}: post_processor of type {kind!r} is not known; known: BertProcessing, ByteLevel, "
        "RobertaProcessing, Sequence, TemplateProcessing"
    )


def _parts(processor: Mapping[str, Any], key: str) -> tuple[Part, ...]:
    parts = []
    for entry in processor[key]:
        (what, value), *_ = entry.items()
        if what == "Sequence":
            parts.append(Part(value["id"], (), (), value["type_id"]))
        else:
            special = processor["special_tokens"][value["id"]]
            ids, names = tuple(special["ids"]), tuple(special["tokens"])
            parts.append(Part(None, ids, names, value["type_id"]))
    wanted = TEXTS[:1] if key == "single" else TEXTS
    if tuple(part.text for part in parts if part.text is not None) != wanted:
        raise ValueError(f"{key} must hold the texts {', '.join(wanted)}, in this order")
    return tuple(parts)


def _two_marks(processor: Mapping[str, Any], *, twice: bool) -> Template:
    """``cls A sep B sep``; RoBERTa has ``sep`` twice between, and a single token type."""
    marks = {key: tuple(processor[key]) for key in ("cls", "sep")}

    def mark(key: str, kind: int = 0) -> Part:
        name, index = marks[key]
        return Part(None, (int(index),), (str(name),), kind)

    second = 0 if twice else 1
    single = (mark("cls"), Part("A", (), (), 0), mark("sep"))
    between = (mark("sep"),) if twice else ()
    return Template(single, (*single, *between, Part("B", (), (), second), mark("sep", second)))
