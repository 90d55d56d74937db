"""A frozen model with an adapter, ready to use: generate, look at logits, switch the adapter off and on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ptkit.components import Backbone, TaskHead
from ptkit.data import Part, encode_part
from ptkit.engine.adapter import Adapter, load_adapter
from ptkit.engine.evaluate import predict
from ptkit.engine.model import Model
from ptkit.engine.session import build_head, load_model
from ptkit.errors import CheckpointError, PtkitError
from ptkit.records import GenerationRecord, Origin, Record, Sampling
from ptkit.registry import Registry, load_plugins
from ptkit.settings import SourcePath


class Tuned:
    """What `ptkit.load` returns.

    >>> tuned = ptkit.load("nano", "runs/quickstart/adapter")  # doctest: +SKIP
    >>> tuned.generate(["类型#裙*颜色#红色"])  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: Backbone,
        model: Model,
        adapter: Adapter | None,
        head: TaskHead | None,
        module: nn.Module | None,
    ) -> None:
        self.backbone = backbone
        self.model = model
        self.adapter = adapter
        self.head = head
        self._module = module
        self.enabled = adapter is not None

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
        """[s, v] in float32: the logits at every token of ``text`` in the model's prompt template."""
        tokenizer = self.backbone.tokenizer
        tokens = [*tokenizer.start_ids, *tokenizer.encode(tokenizer.prompt(text).text)]
        return self.model.logits(tokens)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        history: Sequence[tuple[str, str]] = (),
        sampling: Sampling | None = None,
    ) -> list[str]:
        """An answer a prompt. With an adapter, prompts are cut and answers decoded as its task says."""
        if isinstance(prompts, str):
            raise TypeError("generate() takes a list of prompts, got a single string")
        tokenizer = self.backbone.tokenizer
        if sampling is None and self.head is not None:
            return self.predict(
                [
                    GenerationRecord(
                        origin=Origin("prompt", number), prompt=prompt, history=tuple(history)
                    )
                    for number, prompt in enumerate(prompts, start=1)
                ]
            )
        ids = [
            [*tokenizer.start_ids, *tokenizer.encode(tokenizer.prompt(prompt, history).text)]
            for prompt in prompts
        ]
        answers = self.model.generate(ids, sampling or Sampling(max_new_tokens=256))
        return [tokenizer.decode(answer).strip() for answer in answers]

    def predict(self, records: Sequence[Record]) -> list[Any]:
        """A prediction a record, by the adapter's task head."""
        if self.head is None:
            raise PtkitError("predict() needs the task head of an adapter, and none was loaded")
        for record in records:
            if not isinstance(record, self.head.accepts):
                raise PtkitError(
                    f"{record.origin}: task {self.head.name!r} takes {self.head.accepts.__name__}, "
                    f"got {type(record).__name__}"
                )
        if not records:
            return []
        source = SourcePath("records", Path("records"))
        part = Part.of("prediction", source, list(records))
        limit = self.backbone.geometry.max_positions
        encode_part(part, self.head, self.backbone.tokenizer, limit)
        return predict(self.model, self.head, self._module, part, self.backbone.tokenizer)


def load(
    backbone: Backbone | str | Path,
    adapter: Adapter | str | Path | None = None,
    *,
    kind: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    registry: Registry | None = None,
) -> Tuned:
    """A frozen model, with an adapter if one is given, ready to use.

    ``backbone``: a model folder, a named source such as "nano", or a `Backbone`. ``kind``: the backbone
    plugin that reads it; by default the adapter's, or the only one installed. ``device``: "auto", "cpu",
    "cuda"; ``dtype``: "auto", "float32", "bfloat16", "float16".

    Raises `CheckpointError` if the adapter is damaged or was made for something else.
    """
    registry = registry or load_plugins()
    if not (adapter is None or isinstance(adapter, Adapter)):
        adapter = load_adapter(adapter)
    if not isinstance(backbone, Backbone):
        backbone = _find_backbone(str(backbone), kind, adapter, dtype, registry)
    head = None
    if adapter is not None:
        adapter.check_fits(backbone)
        head = _head_of(adapter, registry)
    model = load_model(backbone, device)
    module = None if head is None else build_head(head, backbone, model, seed=0)
    if module is not None and adapter is not None:
        module.load_state_dict(adapter.head)
        module.eval().requires_grad_(False)
    return Tuned(backbone, model, adapter, head, module)


def _find_backbone(
    source: str, kind: str | None, adapter: Adapter | None, dtype: str, registry: Registry
) -> Backbone:
    if kind is None and adapter is not None:
        kind = str(adapter.manifest["backbone"]["kind"])
    if kind is None:
        kinds = registry.names("backbone")
        if len(kinds) != 1:
            raise PtkitError(f"load() needs kind=, one of: {', '.join(kinds) or 'none is installed'}")
        kind = kinds[0]
    component = registry.find("backbone", kind).component
    named = registry.resolve_source(source)
    path = named or Path(source).expanduser()
    if not path.exists():
        raise CheckpointError(f"{source}: no such model folder, and no plugin knows that name")
    found = SourcePath(source, path, named=named is not None)
    made = component(component.Settings.model_validate({"source": found, "dtype": dtype}))
    assert isinstance(made, Backbone)
    return made


def _head_of(adapter: Adapter, registry: Registry) -> TaskHead:
    task = adapter.manifest["recipe"]["task"]
    component = registry.find("task", task["kind"]).component
    assert issubclass(component, TaskHead)
    options = {key: value for key, value in task.items() if key != "kind"}
    return component(component.Settings.model_validate(options), labels=adapter.labels)
