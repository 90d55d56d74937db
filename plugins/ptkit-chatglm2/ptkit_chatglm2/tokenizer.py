"""The published tokenizers of ChatGLM2 and ChatGLM3, from ``tokenizer.model`` by sentencepiece; no
torch, no remote code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import ptkit

SPECIALS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
)  # appended behind the pieces, in this order
ROLES = (
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)  # ChatGLM3 appends these, too
PARALLEL_FROM = 32  # texts
# A protobuf message is merged with what follows it: ModelProto.normalizer_spec (field 3) with
# add_dummy_prefix (field 3) = false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def rounds(query: str, history: Sequence[tuple[str, str]]) -> ptkit.PromptParts:
    """The query in ChatGLM2's prompt format, behind the earlier turns."""
    past = "".join(
        f"[Round {turn}]\n\n问：{asked}\n\n答：{answered}\n\n"
        for turn, (asked, answered) in enumerate(history, start=1)
    )
    return ptkit.PromptParts(f"{past}[Round {len(history) + 1}]\n\n问：", query, "\n\n答：")


class ChatGLM2Tokenizer(ptkit.Tokenizer):
    """Ids as the published ChatGLM2 tokenizer gives them; specials in a text stay text."""

    added: ClassVar[tuple[str, ...]] = SPECIALS

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = path.read_bytes()
        except OSError as error:
            raise ptkit.CheckpointError(f"{path}: can't be read: {error.strerror}") from None
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model)
        except RuntimeError:
            raise ptkit.CheckpointError(f"{path}: is not a sentencepiece model") from None
        pieces = self._processor.vocab_size()
        self.specials = {name: pieces + index for index, name in enumerate(self.added)}
        self.pieces_count = pieces
        self.vocab_size = pieces + len(self.added)
        self.pad_id = max(0, self._processor.unk_id())
        self.eos_id = self._processor.eos_id()
        self.start_ids = (self.specials["[gMASK]"], self.specials["sop"])

    @cached_property
    def _inner(self) -> object:
        from sentencepiece import SentencePieceProcessor

        inner = SentencePieceProcessor()
        inner.LoadFromSerializedProto(self._model + _NO_DUMMY_PREFIX)
        return inner

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """By all CPU cores; below some texts that costs more than it saves."""
        if len(texts) < PARALLEL_FROM:
            return [self.encode(text) for text in texts]
        ids: list[list[int]] = self._processor.encode(list(texts), num_threads=-1)
        return ids

    def pieces(self, text: str) -> list[int]:
        ids: list[int] = self._inner.encode(text)  # type: ignore[attr-defined]
        return ids

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Bytes of one character that became several ids all get that character's span."""
        ids = self.encode(text)
        character_of_byte = [i for i, char in enumerate(text) for _ in char.encode()]
        character_of_byte.append(len(text))
        spans, place = [], -1  # the dummy blank in front of the text is at byte -1
        for i in ids:
            size = 1 if self._processor.is_byte(i) else len(self._surface(i))
            start, stop = max(place, 0), max(place + size, 0)
            last = character_of_byte[stop - 1] + 1 if stop > start else character_of_byte[start]
            spans.append((character_of_byte[start], last))
            place += size
        return ids, spans

    def _surface(self, i: int) -> bytes:
        piece: str = self._processor.id_to_piece(i)
        return piece.replace("\u2581", " ").encode()

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode([i for i in ids if 0 <= i < self.pieces_count])
        return text

    def prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> ptkit.PromptParts:
        return rounds(query, history)


@dataclass(frozen=True, slots=True)
class Turns(ptkit.PromptParts):
    """A prompt whose roles are control tokens, which no text can stand for; its text is for
    reading.

    ``history``: earlier queries with their answers.
    """

    history: tuple[tuple[str, str], ...] = ()


class ChatGLM3Tokenizer(ChatGLM2Tokenizer):
    """ChatGLM3's: the same pieces, a control token a role, and the published chat format."""

    added = (*SPECIALS, *ROLES)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.stop_ids = (self.specials["<|user|>"], self.specials["<|observation|>"])

    def prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> Turns:
        past = "".join(f"<|user|>\n{asked}<|assistant|>\n{answered}" for asked, answered in history)
        return Turns(f"{past}<|user|>\n", query, "<|assistant|>", tuple(history))

    def encode_prompts(self, prompts: Sequence[ptkit.PromptParts]) -> list[list[int]]:
        """Role, line break and content are encoded one by one, as published."""
        texts = [text for prompt in prompts for text in self._contents(prompt)]
        encoded = iter(self.encode_batch(texts))
        user, assistant = self.specials["<|user|>"], self.specials["<|assistant|>"]
        line_break = self.encode("\n")
        made = []
        for prompt in prompts:
            ids = list(self.start_ids)
            for index, _ in enumerate(self._contents(prompt)):
                ids += [assistant if index % 2 else user, *line_break, *next(encoded)]
            made.append([*ids, assistant])
        return made

    def prompt_offsets(self, prompt: ptkit.PromptParts) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans, place = list(self.start_ids), [(0, 0)] * len(self.start_ids), 0
        line_break = self.encode("\n")
        for index, text in enumerate(self._contents(prompt)):
            role = "<|assistant|>" if index % 2 else "<|user|>"
            place += len(role) + 1
            found, inside = self.offsets(text)
            ids += [self.specials[role], *line_break, *found]
            spans += [(0, 0)] * (1 + len(line_break))
            spans += [(place + start, place + stop) for start, stop in inside]
            place += len(text)
        return [*ids, self.specials["<|assistant|>"]], [*spans, (0, 0)]

    @staticmethod
    def _contents(prompt: ptkit.PromptParts) -> list[str]:
        history = prompt.history if isinstance(prompt, Turns) else ()
        return [*(text for turn in history for text in turn), prompt.query]
