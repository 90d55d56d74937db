"""The frozen models that a recipe can name: tokenizers and backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ptkit.records import Geometry, Joined, PromptParts
from ptkit.settings import Component, Source
from ptkit.settings import Settings as BaseSettings

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Tokenizer(ABC):
    """Text to ids and back, without torch. Text never becomes a control token."""

    vocab_size: int
    pad_id: int
    eos_id: int
    start_ids: tuple[int, ...] = ()
    """What every sequence begins with."""
    stop_ids: tuple[int, ...] = ()
    """What ends an answer besides ``eos_id``, such as the mark of the next speaker."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for tokenizers that give equal ids; stored in adapters."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text on its own, without specials."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text; override it where many at once are faster."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def pieces(self, text: str) -> list[int]:
        """The ids of a text that continues another: no dummy blank or other mark of a beginning."""

    @abstractmethod
    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """``encode(text)`` and, for each id, the half-open span of characters that it covers."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; specials decode to nothing."""

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Joined:
        """The ids of one text, or of two, with the specials that the backbone was trained with.

        Default: start ids, the first text, and behind a line break the second. Override it for
        encoders, which mark where texts end.
        """
        between = [] if second is None else self.pieces("\n")
        begin, behind = len(self.start_ids), len(self.start_ids) + len(first) + len(between)
        tokens = (*self.start_ids, *first, *between, *(second or ()))
        return Joined(tokens, (), begin, behind)

    def prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> PromptParts:
        """The query in the model's prompt template. Default: earlier turns and the query, a line
        each."""
        before = "".join(f"{q}\n{r}\n" for q, r in history)
        return PromptParts(before, query, "\n")

    def encode_prompts(self, prompts: Sequence[PromptParts]) -> list[list[int]]:
        """The ids of whole prompts, start ids included; override it for control tokens inside."""
        texts = self.encode_batch([prompt.text for prompt in prompts])
        return [[*self.start_ids, *ids] for ids in texts]

    def prompt_offsets(self, prompt: PromptParts) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `encode_prompts` and their spans of ``prompt.text``; (0, 0) for control
        tokens. Override it together with `encode_prompts`."""
        ids, spans = self.offsets(prompt.text)
        return [*self.start_ids, *ids], [(0, 0)] * len(self.start_ids) + spans


LoadProgress = Callable[[int, int], None]

Quantization = Literal["none", "fp8", "int8", "int4", "int4-g64", "int4-g128"]
"""How the frozen linears of a backbone's layers are rounded; `QuantizedLinear` names the classes.

Whole numbers of 8 or 4 bits have a scale a row of the weight, with g64 and g128 one for 64 or 128
of its columns. fp8 rounds what it multiplies by, too, and needs no less memory than bfloat16.
"""


@dataclass
class LoadedBackbone:
    """A frozen model, as `Backbone.load` hands it to the engine.

    ``body``: a transformers model whose layers call transformers' attention interface, each once a
    pass; called with input_ids, position_ids and use_cache=False, it returns an object with
    ``last_hidden_state``. Decoding keeps keys and values in a cache of its own.
    ``attentions``: its l attention modules, first layer first; each gets its layer's prefix.
    ``lm_head``: hidden states to logits, or None for models without one.
    ``first_position``: the position id of a row's first token.
    ``position_table``: whether positions are looked up in a learned table, which has none before
    the first.
    """

    body: PreTrainedModel
    attentions: list[nn.Module]
    lm_head: nn.Module | None = None
    first_position: int = 0
    position_table: bool = False


class Backbone(Component):
    """A frozen pretrained model. Only `load` and `fingerprint` may import torch; the rest reads
    small files."""

    class Settings(BaseSettings):
        source: Source
        """The folder of the model, or the name of one that a plugin ships."""
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        """The type of the frozen weights; auto: bfloat16 on a GPU, float32 on a CPU."""
        embeddings: Literal["device", "host"] = "device"
        """Where the table of token embeddings is; on the host it takes no memory of a GPU."""

    settings: Settings

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Read from the model's configuration, without its weights."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, read from small files; the same object every time, as making it costs."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Tells one set of weights from another; stored in adapters. Must not read all weights."""

    @property
    def variant(self) -> Mapping[str, str]:
        """What else decides what the weights compute, such as {"rope": "float32"}, defaults
        included.

        Stored in adapters, which are refused where a value differs.
        """
        return {}

    @property
    def quantization(self) -> str:
        """How the frozen weights are rounded; an adapter made with another one gives a warning."""
        return "none"

    @property
    def parameters_on_host(self) -> int:
        """How many of the model's parameters a GPU doesn't hold."""
        shape = self.geometry
        on_host = self.settings.embeddings == "host"
        return shape.vocab_size * shape.hidden_size if on_host else 0

    @property
    def notes(self) -> Sequence[str]:
        """What was decided from the model's files, a line each; a run shows them."""
        return ()

    @abstractmethod
    def load(self, device: str, dtype: str, progress: LoadProgress | None = None) -> LoadedBackbone:
        """The model in eval mode on ``device`` with ``dtype`` weights ("float32", "bfloat16",
        "float16"). ``progress`` may be called with the tensors done and their number.

        Raises `CheckpointError` for weights that are missing, unexpected or of another shape.
        """

    @classmethod
    def recognises(cls, source: Path) -> bool:
        """Whether the model at ``source`` is of this kind, as its small files tell.

        Asked where nobody names a kind, such as in ``ptkit.load("nano")``; it raises nothing.
        """
        return False

    def outline(self) -> LoadedBackbone:
        """The modules of `load` with any weights, for what the configuration decides, such as the
        rotary embedding; a backbone that can make them without reading its weights overrides it."""
        return self.load("cpu", "float32")
