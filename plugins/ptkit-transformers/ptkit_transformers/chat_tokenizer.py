"""The tokenizer of an instruct model, whose prompts are laid out by its chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import ptkit
from ptkit_transformers.chat import ChatTemplate, Turns
from ptkit_transformers.config import ModelConfig
from ptkit_transformers.tokenizer import FastTokenizer, TokenizerFiles, stripped, without_blanks

# Unicode keeps these for a program's own use: they stand for nothing in a text.
_QUERY = "\ufdd0"
_MARKS = range(0xF0000, 0xFFFFE)
_ANSWER = "42"

Controls = list[tuple[int, int, str]]  # half-open spans of characters, and the token's name


@dataclass(frozen=True, slots=True)
class ChatPrompt(ptkit.PromptParts):
    """A prompt that is laid out again from its query and ``history``; its text is for reading."""

    history: tuple[tuple[str, str], ...] = ()

    @property
    def turns(self) -> Turns:
        past = [turn for asked, answered in self.history for turn in _turns(asked, answered)]
        return [*past, ("user", self.query)]


def _turns(asked: str, answered: str) -> Turns:
    return [("user", asked), ("assistant", answered)]


class ChatTokenizer(FastTokenizer):
    """Prompts as ``apply_chat_template`` of transformers encodes them, with the model's turn begun.

    The control tokens of a prompt are those that the template writes. One that a user writes stays
    text, as it does outside of prompts.
    """

    def __init__(self, config: ModelConfig, files: TokenizerFiles, template: ChatTemplate) -> None:
        self._chat = template
        super().__init__(config, files)

    # --------------------------------------------------------------------------- control tokens

    def _control_ids(self) -> frozenset[int]:
        """Besides the special tokens those that end a turn, which need not be declared special."""
        special = super()._control_ids()
        names = {name for name, i in self._ids.items() if i in special}
        added = {token["content"] for token in self._data.get("added_tokens") or ()}
        self._written = {name: self._ids[name] for name in sorted(names)}
        self._written |= {n: self._ids[n] for n in sorted(added) if n in self._chat.literals}
        self._any = _alternatives(self._written)
        self._pattern = re.compile(self._any)
        self._closing, _ = self._behind(_turns("hi", _ANSWER))
        opening, layout = self._behind([*_turns("hi", _ANSWER), ("user", "hi")])
        self._opening = opening if self._closing is None else None
        names |= set(self._pattern.findall(layout))
        self._patterns = {"user": self._pattern, "assistant": re.compile(_alternatives(names))}
        return special | {i for i in (self._closing, self._opening) if i is not None}

    def _behind(self, turns: Turns) -> tuple[int | None, str]:
        """The control token behind the model's answer, white space aside, and the whole text."""
        text = self._chat.render(turns, answer=False)
        found = self._pattern.match(text.rpartition(_ANSWER)[2].lstrip())
        return None if found is None else self._written[found[0]], text

    def _answer_ends(self, config: ModelConfig) -> list[int]:
        """What closes the model's turn ends its answers; the mark of the next turn stops them."""
        ends = [self._closing, *super()._answer_ends(config), self._opening]
        return [i for i in dict.fromkeys(ends) if i is not None]

    # --------------------------------------------------------------------------- prompts

    @cached_property
    def _bare(self) -> tuple[str, str]:
        return self._around(())

    def _around(self, history: Sequence[tuple[str, str]]) -> tuple[str, str]:
        """The text before and behind the last query."""
        turns = ChatPrompt("", _QUERY, "", tuple(history)).turns
        before, found, after = self._chat.render(turns).rpartition(_QUERY)
        if not found:
            raise ptkit.CheckpointError(
                f"{self._chat.source}: the chat template leaves out what the user asks; set "
                'backbone.prompt = "plain" to go without it'
            )
        return before, after

    def prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> ChatPrompt:
        before, after = self._around(history) if history else self._bare
        return ChatPrompt(before, query, after, tuple(history))

    def encode_prompts(self, prompts: Sequence[ptkit.PromptParts]) -> list[list[int]]:
        """Start ids are there if the template writes them."""
        rendered = [self._rendered(prompt) for prompt in prompts]
        texts = [text for text, _ in rendered]
        encoded = self._whole.encode_batch_fast(texts, add_special_tokens=False)
        made = []
        for (text, controls), encoding in zip(rendered, encoded, strict=True):
            agrees = self._agrees(encoding.ids, controls)
            made.append(encoding.ids if agrees else self._pieced(text, controls)[0])
        return made

    def prompt_offsets(self, prompt: ptkit.PromptParts) -> tuple[list[int], list[tuple[int, int]]]:
        """Raises `ptkit.CheckpointError` where the template changes a text by more than white space
        around it, because nobody knows then where its tokens stand."""
        text, controls = self._rendered(prompt)
        encoding = self._whole.encode(text, add_special_tokens=False)
        ids, spans = encoding.ids, [without_blanks(text, *span) for span in encoding.offsets]
        if not self._agrees(ids, controls):
            ids, spans = self._pieced(text, controls)
        written = set(self._written.values())
        query, begin = prompt.query, len(prompt.before)
        kept = [query, query.strip(), query.lstrip(), query.rstrip()]
        found = next((q for q in kept if text == f"{prompt.before}{q}{prompt.after}"), None)
        if found is None:
            raise ptkit.CheckpointError(
                f"{self._chat.source}: the chat template changes what a user says, so that the "
                'characters of its tokens are not known; set backbone.prompt = "plain" or '
                'task.train_on = "answer"'
            )
        left, cut = query.find(found), len(query) - len(found)

        def moved(place: int, character: int) -> int:
            """``place`` as the edge of the character at or before it, in the text for reading."""
            if character >= begin + len(found):
                return place + cut
            return place + left if character >= begin else place

        there = []
        for i, (start, stop) in zip(ids, spans, strict=True):
            first = moved(start, start)
            span = first, max(first, moved(stop, stop - 1))
            there.append((0, 0) if i in written else span)
        return ids, there

    def _rendered(self, prompt: ptkit.PromptParts) -> tuple[str, Controls]:
        """The text of a prompt, and where the template has control tokens in it.

        What a user writes like one goes through the template between marks. In the model's own
        answers only marks of turns do so: "<think>" is a token of theirs, if the model has it.
        """
        turns = prompt.turns if isinstance(prompt, ChatPrompt) else [("user", prompt.query)]
        if not any(self._patterns[role].search(text) for role, text in turns):
            text = self._chat.render(turns)
            return text, [(m.start(), m.end(), m[0]) for m in self._pattern.finditer(text)]
        taken = {character for _, text in turns for character in text}
        first, last = islice((mark for code in _MARKS if (mark := chr(code)) not in taken), 2)
        marked = [
            (role, self._patterns[role].sub(lambda found: f"{first}{found[0]}{last}", text))
            for role, text in turns
        ]
        kept, controls, place, behind = [], [], 0, 0
        text = self._chat.render(marked)
        for found in re.finditer(f"{first}({self._any}){last}|[{first}{last}]|{self._any}", text):
            between = text[behind : found.start()]
            behind, place = found.end(), place + len(between)
            name = found[1] or found[0].strip(first + last)
            if name == found[0]:
                controls.append((place, place + len(name), name))
            kept += [between, name]
            place += len(name)
        return "".join([*kept, text[behind:]]), controls

    def _agrees(self, ids: Sequence[int], controls: Controls) -> bool:
        """Whether the control tokens among ``ids`` are those of the template and no others."""
        written = self._counted
        return [i for i in ids if i in written] == [
            i for _, _, name in controls if (i := self._written[name]) in written
        ]

    @cached_property
    def _counted(self) -> frozenset[int]:
        """Control tokens apart from that of unknown characters, which any text may have."""
        unknown = self._data["model"].get("unk_token")
        return frozenset(i for name, i in self._written.items() if name != unknown)

    # --------------------------------------------------------------------------- text to ids

    @cached_property
    def _whole(self) -> Any:
        """The tokenizer with all control tokens and without a template for texts."""
        from tokenizers import Tokenizer

        left_out = ("post_processor", "truncation", "padding")
        data = {**self._data, **dict.fromkeys(left_out)}
        whole = Tokenizer.from_str(json.dumps(data))
        added = {token["content"] for token in self._data.get("added_tokens") or ()}
        whole.add_special_tokens([name for name in self._written if name not in added])
        return whole

    @cached_property
    def _apart(self) -> tuple[Any, Any]:
        """Tokenizers without control tokens, for the first text of a prompt and for later ones."""
        from tokenizers import Tokenizer

        data = stripped(self._data, frozenset(self._written.values()))
        later = {**data, "pre_tokenizer": _later(data.get("pre_tokenizer"))}
        first = Tokenizer.from_str(json.dumps(data))
        return first, first if later == data else Tokenizer.from_str(json.dumps(later))

    def _pieced(self, text: str, controls: Controls) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and spans with the control tokens at ``controls`` and at no other place.

        Between them the library's own rules hold: white space next to a token that is declared so
        is dropped, and only the first text begins one.
        """
        added = {token["content"]: token for token in self._data.get("added_tokens") or ()}
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place, before = 0, ""
        for start, stop, name in [*controls, (len(text), len(text), "")]:
            part = text[place:start]
            if added.get(before, {}).get("rstrip"):
                part = part.lstrip()
                place = start - len(part)
            if added.get(name, {}).get("lstrip"):
                part = part.rstrip()
            if part:
                encoding = self._apart[place > 0].encode(part, add_special_tokens=False)
                ids += encoding.ids
                inside = [without_blanks(part, *span) for span in encoding.offsets]
                spans += [(place + first, place + last) for first, last in inside]
            if name:
                ids.append(self._written[name])
                spans.append((start, stop))
            place, before = stop, name
        return ids, spans


def _alternatives(names: Iterable[str]) -> str:
    """A regular expression for any of ``names``, the longest first as the library has it."""
    return "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"


def _later(step: Any) -> Any:
    """``step`` as it treats what is not the first text: the library marks that one alone."""
    if not isinstance(step, Mapping):
        return step
    if step.get("type") == "Sequence":
        return {**step, "pretokenizers": [_later(part) for part in step["pretokenizers"]]}
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first":
        return {**step, "prepend_scheme": "never"}
    return step
