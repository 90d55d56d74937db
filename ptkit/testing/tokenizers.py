"""What the contract check of backbones asks of a tokenizer; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ptkit.models import Tokenizer
from ptkit.records import Joined, PromptParts
from ptkit.testing.faults import Subject

TEXTS = (
    "A red dress, size 42!",
    "类型#裙*颜色#红色",
    "naïve café — ½",
    "two\n lines\twith  blanks ",
    "😀👩‍👩‍👧 日本語 한국어",
    "e\u0301 combining",
)
"""What a tokenizer is tried on besides the texts of the caller."""
MARKS = [
    "<s>",
    "</s>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<bos>",
    "<eos>",
    "<sop>",
    "<eop>",
    "[gMASK]",
    "[CLS]",
    "[SEP]",
    "[PAD]",
    "[MASK]",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|begin_of_text|>",
    "<start_of_turn>",
]
"""How models write their control tokens; as text, each is only text."""


def check_tokenizer(subject: Subject, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """All that `ptkit.Tokenizer` promises, for ``texts`` and some that are hard."""
    _check_ids(subject, tokenizer)
    tried = [*dict.fromkeys([*texts, *TEXTS])]
    encoded = [_check_text(subject, tokenizer, text) for text in tried]
    batch = subject.call("encode_batch()", lambda: tokenizer.encode_batch(tried))
    if batch != encoded:
        raise subject.fault(
            "encode_batch() must give the ids of encode() for every text, in order; a tokenizer "
            "that overrides one of them overrides both"
        )
    for name in ("encode", "pieces"):
        ids = subject.call(f"{name}('')", partial(getattr(tokenizer, name), ""))
        if ids != []:
            raise subject.fault(f"{name}('') must give no ids, got {ids!r}")
    _check_controls(subject, tokenizer)
    _check_join(subject, tokenizer, encoded)
    _check_prompts(subject, tokenizer, tried)


def _check_ids(subject: Subject, tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    if type(size) is not int or size < 1:
        raise subject.fault(f"the tokenizer's vocab_size must be a whole number, got {size!r}")
    named: dict[str, Any] = {"pad_id": [tokenizer.pad_id], "eos_id": [tokenizer.eos_id]}
    named |= {"start_ids": tokenizer.start_ids, "stop_ids": tokenizer.stop_ids}
    for name, ids in named.items():
        if not isinstance(ids, list | tuple) or not all(_is_id(i, size) for i in ids):
            raise subject.fault(
                f"the tokenizer's {name} must be within the vocabulary of {size} ids, got {ids!r}"
            )
    first, second = (subject.call("fingerprint", lambda: tokenizer.fingerprint) for _ in range(2))
    if not isinstance(first, str) or not first or first != second:
        raise subject.fault(
            f"the tokenizer's fingerprint must be a text that stays, got {first!r} and {second!r}"
        )


def _is_id(value: object, size: int) -> bool:
    return type(value) is int and 0 <= value < size


def _ids(subject: Subject, what: str, ids: object, size: int) -> list[int]:
    if not isinstance(ids, list) or not all(_is_id(i, size) for i in ids):
        raise subject.fault(
            f"{what} must give a list of plain ints within the vocabulary of {size} ids, "
            f"got {_short(ids)}"
        )
    return ids


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _check_text(subject: Subject, tokenizer: Tokenizer, text: str) -> list[int]:
    size, shown = tokenizer.vocab_size, _short(text)
    encoded = subject.call(f"encode({shown})", lambda: tokenizer.encode(text))
    ids = _ids(subject, f"encode({shown})", encoded, size)
    pieces = subject.call(f"pieces({shown})", lambda: tokenizer.pieces(text))
    _ids(subject, f"pieces({shown})", pieces, size)
    found, spans = subject.call(f"offsets({shown})", lambda: tokenizer.offsets(text))
    if found != ids:
        raise subject.fault(
            f"offsets({shown}) gives the ids {_short(found)}, but encode() {_short(ids)}; "
            "both must be the same"
        )
    if len(spans) != len(ids):
        raise subject.fault(f"offsets({shown}) gives {len(spans)} spans for {len(ids)} ids")
    before = 0
    for begin, end in spans:
        if not 0 <= begin <= end <= len(text):
            raise subject.fault(
                f"offsets({shown}) gives the span {(begin, end)} in a text of {len(text)} "
                "characters; spans are half-open and count characters, not bytes"
            )
        if begin < before:
            raise subject.fault(
                f"offsets({shown}) gives the span {(begin, end)} behind one that begins at "
                f"{before}; spans go forward"
            )
        before = begin
    decoded = subject.call(f"decode() of {shown}", lambda: tokenizer.decode(ids))
    if not isinstance(decoded, str):
        raise subject.fault(f"decode() must give a string, got {type(decoded).__name__}")
    again = subject.call(f"encode({shown})", lambda: tokenizer.encode(text))
    if again != ids:
        raise subject.fault(f"encode({shown}) gives other ids the second time")
    return ids


def _check_controls(subject: Subject, tokenizer: Tokenizer) -> None:
    """Text never becomes a control token, and control tokens never become text."""
    controls = {*tokenizer.start_ids, *tokenizer.stop_ids, tokenizer.eos_id, tokenizer.pad_id}
    for mark in MARKS:
        for text in (mark, f"a {mark} b"):
            ids = subject.call(f"encode({text!r})", partial(tokenizer.encode, text))
            found = controls & {*ids}
            if found:
                raise subject.fault(
                    f"encode({text!r}) gives the control token {min(found)}; what a user writes "
                    "must stay text, or a row can end a turn or begin another"
                )
    for name in ("start_ids", "eos_id"):
        special = tokenizer.start_ids if name == "start_ids" else (tokenizer.eos_id,)
        text = subject.call(f"decode() of {name}", partial(tokenizer.decode, special))
        if text != "":
            raise subject.fault(f"decode() gives {text!r} for {name}; specials decode to nothing")


def _check_join(subject: Subject, tokenizer: Tokenizer, encoded: Sequence[Sequence[int]]) -> None:
    first, second = encoded[0], encoded[1]
    start = tuple(tokenizer.start_ids)
    for pair in ((first,), (first, second)):
        what = f"join() of {'two texts' if len(pair) == 2 else 'one text'}"
        joined = subject.call(what, partial(tokenizer.join, *pair))
        if not isinstance(joined, Joined):
            raise subject.fault(f"{what} must give a ptkit.Joined, got {type(joined).__name__}")
        tokens = joined.tokens
        if not isinstance(tokens, tuple) or not all(
            _is_id(i, tokenizer.vocab_size) for i in tokens
        ):
            raise subject.fault(f"{what} must give a tuple of ids, got {_short(tokens)}")
        if tokens[: len(start)] != start:
            raise subject.fault(f"{what} does not begin with start_ids {start}: {_short(tokens)}")
        begins = {"first": (joined.first, first), "second": (joined.second, second)}
        for name, (begin, ids) in list(begins.items())[: len(pair)]:
            if list(tokens[begin : begin + len(ids)]) != list(ids):
                raise subject.fault(
                    f"{what} says that the {name} text begins at {begin}, but its ids are not "
                    f"there: {_short(tokens)}"
                )
        if joined.token_types and len(joined.token_types) != len(tokens):
            raise subject.fault(
                f"{what} gives {len(joined.token_types)} token types for {len(tokens)} tokens"
            )


def _check_prompts(subject: Subject, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    start = list(tokenizer.start_ids)
    prompts = [
        subject.call("prompt()", partial(tokenizer.prompt, text, [("q", "a")])) for text in texts
    ]
    for text, prompt in zip(texts, prompts, strict=True):
        if not isinstance(prompt, PromptParts) or prompt.query != text:
            raise subject.fault(
                "prompt() must give ptkit.PromptParts with the query as it is, because only the "
                f"query may be shortened; got {_short(prompt)} for {_short(text)}"
            )
    encoded = subject.call("encode_prompts()", lambda: tokenizer.encode_prompts(prompts))
    if len(encoded) != len(prompts):
        raise subject.fault(f"encode_prompts() gives {len(encoded)} for {len(prompts)} prompts")
    for prompt, ids in zip(prompts, encoded, strict=True):
        _ids(subject, "encode_prompts()", ids, tokenizer.vocab_size)
        if ids[: len(start)] != start:
            raise subject.fault(
                f"encode_prompts() does not begin with start_ids {tuple(start)}: {_short(ids)}"
            )
        found, spans = subject.call("prompt_offsets()", partial(tokenizer.prompt_offsets, prompt))
        if found != ids or len(spans) != len(ids):
            raise subject.fault(
                "prompt_offsets() must give the ids of encode_prompts() and a span for each; a "
                "tokenizer that overrides one of them overrides both"
            )
        outside = [span for span in spans if not 0 <= span[0] <= span[1] <= len(prompt.text)]
        if outside:
            raise subject.fault(
                f"prompt_offsets() gives the span {outside[0]} in a prompt of {len(prompt.text)} "
                "characters; spans are of prompt.text, (0, 0) for control tokens"
            )
