"""The contract check for backbones: what they say of a model against what the model does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ptkit.engine.attention import KeyValue, RecordedRow
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.models import Backbone, LoadedBackbone
from ptkit.records import EncodedRow, Row, Sampling
from ptkit.testing.faults import Subject, one_line
from ptkit.testing.losses import one_thread
from ptkit.testing.tokenizers import check_tokenizer
from ptkit.testing.unloaded import check_unloaded

_TOLERANCE = 1e-4  # of float32 states, relative to their largest
_LENGTHS = (7, 1, 4, 5)  # tokens of the rows that are tried
_LONGEST = 2048  # tokens of a row in the check of max_positions; longer ones take minutes


def check_backbone(
    backbone: Backbone, *, other: Backbone | None = None, texts: Sequence[str] = ()
) -> None:
    """Check that ``backbone`` keeps the contract of `ptkit.Backbone`.

    Its weights are loaded on the CPU a few times, so give it a small model. ``other``: the same
    backbone with other weights, whose fingerprint must differ. ``texts``: what its tokenizer is to
    be tried on besides some that are hard. Of ``max_positions``, 2,048 are tried at most.
    Raises `AssertionError` naming the backbone, the fault and what to do.
    """
    subject = Subject(backbone, Backbone)
    subject.check_component()
    geometry = check_unloaded(subject, backbone, other)
    tokenizer = subject.call("tokenizer", lambda: backbone.tokenizer)
    check_tokenizer(subject, tokenizer, texts)
    if tokenizer.vocab_size > geometry.vocab_size:
        raise subject.fault(
            f"the tokenizer has {tokenizer.vocab_size} ids, but geometry.vocab_size is "
            f"{geometry.vocab_size}"
        )
    with one_thread(), torch.random.fork_rng(devices=[]):
        _check_dtypes(subject, backbone)
        bench = _Bench(subject, backbone, _load(subject, backbone, "float32"))
        _check_shapes(bench)
        if not _same(*(bench.states(bench.packed, bench.rows) for _ in range(2))):
            raise subject.fault(
                "its states are others the second time; no dropout, and keep no state"
            )
        _check_causal(bench)
        _check_prefix(bench)
        _check_rows(bench)
        _check_positions(bench)
        _check_generation(bench)
    subject.check_import()


# ------------------------------------------------------------------------------------ loading


def _load(subject: Subject, backbone: Backbone, dtype: str) -> LoadedBackbone:
    """The model, with what holds for any: progress, eval mode, no gradients, device, dtype."""
    steps: list[tuple[int, int]] = []
    what = f'load("cpu", "{dtype}")'
    loaded = subject.call(
        what, lambda: backbone.load("cpu", dtype, lambda done, total: steps.append((done, total)))
    )
    if not isinstance(loaded, LoadedBackbone):
        got = type(loaded).__name__
        raise subject.fault(f"{what} must return a ptkit.LoadedBackbone, got {got}")
    done = [step for step, _ in steps]
    if done != sorted(done) or any(step > total for step, total in steps):
        raise subject.fault(f"{what} told the progress {steps[:20]}; it rises to the total")
    wanted: torch.dtype = getattr(torch, dtype)
    for module in _modules(loaded):
        for name, part in module.named_modules():
            if part.training:
                raise subject.fault(f"{what} left {name or 'the model'} in training mode; eval()")
        for name, tensor in module.named_parameters():
            if tensor.grad is not None:
                raise subject.fault(f"{what} left a gradient on {name}")
            if tensor.device.type != "cpu":
                raise subject.fault(f"{what} put {name} on {tensor.device}")
            plain = tensor.is_floating_point() and tensor.dim() > 1
            if plain and tensor.dtype != wanted and backbone.quantization == "none":
                raise subject.fault(f"{what} gave {name} as {tensor.dtype}; obey the dtype")
    return loaded


def _modules(loaded: LoadedBackbone) -> list[nn.Module]:
    return [m for m in (loaded.body, loaded.lm_head) if m is not None]


def _check_dtypes(subject: Subject, backbone: Backbone) -> None:
    loaded = _load(subject, backbone, "bfloat16")
    bench = _Bench(subject, backbone, loaded)
    hidden = bench.states(bench.packed, bench.rows)
    if hidden.dtype != torch.bfloat16:
        raise subject.fault(f"with bfloat16 weights its states are {hidden.dtype}")


class _Bench:
    """A loaded backbone in both layouts, some rows, and a prefix that collects gradients."""

    def __init__(self, subject: Subject, backbone: Backbone, loaded: LoadedBackbone) -> None:
        self.subject = subject
        self.backbone = backbone
        self.geometry = backbone.geometry
        self.loaded = loaded
        if len(loaded.attentions) != self.geometry.layers:
            raise subject.fault(
                f"load() gives {len(loaded.attentions)} attention modules, but geometry.layers is "
                f"{self.geometry.layers}"
            )
        if len({id(module) for module in loaded.attentions}) < len(loaded.attentions):
            raise subject.fault(
                "load() gives one attention module for several layers, which would all get one "
                "prefix; wrap it once a layer"
            )
        tokenizer = backbone.tokenizer
        make = partial(
            Model, loaded, self.geometry, pad_id=tokenizer.pad_id, eos_id=tokenizer.eos_id
        )
        self.packed, self.padded = make(), make(layout="padded")
        draw = torch.Generator().manual_seed(0)
        self.rows = [self.row(length, draw) for length in _LENGTHS]
        encoder = PrefixEncoder(self.geometry, 3)
        encoder.initialize(std=0.5, seed=1)
        self.prefix = [
            (key.detach().requires_grad_(), value.detach().requires_grad_())
            for key, value in encoder()
        ]

    def row(self, length: int, draw: torch.Generator) -> tuple[int, ...]:
        size = self.backbone.tokenizer.vocab_size
        return tuple(torch.randint(size, (length,), generator=draw).tolist())

    def states(
        self,
        model: Model,
        rows: Sequence[tuple[int, ...]],
        prefix: Sequence[KeyValue] | None = None,
        what: str = "a forward pass",
    ) -> Tensor:
        """[t, h] of ``rows``, without gradients."""
        encoded = [EncodedRow(Row(tokens), index) for index, tokens in enumerate(rows)]
        with torch.no_grad(), model.using(prefix):
            return self.subject.call(what, lambda: model.states(encoded).hidden)


def _same(left: Tensor, right: Tensor) -> bool:
    scale = max(1.0, float(right.abs().max()))
    return left.shape == right.shape and float((left - right).abs().max()) <= _TOLERANCE * scale


# ------------------------------------------------------------------------------------ shapes


class _Seen(RecordedRow):
    """Keeps the shapes of all queries and keys that reach the attention function."""

    def __init__(self, length: int, *, causal: bool) -> None:
        super().__init__(length, causal=causal)
        self.shapes: list[tuple[int, int, int]] = []  # query heads, key heads, head size

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        self.shapes.append((query.shape[1], key.shape[1], key.shape[3]))
        return super().attend(query, key, value, *args, **kwargs)


def _check_shapes(bench: _Bench) -> None:
    """Every number of the geometry as the model has it."""
    subject, geometry, loaded = bench.subject, bench.geometry, bench.loaded
    hidden = bench.states(bench.packed, bench.rows)
    if hidden.shape[-1] != geometry.hidden_size:
        raise _differs(subject, "hidden_size", geometry.hidden_size, hidden.shape[-1])
    parameters = {id(p): p.numel() for m in _modules(loaded) for p in m.parameters()}
    count = sum(parameters.values())
    if bench.backbone.quantization == "none" and count != geometry.parameters:
        raise _differs(subject, "parameters", geometry.parameters, count)
    if loaded.lm_head is not None:
        size = loaded.lm_head(hidden[:1]).shape[-1]
        if size != geometry.vocab_size:
            raise _differs(subject, "vocab_size", geometry.vocab_size, size)
    layout = _Seen(len(bench.rows[0]), causal=geometry.causal)
    first = loaded.first_position
    with torch.no_grad(), bench.packed.using(None):
        loaded.body(
            input_ids=torch.tensor([bench.rows[0]]),
            position_ids=torch.arange(first, first + len(bench.rows[0]))[None],
            use_cache=False,
            ptkit_layout=layout,
        )
    if len(layout.shapes) != geometry.layers:
        raise subject.fault(
            f"{len(layout.shapes)} of {geometry.layers} layers call transformers' attention "
            "function, through which the prefix comes; the others would stay as they are"
        )
    wanted = {"heads": geometry.heads, "kv_groups": geometry.kv_groups}
    wanted["head_size"] = geometry.head_size
    for shape in layout.shapes:
        for (name, value), got in zip(wanted.items(), shape, strict=True):
            if got != value:
                raise _differs(subject, name, value, got)


def _differs(subject: Subject, name: str, said: int, got: int) -> AssertionError:
    return subject.fault(f"geometry.{name} is {said:,}, but the model has {got:,}")


# ------------------------------------------------------------------------------------ behaviour


def _check_prefix(bench: _Bench) -> None:
    """The prefix changes what the model computes, and every part of it gets a gradient."""
    subject, rows = bench.subject, bench.rows
    plain = bench.states(bench.packed, rows)
    prefixed = bench.states(bench.packed, rows, bench.prefix)
    if _same(plain, prefixed):
        raise subject.fault("a prefix changes nothing; attention must go through transformers'")
    reference: list[Tensor] | None = None
    checkpointed = Model(
        bench.loaded, bench.geometry, pad_id=bench.packed.pad_id, eos_id=bench.packed.eos_id
    )
    for what, prepare in {"": None, "gradient checkpointing is on": checkpointed}.items():
        model = prepare or bench.packed
        if prepare is not None:
            subject.call("enabling checkpointing", prepare.enable_checkpointing)
        gradients = _gradients(bench, model)
        for index, gradient in enumerate(gradients):
            if gradient is None or not bool(gradient.count_nonzero()):
                raise subject.fault(
                    f"the prefix of layer {index // 2} gets no gradient"
                    f"{f' when {what}' if what else ''}; attention must go through transformers' "
                    "attention interface"
                )
        found = [g for g in gradients if g is not None]
        reference = reference or found
        if not all(map(_same, found, reference)):
            raise subject.fault(f"the gradient of the prefix changes when {what}")


def _gradients(bench: _Bench, model: Model) -> Sequence[Tensor | None]:
    rows = [EncodedRow(Row(tokens), index) for index, tokens in enumerate(bench.rows)]
    with torch.enable_grad(), model.using(bench.prefix):
        hidden = bench.subject.call("a forward pass", lambda: model.states(rows).hidden)
        draw = torch.Generator().manual_seed(2)
        weights = torch.randn(hidden.shape, generator=draw)
        leaves = [tensor for pair in bench.prefix for tensor in pair]
        loss = (hidden * weights).sum()
        if not loss.requires_grad:
            return [None] * len(leaves)
        return torch.autograd.grad(loss, leaves, allow_unused=True)


def _check_rows(bench: _Bench) -> None:
    """A row's states are the same alone, packed and padded, with the prefix and without."""
    subject, rows = bench.subject, bench.rows
    for prefix, words in ((None, ""), (bench.prefix, " with a prefix")):
        packed = bench.states(bench.packed, rows, prefix)
        alone = torch.cat([bench.states(bench.packed, [row], prefix) for row in rows])
        if not _same(packed, alone):
            raise subject.fault(
                f"a row has other states{words} packed behind other rows than alone; take "
                "positions from position_ids, and mix no tokens outside attention"
            )
        if not _same(packed, bench.states(bench.padded, rows, prefix)):
            raise subject.fault(
                f"rows have other states{words} when the model pads them instead of packing them; "
                "take positions from position_ids, and mix no tokens outside attention"
            )


def _check_causal(bench: _Bench) -> None:
    """Whether a later token changes the states before it must be as geometry.causal says."""
    row = bench.rows[0]
    other = (*row[:-1], (row[-1] + 1) % bench.backbone.tokenizer.vocab_size)
    first, second = (bench.states(bench.packed, [tokens])[:-1] for tokens in (row, other))
    seen = not _same(first, second)
    if seen and bench.geometry.causal:
        raise bench.subject.fault(
            "geometry.causal is true, but a later token changes the states of earlier ones"
        )
    if not seen and not bench.geometry.causal:
        raise bench.subject.fault(
            "geometry.causal is false, but a later token does not change the states of earlier ones"
        )


def _check_positions(bench: _Bench) -> None:
    length = min(bench.geometry.max_positions, _LONGEST)
    row = bench.row(length, torch.Generator().manual_seed(3))
    try:
        with torch.no_grad(), bench.packed.using(None):
            hidden = bench.packed.states([EncodedRow(Row(row), 0)]).hidden
    except Exception as error:
        raise bench.subject.fault(
            f"geometry.max_positions is {bench.geometry.max_positions}, but a row of {length} "
            f"tokens raises {one_line(error)}; count what can be used, first_position considered"
        ) from error
    if not bool(hidden.isfinite().all()):
        raise bench.subject.fault(f"the states of a row of {length} tokens are not finite")


def _check_generation(bench: _Bench) -> None:
    """Greedy decoding, a token at a time, gives the tokens of a forward pass over all of them."""
    if bench.loaded.lm_head is None or not bench.geometry.causal:
        return
    model, prompt = bench.packed, list(bench.rows[0])
    with torch.no_grad(), model.using(bench.prefix):
        generate = partial(model.generate, [prompt, prompt[:3]], Sampling(4))
        (answer, _) = bench.subject.call("generating", generate)
        for count, token in enumerate(answer):
            logits = model.logits([*prompt, *answer[:count]])[-1]
            if float(logits.max() - logits[token]) > _TOLERANCE * float(logits.abs().max()):
                raise bench.subject.fault(
                    f"token {count + 1} that it generates is another, fed one by one, than in a "
                    "pass over its whole row; a single token a row must give the same keys and "
                    "values as it gives among others at its position"
                )
