"""A frozen model with an adapter, ready to use: generate, chat, predict, adapter off and on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ptkit.components import TaskHead
from ptkit.data import Part, encode_part
from ptkit.engine.adapter import Adapter, load_adapter
from ptkit.engine.assembly import Assembly, assemble
from ptkit.engine.evaluate import predict
from ptkit.engine.loading import build_head, load_model
from ptkit.engine.model import Model
from ptkit.engine.stream import TextStream
from ptkit.errors import PtkitError
from ptkit.models import Backbone
from ptkit.records import GenerationRecord, Origin, Record, Sampling
from ptkit.registry import Registry, load_plugins
from ptkit.settings import SourcePath

ANSWER_TOKENS = 256  # where an answer of a base model ends at the latest
History = Sequence[tuple[str, str]]


class Tuned:
    """A model that answers, with its adapter on or off; what `ptkit.load` returns.

    >>> import ptkit
    >>> tuned = ptkit.load("nano", "runs/first/adapter")
    >>> answers = tuned.generate(["类型#裙*颜色#红色", "类型#裤*颜色#白色"])
    >>> len(answers)
    2
    >>> with tuned.adapter_off():  # the same model without the adapter
    ...     untuned = tuned.generate(["类型#裙*颜色#红色"])
    >>> history = [("类型#裙*颜色#红色", answers[0])]
    >>> answer = tuned.chat("类型#裤*颜色#白色", history)

    ``predict`` takes records of any task, such as those that a `DatasetFormat` reads; ``logits``
    looks at a single text.
    """

    def __init__(
        self,
        backbone: Backbone,
        model: Model,
        adapter: Adapter | None,
        head: TaskHead | None,
        module: nn.Module | None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.backbone = backbone
        self.model = model
        self.adapter = adapter
        self.head = head
        self.module = module
        self.warnings = tuple(warnings)  # what may make answers differ from those of the run
        self.enabled = adapter is not None

    @classmethod
    def of(cls, parts: Assembly, adapter: Adapter | None, device: str) -> Tuned:
        """Load the weights of ``parts`` and put the adapter's into them."""
        model = load_model(parts.backbone, device)
        module = None
        if parts.head is not None and adapter is not None:
            module = build_head(parts.head, parts.backbone, model, seed=0)
            adapter.load_head(parts.head, module)
        return cls(parts.backbone, model, adapter, parts.head, module, parts.warnings)

    @property
    def enabled(self) -> bool:
        """Whether the adapter is on; the base model itself never changes."""
        return self.model.prefix is not None

    @enabled.setter
    def enabled(self, on: bool) -> None:
        if on and self.adapter is None:
            raise PtkitError("there is no adapter to switch on: none was loaded")
        prefix = self.adapter.prefix.to(self.model.device) if on and self.adapter else None
        self.model.set_prefix(None if prefix is None else prefix())

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The base model inside a with block."""
        before = self.enabled
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = before

    def logits(self, text: str) -> Tensor:
        """[s, v] in float32: the logits at every token of ``text`` in the model's template."""
        return self.model.logits(self._prompt(text, ()))

    def generate(
        self,
        prompts: Sequence[str],
        *,
        history: History = (),
        sampling: Sampling | None = None,
    ) -> list[str]:
        """An answer a prompt; an adapter's task says how prompts are cut and answers decoded."""
        if isinstance(prompts, str):
            raise TypeError("generate() takes a list of prompts, got a single string")
        if sampling is None and self.head is not None:
            return [
                str(answer)
                for answer in self.predict(
                    [_record(prompt, history, line) for line, prompt in enumerate(prompts, start=1)]
                )
            ]
        ids = [self._prompt(prompt, history) for prompt in prompts]
        answers = self.model.generate(ids, sampling or Sampling(max_new_tokens=ANSWER_TOKENS))
        return [self.backbone.tokenizer.decode(answer).strip() for answer in answers]

    def chat(
        self,
        query: str,
        history: History = (),
        *,
        sampling: Sampling | None = None,
        each: Callable[[str], None] | None = None,
    ) -> str:
        """The answer to ``query`` after the turns of ``history``, oldest first, as (query, answer).

        ``each`` gets the answer piece by piece while it grows; together the pieces are the answer.
        It may raise an exception to stop. An adapter's task cuts long conversations as its settings
        say; the base model forgets the oldest turns.
        """
        if self.head is None and sampling is None:
            sampling = Sampling(max_new_tokens=ANSWER_TOKENS)
            history = self._fitting(query, history, sampling.max_new_tokens)
        stream = TextStream(self.backbone.tokenizer.decode, each or (lambda piece: None))
        self.model.watcher = (lambda key, token: stream.add(token)) if each is not None else None
        try:
            answer = self.generate([query], history=history, sampling=sampling)[0]
        finally:
            self.model.watcher = None
        if each is not None:
            stream.finish(answer)
        return answer

    def left_out(self, query: str, history: History = ()) -> int:
        """How many tokens of a conversation the adapter's task would cut. Raises `PtkitError` if it
        is of no task that answers prompts."""
        if self.head is None:
            return 0
        record = _record(query, history)
        _check_accepted(self.head, record)
        rows = self.head.encode(record, self.backbone.tokenizer)
        return sum(row.cut for row in rows)

    def predict(self, records: Sequence[Record]) -> list[Any]:
        """A prediction a record, by the adapter's task head."""
        if self.head is None:
            raise PtkitError("predict() needs the task head of an adapter, and none was loaded")
        for record in records:
            _check_accepted(self.head, record)
        if not records:
            return []
        source = SourcePath("records", Path("records"))
        part = Part.of("prediction", source, list(records))
        limit = self.backbone.geometry.max_positions
        encode_part(part, self.head, self.backbone.tokenizer, limit)
        return predict(self.model, self.head, self.module, part, self.backbone.tokenizer)

    def _prompt(self, query: str, history: History) -> list[int]:
        tokenizer = self.backbone.tokenizer
        return tokenizer.encode_prompts([tokenizer.prompt(query, history)])[0]

    def _fitting(self, query: str, history: History, new_tokens: int) -> History:
        """The latest turns of the history that leave room for the answer."""
        room = self.backbone.geometry.max_positions - new_tokens
        while len(self._prompt(query, history)) > room:
            if not history:
                raise PtkitError(
                    f"the message has {len(self._prompt(query, ()))} tokens, the model takes "
                    f"{room} beside an answer of {new_tokens}; shorten it"
                )
            history = history[1:]
        return history


def _record(prompt: str, history: History, line: int = 1) -> GenerationRecord:
    return GenerationRecord(origin=Origin("prompt", line), prompt=prompt, history=tuple(history))


def _check_accepted(head: TaskHead, record: Record) -> None:
    if not isinstance(record, head.accepts):
        raise PtkitError(
            f"{record.origin}: task {head.name!r} takes {head.accepts.__name__}, "
            f"got {type(record).__name__}"
        )


def load(
    backbone: Backbone | str | Path | None = None,
    adapter: Adapter | str | Path | None = None,
    *,
    kind: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    overrides: Sequence[str] = (),
    registry: Registry | None = None,
) -> Tuned:
    """A frozen model, with an adapter if one is given, ready to use.

    ``backbone``: a model folder, a named source such as "nano", or a `Backbone`; None is the source
    that the adapter names, if a plugin has it. ``adapter``: its folder, or the run folder that it
    lies in. ``kind``: the backbone plugin that reads the model; by default the adapter's, or the
    one that recognises it. ``device``: "auto", "cpu", "cuda"; ``dtype``: "auto" (as the adapter's
    recipe says, else by device), "float32", "bfloat16", "float16". ``overrides``: changes to the
    adapter's recipe.

    >>> import ptkit
    >>> tuned = ptkit.load("nano", "runs/first")
    >>> tuned.enabled
    True
    >>> drawn = ptkit.load("nano", "runs/first", overrides=["task.sampling.temperature=0.9"])
    >>> base = ptkit.load("nano")
    >>> base.enabled
    False

    Raises `CheckpointError` if the adapter is damaged or was made for something else, `RecipeError`
    if a component that it names is not installed or does not take its settings.
    """
    registry = registry or load_plugins()
    if not (adapter is None or isinstance(adapter, Adapter)):
        adapter = load_adapter(adapter)
    if isinstance(backbone, Path):
        backbone = str(backbone)
    parts = assemble(
        adapter, registry, backbone=backbone, kind=kind, dtype=dtype, overrides=overrides
    )
    return Tuned.of(parts, adapter, device)
