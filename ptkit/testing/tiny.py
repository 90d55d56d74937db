"""A backbone of some ten thousand random weights and a tokenizer of words, for tests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ptkit.errors import CheckpointError
from ptkit.models import Backbone, LoadedBackbone, LoadProgress, Tokenizer
from ptkit.records import Geometry
from ptkit.settings import Source, SourcePath

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from ptkit.engine.model import Model

# a Chinese character, a word of anything else, or one punctuation mark
_WORD = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+|[^\w\s]")
_SPECIALS = ("pad", "eos", "start")


class WordTokenizer(Tokenizer):
    """One id a word, a Chinese character or a punctuation mark; the vocabulary never grows.

    Ids 0, 1 and 2 are pad, eos and start. Then come ``words`` in their order, then ``buckets`` ids
    for all other words, each taken by its SHA-256: equal words have equal ids in every process, and
    two words may share one. A word decodes to itself, a bucket to ``⟨its number⟩``, with blanks
    between them.

    >>> tokenizer = WordTokenizer(["red", "shoes"], buckets=2)
    >>> tokenizer.encode("red shoes"), tokenizer.decode([2, 3, 4, 1]), tokenizer.decode([5, 6])
    ([3, 4], 'red shoes', '⟨0⟩ ⟨1⟩')
    """

    pad_id = 0
    eos_id = 1
    start_ids = (2,)

    def __init__(self, words: Iterable[str] = (), *, buckets: int = 61) -> None:
        self._words = list(dict.fromkeys(words))
        self._ids = {word: i for i, word in enumerate(self._words, start=len(_SPECIALS))}
        self._first_bucket = len(_SPECIALS) + len(self._words)
        self.vocab_size = self._first_bucket + buckets
        for word in self._words:
            if not _WORD.fullmatch(word):
                raise ValueError(f"{word!r} is not a single word, character or punctuation mark")
        if buckets < 1:
            raise ValueError(f"buckets must be 1 or more for words outside the list, got {buckets}")

    @property
    def fingerprint(self) -> str:
        text = "\n".join([*self._words, str(self.vocab_size)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _id(self, word: str) -> int:
        known = self._ids.get(word)
        if known is not None:
            return known
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        buckets = self.vocab_size - self._first_bucket
        return self._first_bucket + int.from_bytes(digest[:8], "big") % buckets

    def encode(self, text: str) -> list[int]:
        return self.offsets(text)[0]

    def pieces(self, text: str) -> list[int]:
        return self.encode(text)

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = list(_WORD.finditer(text))
        return [self._id(match[0]) for match in found], [match.span() for match in found]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._word(i) for i in ids if i >= len(_SPECIALS))

    def _word(self, index: int) -> str:
        if index < self._first_bucket:
            return self._words[index - len(_SPECIALS)]
        return f"⟨{index - self._first_bucket}⟩"


class TinyBackbone(Backbone):
    """A random model with two layers: GLM, which is causal, or BERT, which has no LM head.

    ``TinyBackbone()`` is all that is needed; every setting has a default. The weights follow from
    ``seed``, and torch's global random state stays as it is.
    """

    name = "tiny"

    class Settings(Backbone.Settings):
        source: Source = SourcePath("tiny", Path(__file__).parent, named=True)
        """Not read; here because every backbone has it."""
        causal: bool = True
        """GLM with an LM head; false: BERT without one."""
        layers: int = Field(2, ge=1)
        hidden_size: int = Field(32, ge=1)
        heads: int = Field(4, ge=1)
        kv_groups: int = Field(2, ge=1)
        """Key/value heads of GLM; BERT has as many as heads."""
        head_size: int = Field(8, ge=1)
        max_positions: int = Field(512, ge=1)
        words: tuple[str, ...] = ()
        """Words that the tokenizer knows by name, see `WordTokenizer`."""
        buckets: int = Field(61, ge=1)
        """Ids for all other words."""
        seed: int = 0

    settings: Settings

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__(settings or self.Settings())
        shape = self.settings
        if not shape.causal and shape.heads * shape.head_size != shape.hidden_size:
            raise CheckpointError(
                "BERT needs heads x head_size = hidden_size, got "
                f"{shape.heads} x {shape.head_size} and {shape.hidden_size}"
            )

    @cached_property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer(self.settings.words, buckets=self.settings.buckets)

    @property
    def fingerprint(self) -> str:
        settings = self.settings.model_dump_json(exclude={"source", "dtype"})
        return hashlib.sha256(settings.encode()).hexdigest()

    @property
    def _intermediate_size(self) -> int:
        return 2 * self.settings.hidden_size

    @property
    def geometry(self) -> Geometry:
        shape = self.settings
        return Geometry(
            layers=shape.layers,
            heads=shape.heads,
            kv_groups=shape.kv_groups if shape.causal else shape.heads,
            head_size=shape.head_size,
            hidden_size=shape.hidden_size,
            vocab_size=self.tokenizer.vocab_size,
            max_positions=shape.max_positions,
            parameters=self._glm_parameters() if shape.causal else self._bert_parameters(),
            causal=shape.causal,
            ffn_size=self._intermediate_size,
        )

    def _glm_parameters(self) -> int:
        shape, h, i = self.settings, self.settings.hidden_size, self._intermediate_size
        q, kv = shape.heads * shape.head_size, shape.kv_groups * shape.head_size
        layer = (h + 1) * (q + 2 * kv) + q * h + 3 * h * i + 2 * h
        return 2 * self.tokenizer.vocab_size * h + shape.layers * layer + h

    def _bert_parameters(self) -> int:
        shape, h, i = self.settings, self.settings.hidden_size, self._intermediate_size
        layer = 4 * (h + 1) * h + (h + 1) * i + (i + 1) * h + 4 * h
        embeddings = (self.tokenizer.vocab_size + shape.max_positions + 2) * h + 2 * h
        return embeddings + shape.layers * layer

    def load(self, device: str, dtype: str, progress: LoadProgress | None = None) -> LoadedBackbone:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            body, attentions, lm_head = self._glm() if self.settings.causal else self._bert()
        weights: torch.dtype = getattr(torch, dtype)
        for module in (body, lm_head):
            if module is not None:
                module.to(device=device, dtype=weights).eval()
        return LoadedBackbone(body, attentions, lm_head, position_table=not self.settings.causal)

    def _glm(self) -> tuple[PreTrainedModel, list[nn.Module], nn.Module | None]:
        from transformers import GlmConfig, GlmForCausalLM

        shape, tokenizer = self.settings, self.tokenizer
        model = GlmForCausalLM(
            GlmConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=shape.hidden_size,
                intermediate_size=self._intermediate_size,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_groups,
                head_dim=shape.head_size,
                max_position_embeddings=shape.max_positions,
                pad_token_id=tokenizer.pad_id,
                eos_token_id=tokenizer.eos_id,
                initializer_range=0.2,  # at the usual 0.02 so narrow a model ignores its input
            )
        )
        return model.model, [layer.self_attn for layer in model.model.layers], model.lm_head

    def _bert(self) -> tuple[PreTrainedModel, list[nn.Module], nn.Module | None]:
        from transformers import BertConfig, BertModel

        shape, tokenizer = self.settings, self.tokenizer
        body = BertModel(
            BertConfig(
                vocab_size=tokenizer.vocab_size,
                hidden_size=shape.hidden_size,
                intermediate_size=self._intermediate_size,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                max_position_embeddings=shape.max_positions,
                pad_token_id=tokenizer.pad_id,
                initializer_range=0.2,
            ),
            add_pooling_layer=False,
        )
        layers: Any = body.encoder.layer
        return body, [layer.attention.self for layer in layers], None


def tiny_model(
    backbone: Backbone | None = None, *, layout: Literal["packed", "padded"] = "packed"
) -> Model:
    """The frozen model of ``backbone`` (default: `TinyBackbone`) on the CPU in float32.

    ``layout``: how it lays out the rows that it is given, see `ptkit.Model`.
    """
    from ptkit.engine.model import Model

    backbone = backbone or TinyBackbone()
    tokenizer = backbone.tokenizer
    return Model(
        backbone.load("cpu", "float32"),
        backbone.geometry,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        layout=layout,
    )
