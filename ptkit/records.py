"""Frozen dataclasses that cross the seams between formats, heads, metrics and the engine.

Formats make `Record` objects, heads turn each into `Row` objects (encoded sequences), and metrics
see `Pair` objects. A third party adds a task by subclassing `Record`; nothing here is a closed
list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

IGNORE = -100
"""A label that nothing is trained on; torch's and transformers' customary value."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record came from: ``file`` as the user named it and the 1-based ``line``."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One example of a data file, before any tokenizer. ``weight`` scales its share of the loss.

    Reports show ``prompt``, a field or property of its subclasses, if there is one.
    """

    origin: Origin
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class GenerationRecord(Record):
    """A prompt and the text that should follow it.

    ``response`` is None for rows that are only to be answered. ``history`` holds earlier turns,
    oldest first, as (prompt, response).
    """

    prompt: str
    response: str | None = None
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelledRecord(Record):
    """A text, or two, and what it is labelled with.

    ``label``: a name, names (any number of them, none included), or a number; None for rows that
    are only to be predicted.
    """

    text: str
    second: str | None = None
    label: str | tuple[str, ...] | float | None = None

    @property
    def prompt(self) -> str:
        return self.text if self.second is None else f"{self.text}\n{self.second}"


@dataclass(frozen=True, kw_only=True)
class ChoiceRecord(Record):
    """A question, its possible answers (at least two), and the index of the right one, if known."""

    question: str
    choices: tuple[str, ...]
    answer: int | None = None

    @property
    def prompt(self) -> str:
        return "\n".join((self.question, *self.choices))


@dataclass(frozen=True, kw_only=True)
class TaggedRecord(Record):
    """The words of a text and a tag for each.

    ``words``: half-open spans of characters of ``text``, in order, none empty; for Chinese mostly
    one a character. ``tags``: one a word; tags of entities are BIO (B-x begins one, I-x continues
    it, O is outside), whatever scheme the file has. None for rows that are only to be predicted.
    """

    text: str
    words: tuple[tuple[int, int], ...]
    tags: tuple[str, ...] | None = None

    @property
    def prompt(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of a context: its text, and the character that it begins at.

    ``start`` is -1 for an answer that is not in the context letter for letter: it counts where
    answers are compared, and nothing is trained on it.
    """

    text: str
    start: int


@dataclass(frozen=True, kw_only=True)
class ExtractionRecord(Record):
    """A question and the context that its answer stands in.

    ``answers``: every piece of the context that is right; () where the context has none; None for
    rows that are only to be predicted. ``key``: how the data set names the question.
    """

    key: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None = None

    @property
    def prompt(self) -> str:
        return f"{self.question}\n{self.context}"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that a format could not turn into a record; ``message`` says what, got, and what to
    do."""

    origin: Origin
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.message}"


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded sequence of a record.

    ``tokens``: the input ids as the backbone sees them, specials included.
    ``labels``: what the head trains on, ints whose meaning is the head's. Heads that train on
    tokens give one label a token, aligned with the token that it belongs to, `IGNORE` where nothing
    is trained on.
    ``token_types``: segment ids for backbones that have them, else empty.
    ``places``: which tokens the head reads, ints whose meaning is the head's, such as the index of
    every word's first token.
    ``cut``: how many tokens of the record did not fit and were left out.
    ``cut_targets``: how many of those were to be trained on, such as the end of an answer.

    Worked example (generation, ids of a toy vocabulary)::

        prompt 7 8 9, answer 4 5, eos 2
        tokens = (7, 8, 9, 4, 5, 2)
        labels = (-100, -100, -100, 4, 5, 2)
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...] = ()
    token_types: tuple[int, ...] = ()
    cut: int = 0
    cut_targets: int = 0
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A `Row` that knows its record: ``record`` is the record's index in its data set, ``part``
    counts its rows."""

    row: Row
    record: int
    part: int = 0
    weight: float = 1.0

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.row.tokens

    @property
    def labels(self) -> tuple[int, ...]:
        return self.row.labels

    @property
    def places(self) -> tuple[int, ...]:
        return self.row.places


@dataclass(frozen=True, slots=True)
class Pair:
    """What a metric scores: a prediction beside the reference, and the record both belong to."""

    record: Record
    prediction: Any
    reference: Any


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A prompt as the backbone's template lays it out; only ``query`` may be shortened.

    The text is ``before + query + after``; ``before`` ends and ``after`` begins with template text.
    """

    before: str
    query: str
    after: str

    @property
    def text(self) -> str:
        return self.before + self.query + self.after


@dataclass(frozen=True, slots=True)
class Joined:
    """One or two texts as the backbone takes them, specials included.

    ``tokens``: the ids; ``token_types``: a segment id for each, empty for backbones without them.
    ``first``, ``second``: the index in ``tokens`` at which the ids of either text begin.
    """

    tokens: tuple[int, ...]
    token_types: tuple[int, ...]
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of a backbone as its prefix needs it.

    ``layers`` l, ``kv_groups`` g (key/value heads), ``head_size`` d, ``hidden_size`` h,
    ``vocab_size`` v;
    ``parameters`` counts all frozen weights. ``causal``: whether a token sees only earlier ones.
    ``ffn_size`` f, the width inside a layer's MLP, is for memory estimates only; None: they guess
    it.
    """

    layers: int
    heads: int
    kv_groups: int
    head_size: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    parameters: int
    causal: bool = True
    ffn_size: int | None = None

    def prefix_parameters(self, length: int) -> int:
        """Trainable numbers of a flat prefix: length x layers x 2 x groups x head size."""
        return length * self.layers * 2 * self.kv_groups * self.head_size


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """What a head may know when it builds its trainable module.

    ``rows``: in a run the encoded training rows, for what is computed from them, such as the class
    weights of a loss; they can be gone through again and again. Empty where an adapter is only
    used.
    """

    hidden_size: int
    vocab_size: int
    causal: bool
    seed: int = 0
    rows: Iterable[EncodedRow] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """What bounds the rows of a head, so that ``ptkit check`` can name the setting to change.

    ``source`` and ``target``: the keys of the head's settings that limit the tokens that are read
    and those that are trained on; None if there is no such setting. ``answer``: the tokens that a
    prediction generates at most, 0 if it generates none.
    """

    source: str | None = None
    target: str | None = None
    answer: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How generation picks the next token; ``temperature`` 0 is greedy.

    ``top_p`` keeps the smallest set of tokens whose probabilities reach it, ``top_k`` (0: all) the
    k best. The draws of a row depend on ``seed`` and the row alone, not on how rows are batched.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What hooks and trackers may know of a run."""

    folder: str
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def origins(records: Sequence[Record]) -> str:
    """The origins of a few records, for messages: ``a.json:3, a.json:9``."""
    return ", ".join(str(r.origin) for r in records)
