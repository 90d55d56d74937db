"""The published tokenizer, from ``tokenizer.model`` by sentencepiece; no torch, no remote code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import ptkit

SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")  # appended behind the pieces, in this order
# A protobuf message is merged with what follows it: ModelProto.normalizer_spec (field 3) with
# add_dummy_prefix (field 3) = false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class ChatGLM2Tokenizer(ptkit.Tokenizer):
    """Ids as the published ChatGLM2 tokenizer gives them; specials in a text stay text."""

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
        self.specials = {name: pieces + index for index, name in enumerate(SPECIALS)}
        self.pieces_count = pieces
        self.vocab_size = pieces + len(SPECIALS)
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

    def pieces(self, text: str) -> list[int]:
        ids: list[int] = self._inner.encode(text)  # type: ignore[attr-defined]
        return ids

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        proto = self._processor.encode(text, out_type="immutable_proto")
        return [p.id for p in proto.pieces], [(p.begin, p.end) for p in proto.pieces]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode([i for i in ids if 0 <= i < self.pieces_count])
        return text

    def prompt(self, query: str, history: Sequence[tuple[str, str]] = ()) -> ptkit.PromptParts:
        past = "".join(
            f"[Round {turn}]\n\n问：{asked}\n\n答：{answered}\n\n"
            for turn, (asked, answered) in enumerate(history, start=1)
        )
        return ptkit.PromptParts(f"{past}[Round {len(history) + 1}]\n\n问：", query, "\n\n答：")
