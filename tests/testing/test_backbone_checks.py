"""Every fault of backbones and tokenizers that `check_backbone` finds, each on its own."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ptkit
from ptkit.testing import TinyBackbone, WordTokenizer, check_backbone

SMALL = {"layers": 2, "max_positions": 24, "words": ("red", "dress")}


def small(kind: type[TinyBackbone] = TinyBackbone, **settings: Any) -> TinyBackbone:
    return kind(kind.Settings(**{**SMALL, **settings}))


@pytest.mark.parametrize("causal", [True, False])
def test_the_tiny_backbones_pass(causal: bool) -> None:
    check_backbone(small(causal=causal), other=small(causal=causal, seed=1), texts=["红色的 dress"])


# ------------------------------------------------------------------------------------ what it says


class Says(TinyBackbone):
    """A geometry with some numbers changed."""

    changes: dict[str, Any] = {}

    @property
    def geometry(self) -> Any:
        return replace(super().geometry, **self.changes)


def says(**changes: Any) -> type[Says]:
    return type("Says", (Says,), {"changes": changes})


class NoGeometry(TinyBackbone):
    geometry = {"layers": 2}  # type: ignore[assignment]


class Unstable(TinyBackbone):
    made = Counter[str]()

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.made["backbone"] += 1
        self.number = self.made["backbone"]

    @property
    def fingerprint(self) -> str:
        return f"number {self.number}"


class OneForAll(TinyBackbone):
    fingerprint = "tiny"


class NoFingerprint(TinyBackbone):
    fingerprint = ""


class BadVariant(TinyBackbone):
    variant = {"rope": 1.5}  # type: ignore[assignment,dict-item]


class LongNotes(TinyBackbone):
    notes = ("two\nlines",)


class NoQuantization(TinyBackbone):
    quantization = None  # type: ignore[assignment]


class BackboneName(TinyBackbone):
    name = "Tiny_Model"


# ------------------------------------------------------------------------------------ what it loads


class Loads(TinyBackbone):
    """A backbone of which something is changed behind loading."""

    def load(self, device: str, dtype: str, progress: Any = None) -> Any:
        loaded = super().load(device, dtype, progress)
        return self.changed(loaded) or loaded

    def changed(self, loaded: ptkit.LoadedBackbone) -> Any:
        return None


def loads(change: Callable[[ptkit.LoadedBackbone], Any]) -> type[Loads]:
    return type("Changed", (Loads,), {"changed": lambda self, loaded: change(loaded)})


def leave_gradient(loaded: ptkit.LoadedBackbone) -> None:
    import torch

    for parameter in loaded.body.parameters():
        parameter.grad = torch.zeros_like(parameter)


class IgnoresDtype(TinyBackbone):
    def load(self, device: str, dtype: str, progress: Any = None) -> Any:
        return super().load(device, "float32", progress)


class RaisesLoading(TinyBackbone):
    def load(self, device: str, dtype: str, progress: Any = None) -> Any:
        raise OSError("no weights")


class CountsBackwards(TinyBackbone):
    def load(self, device: str, dtype: str, progress: Any = None) -> Any:
        for done in (2, 1):
            progress(done, 2)
        return super().load(device, dtype)


def with_forward(
    loaded: ptkit.LoadedBackbone, change: Callable[[Any, dict[str, Any]], Any]
) -> None:
    """Replace the body's forward pass; ``change`` gets the good one and its keywords."""
    forward = loaded.body.forward
    loaded.body.forward = lambda **given: change(forward, given)


def counts_positions(forward: Any, given: dict[str, Any]) -> Any:
    given.pop("position_ids")
    return forward(**given)


def adds_noise(forward: Any, given: dict[str, Any]) -> Any:
    import torch

    found = forward(**given)
    found.last_hidden_state = found.last_hidden_state + torch.rand_like(found.last_hidden_state)
    return found


def mixes_tokens(forward: Any, given: dict[str, Any]) -> Any:
    """Adds the state before a token's own, whichever row it is of."""
    import torch

    found = forward(**given)
    hidden = found.last_hidden_state
    found.last_hidden_state = hidden + torch.cat((hidden[:, :1], hidden[:, :-1]), 1)
    return found


def refuses_long_rows(forward: Any, given: dict[str, Any]) -> Any:
    if int(given["position_ids"].max()) >= 20:
        raise IndexError("index out of range in self")
    return forward(**given)


def overflows(forward: Any, given: dict[str, Any]) -> Any:
    found = forward(**given)
    if int(given["position_ids"].max()) >= 20:
        found.last_hidden_state = found.last_hidden_state / 0
    return found


def only_first_layer(loaded: ptkit.LoadedBackbone) -> None:
    """The second layer attends by itself, past the interface."""
    attention: Any = loaded.attentions[1]
    attention.forward = lambda hidden_states, **rest: (hidden_states, None)


def drops_prefix(loaded: ptkit.LoadedBackbone) -> None:
    """The second layer has other prefix keys while activations are computed again."""
    attention: Any = loaded.attentions[1]
    forward = attention.forward

    def without_prefix(*args: Any, **rest: Any) -> Any:
        if torch._C._current_graph_task_id() != -1:  # inside a backward pass
            vars(attention)["ptkit_prefix_key"] = attention.ptkit_prefix_key * 0
        return forward(*args, **rest)

    attention.forward = without_prefix


def sees_no_prefix(loaded: ptkit.LoadedBackbone) -> None:
    for module in loaded.attentions:
        attention: Any = module

        def without_prefix(*args: Any, attention: Any = attention, **rest: Any) -> Any:
            vars(attention)["ptkit_prefix_key"] = None
            return type(attention).forward(attention, *args, **rest)

        attention.forward = without_prefix


def misplaces_single_tokens(forward: Any, given: dict[str, Any]) -> Any:
    """Counts positions by itself where there is one token a row."""
    if given["input_ids"].shape[1] == 1:
        given["position_ids"] = given["position_ids"] * 0
    return forward(**given)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (says(layers=3), "gives 2 attention modules, but geometry.layers is 3"),
        (says(heads=8), "geometry.heads is 8, but the model has 4"),
        (says(kv_groups=4), "geometry.kv_groups is 4, but the model has 2"),
        (says(head_size=16), "geometry.head_size is 16, but the model has 8"),
        (says(hidden_size=64), "geometry.hidden_size is 64, but the model has 32"),
        (says(parameters=7), r"geometry.parameters is 7, but the model has [\d,]{5,}"),
        (says(vocab_size=99), "geometry.vocab_size is 99, but the model has 66"),
        (says(vocab_size=60), "the tokenizer has 66 ids, but geometry.vocab_size is 60"),
        (NoGeometry, "geometry must be a ptkit.Geometry, got dict"),
        (Unstable, "fingerprint is 'number .', then 'number .' for the same settings"),
        (OneForAll, "fingerprint is the same for other weights"),
        (NoFingerprint, "fingerprint must be a text, got ''"),
        (BadVariant, r"variant must map texts to texts, got {'rope': 1.5}"),
        (LongNotes, "notes must be texts of one line, got 'two"),
        (NoQuantization, "quantization must be a text, got None"),
        (BackboneName, "must be kebab-case such as 'my-name', got 'Tiny_Model'"),
        (loads(lambda loaded: 3), r"load\(\"cpu\", \"bfloat16\"\) must return .*, got int"),
        (loads(lambda loaded: loaded.body.train() and None), "left .* in training mode; eval"),
        (loads(leave_gradient), "left a gradient on embed_tokens.weight"),
        (IgnoresDtype, "gave embed_tokens.weight as torch.float32; obey the dtype"),
        (RaisesLoading, r"load\(\"cpu\", \"bfloat16\"\) raised OSError: no weights"),
        (CountsBackwards, r"told the progress \[\(2, 2\), \(1, 2\)\]; it rises to the total"),
        (
            loads(lambda loaded: replace(loaded, attentions=loaded.attentions[:1] * 2)),
            "gives one attention module for several layers",
        ),
        (loads(only_first_layer), "1 of 2 layers call transformers' attention function"),
        (loads(sees_no_prefix), "a prefix changes nothing"),
        (
            loads(lambda loaded: replace(loaded, attentions=loaded.attentions[::-1])),
            None,  # which layer has which prefix is the backbone's own business
        ),
        (
            loads(drops_prefix),
            "the gradient of the prefix changes when gradient checkpointing",
        ),
        (
            loads(lambda loaded: with_forward(loaded, adds_noise)),
            "its states are others the second time; no dropout",
        ),
        (
            loads(lambda loaded: with_forward(loaded, counts_positions)),
            "other states with a prefix packed behind other rows than alone; take positions",
        ),
        (
            loads(lambda loaded: with_forward(loaded, mixes_tokens)),
            "a row has other states packed behind other rows than alone; .* mix no tokens",
        ),
        (
            loads(lambda loaded: with_forward(loaded, refuses_long_rows)),
            "max_positions is 24, but a row of 24 tokens raises IndexError: index out of range",
        ),
        (
            loads(lambda loaded: with_forward(loaded, overflows)),
            "the states of a row of 24 tokens are not finite",
        ),
        (
            loads(lambda loaded: with_forward(loaded, misplaces_single_tokens)),
            "that it generates is another, fed one by one, than in a pass over its whole row",
        ),
    ],
)
def test_faults_of_backbones(kind: type[TinyBackbone], words: str | None) -> None:
    backbone, other = small(kind), small(kind, seed=1)
    if words is None:
        check_backbone(backbone, other=other)
        return
    with pytest.raises(AssertionError, match=words) as raised:
        check_backbone(backbone, other=other)
    assert str(raised.value).startswith(f"backbone '{kind.name}': ")
    assert "\n" not in str(raised.value)


class Sighted(Loads):
    """GLM that looks one token ahead, within a row that is alone."""

    def changed(self, loaded: ptkit.LoadedBackbone) -> Any:
        def looks_ahead(forward: Any, given: dict[str, Any]) -> Any:
            found = forward(**given)
            hidden, places = found.last_hidden_state, given["position_ids"]
            behind = (places.roll(-1, 1) == places + 1)[..., None]
            found.last_hidden_state = hidden + hidden.roll(-1, 1) * behind
            return found

        with_forward(loaded, looks_ahead)


class Blind(Loads):
    """BERT whose states are only those of its own tokens."""

    def changed(self, loaded: ptkit.LoadedBackbone) -> Any:
        def looks_nowhere(forward: Any, given: dict[str, Any]) -> Any:
            found = forward(**given)
            found.last_hidden_state = loaded.body.get_input_embeddings()(given["input_ids"])
            return found

        with_forward(loaded, looks_nowhere)


def test_causality_is_tried_out() -> None:
    with pytest.raises(AssertionError, match="causal is true, but a later token changes the st"):
        check_backbone(small(Sighted))
    with pytest.raises(AssertionError, match="causal is false, but a later token does not change"):
        check_backbone(small(Blind, causal=False))


def test_torch_in_the_light_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_backbone.py").write_text(
        "from ptkit.testing import TinyBackbone\n\n\n"
        "class Heavy(TinyBackbone):\n"
        "    @property\n"
        "    def geometry(self):\n"
        "        import torch\n\n"
        "        return super().geometry\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    heavy: Any = importlib.import_module("heavy_backbone")
    with pytest.raises(AssertionError, match="geometry imports torch, which costs `ptkit check`"):
        check_backbone(small(heavy.Heavy))


# ------------------------------------------------------------------------------------ tokenizers


class Speaks(TinyBackbone):
    """The tiny backbone with another tokenizer."""

    kind: type[WordTokenizer]

    @property
    def tokenizer(self) -> WordTokenizer:  # type: ignore[override]
        return self.kind(self.settings.words, buckets=self.settings.buckets)


class OtherOffsets(WordTokenizer):
    def offsets(self, text: str) -> Any:
        ids, spans = super().offsets(text)
        return ids[::-1], spans

    def encode(self, text: str) -> list[int]:
        return super().offsets(text)[0]


class FewSpans(WordTokenizer):
    def offsets(self, text: str) -> Any:
        ids, spans = super().offsets(text)
        return ids, spans[:-1]


class ByteSpans(WordTokenizer):
    def offsets(self, text: str) -> Any:
        ids, spans = super().offsets(text)
        return ids, [(len(text[:a].encode()), len(text[:b].encode())) for a, b in spans]


class BackwardSpans(WordTokenizer):
    def offsets(self, text: str) -> Any:
        ids, spans = super().offsets(text)
        return ids, spans[::-1]


class UnknownIds(WordTokenizer):
    def encode(self, text: str) -> list[int]:
        return [self.vocab_size for _ in super().offsets(text)[0]]


class BadPieces(WordTokenizer):
    def pieces(self, text: str) -> Any:
        return tuple(self.encode(text))


class Bytes(WordTokenizer):
    def decode(self, ids: Sequence[int]) -> Any:
        return super().decode(ids).encode()


class ShowsEnd(WordTokenizer):
    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(ids) + "</s>" * (self.eos_id in ids)


class ReadsMarks(WordTokenizer):
    """Takes the end of a sequence from the text, as many tokenizers do by default."""

    def offsets(self, text: str) -> Any:
        ids, spans = super().offsets(text)
        return ([self.eos_id], [(0, len(text))]) if text == "</s>" else (ids, spans)


class SortsBatch(WordTokenizer):
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in sorted(texts)]


class Begins(WordTokenizer):
    def encode(self, text: str) -> list[int]:
        return [3, *super().offsets(text)[0]]

    def offsets(self, text: str) -> Any:
        ids, spans = super().offsets(text)
        return [3, *ids], [(0, 0), *spans]


class Dies(WordTokenizer):
    def offsets(self, text: str) -> Any:
        return super().offsets(text.encode("ascii").decode())


class Forgets(WordTokenizer):
    fingerprint = ""


class BadEnd(WordTokenizer):
    eos_id = -1


class NoSize(WordTokenizer):
    def __init__(self, words: Any, *, buckets: int) -> None:
        super().__init__(words, buckets=buckets)
        self.vocab_size = None  # type: ignore[assignment]


class Remembers(WordTokenizer):
    calls = 0

    def offsets(self, text: str) -> Any:
        self.calls += 1
        ids, spans = super().offsets(text)
        return ids[: 3 if self.calls % 4 else 2], spans[: 3 if self.calls % 4 else 2]


class JoinsElsewhere(WordTokenizer):
    def join(self, first: Any, second: Any = None) -> Any:
        return replace(super().join(first, second), second=0)


class JoinsBare(WordTokenizer):
    def join(self, first: Any, second: Any = None) -> Any:
        return ptkit.Joined(tuple(first), (), 0, len(first))


class JoinsList(WordTokenizer):
    def join(self, first: Any, second: Any = None) -> Any:
        return list(first)


class HalfTypes(WordTokenizer):
    def join(self, first: Any, second: Any = None) -> Any:
        return replace(super().join(first, second), token_types=(0,))


class ListJoined(WordTokenizer):
    def join(self, first: Any, second: Any = None) -> Any:
        found = super().join(first, second)
        return replace(found, tokens=list(found.tokens))


class Shortens(WordTokenizer):
    def prompt(self, query: str, history: Any = ()) -> Any:
        return ptkit.PromptParts("", query.strip()[:5], "")


class BarePrompts(WordTokenizer):
    def encode_prompts(self, prompts: Any) -> list[list[int]]:
        return [self.encode(prompt.text) for prompt in prompts]


class FewPrompts(WordTokenizer):
    def encode_prompts(self, prompts: Any) -> list[list[int]]:
        return super().encode_prompts(prompts[:1])


class PromptsApart(WordTokenizer):
    def encode_prompts(self, prompts: Any) -> list[list[int]]:
        return [[*ids, self.eos_id] for ids in super().encode_prompts(prompts)]


class PromptSpans(WordTokenizer):
    def prompt_offsets(self, prompt: Any) -> Any:
        ids, spans = super().prompt_offsets(prompt)
        return ids, [(a + 1000, b + 1000) for a, b in spans]


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (OtherOffsets, r"offsets\('red dress .*'\) gives the ids .*, but encode\(\)"),
        (FewSpans, "gives 9 spans for 10 ids"),
        (ByteSpans, "half-open and count characters, not bytes"),
        (BackwardSpans, "spans go forward"),
        (UnknownIds, "list of plain ints within the vocabulary of 66 ids, got .66"),
        (BadPieces, r"pieces\(.*\) must give a list of plain ints"),
        (Bytes, r"decode\(\) must give a string, got bytes"),
        (ShowsEnd, r"decode\(\) gives '</s>' for eos_id; specials decode to nothing"),
        (ReadsMarks, r"encode\('</s>'\) gives the control token 1; what a user writes"),
        (SortsBatch, r"encode_batch\(\) must give the ids of encode\(\) for every text, in order"),
        (Begins, r"encode\(''\) must give no ids, got \[3\]"),
        (Dies, r"encode\('类型.*'\) raised UnicodeEncodeError"),
        (Forgets, "fingerprint must be a text that stays, got ''"),
        (BadEnd, r"eos_id must be within the vocabulary of 66 ids, got \[-1\]"),
        (NoSize, "vocab_size must be a whole number, got None"),
        (Remembers, r"offsets\(.*\) gives the ids|gives other ids the second time"),
        (JoinsElsewhere, r"join\(\) of two texts says that the second text begins at 0"),
        (JoinsBare, r"join\(\) of one text does not begin with start_ids \(2,\)"),
        (JoinsList, r"join\(\) of one text must give a ptkit.Joined, got list"),
        (HalfTypes, r"gives 1 token types for 11 tokens"),
        (ListJoined, r"join\(\) of one text must give a tuple of ids"),
        (Shortens, r"with the query as it is, because only the query may be shortened"),
        (BarePrompts, r"encode_prompts\(\) does not begin with start_ids \(2,\)"),
        (FewPrompts, r"encode_prompts\(\) gives 1 for 7 prompts"),
        (PromptsApart, r"prompt_offsets\(\) must give the ids of encode_prompts\(\)"),
        (PromptSpans, r"prompt_offsets\(\) gives the span \(1000, 1000\) in a prompt of"),
    ],
)
def test_faults_of_tokenizers(tokenizer: type[WordTokenizer], words: str) -> None:
    kind = type("Speaking", (Speaks,), {"kind": tokenizer})
    settings = Speaks.Settings(**SMALL)
    backbone = kind(settings)
    size = WordTokenizer(settings.words, buckets=settings.buckets).vocab_size
    geometry = replace(TinyBackbone(settings).geometry, vocab_size=size)
    kind.geometry = geometry
    text = "red dress in two sizes , small and large !"
    with pytest.raises(AssertionError, match=words) as raised:
        check_backbone(backbone, texts=[text])
    assert str(raised.value).startswith("backbone 'tiny': ")
