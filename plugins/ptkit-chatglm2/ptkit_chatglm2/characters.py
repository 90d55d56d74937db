"""A tokenizer without a file: a character an id, for models of random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import ptkit
from ptkit_chatglm2.tokenizer import SPECIALS, rounds

BYTES_FROM = 3  # behind <unk>, <s> and </s>, as in the published vocabulary
CHARACTERS_FROM = BYTES_FROM + 256
BLOCKS = ((0x3000, 0x3040), (0xFF00, 0xFFF0), (0x4E00, 0xA000))
"""What has an id of its own, in this order: Chinese punctuation, full-width forms, ideographs."""
SMALLEST = CHARACTERS_FROM + len(SPECIALS)


class CharacterTokenizer(ptkit.Tokenizer):
    """Chinese characters are an id each, all else its bytes in UTF-8; nothing is lost.

    The prompt is ChatGLM2's, and so are the ids of specials in front (``</s>`` is 2), of bytes (a
    line break is 13) and the order of specials behind the characters. ``size``: the ids that there
    is room for; what doesn't fit among them is written in bytes.

    Raises `ptkit.CheckpointError` if there is no room for the bytes; ``path`` is named then.
    """

    pad_id = 0
    eos_id = 2

    def __init__(self, size: int, path: Path) -> None:
        if size < SMALLEST:
            raise ptkit.CheckpointError(
                f"{path}: padded_vocab_size must be {SMALLEST} or more for a model without "
                f"tokenizer.model, got {size}"
            )
        known = chain.from_iterable(range(*block) for block in BLOCKS)
        self._characters = [chr(c) for c, _ in zip(known, range(size - SMALLEST), strict=False)]
        self._ids = {c: i for i, c in enumerate(self._characters, start=CHARACTERS_FROM)}
        behind = CHARACTERS_FROM + len(self._characters)
        self.specials = {name: behind + index for index, name in enumerate(SPECIALS)}
        self.vocab_size = behind + len(SPECIALS)
        self.start_ids = (self.specials["[gMASK]"], self.specials["sop"])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"characters {self.vocab_size}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return [i for character in text for i in self._of(character)]

    def pieces(self, text: str) -> list[int]:
        return self.encode(text)

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The bytes of a character all get that character's span."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for place, character in enumerate(text):
            found = self._of(character)
            ids += found
            spans += [(place, place + 1)] * len(found)
        return ids, spans

    def _of(self, character: str) -> list[int]:
        known = self._ids.get(character)
        if known is not None:
            return [known]
        return [BYTES_FROM + byte for byte in character.encode("utf-8", "replace")]

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are no UTF-8 become U+FFFD; ids outside the vocabulary decode to nothing."""
        data = bytearray()
        for i in ids:
            if BYTES_FROM <= i < CHARACTERS_FROM:
                data.append(i - BYTES_FROM)
            elif CHARACTERS_FROM <= i < CHARACTERS_FROM + len(self._characters):
                data += self._characters[i - CHARACTERS_FROM].encode()
        return data.decode("utf-8", "replace")

    def prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> ptkit.PromptParts:
        return rounds(query, history)
