"""Text to ids the way ChatGLM2's tokenizer does it, and rows for pretraining."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy
import sentencepiece
from documents import SOURCES, Document
from numpy.typing import NDArray

SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
EOS = 2


class Tokenizer:
    """The pieces of ``tokenizer.model``, and the ids of what comes after them."""

    def __init__(self, path: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.specials = {
            name: self.pieces.vocab_size() + index for index, name in enumerate(SPECIALS)
        }
        self.start = [self.specials["[gMASK]"], self.specials["sop"]]

    @property
    def padded_vocab_size(self) -> int:
        """A multiple of 64, as GPUs like it."""
        return -(-(self.pieces.vocab_size() + len(SPECIALS)) // 64) * 64

    def prompt(self, text: str) -> list[int]:
        return [*self.start, *self.pieces.encode(text)]

    def answer(self, text: str) -> list[int]:
        """Encoded on its own, hence with a dummy space first, as the published training does."""
        return [*self.pieces.encode(text), EOS]

    def document(self, document: Document) -> list[int]:
        ids = self.prompt(document.text)
        return [*ids, *(self.answer(document.answer) if document.answer else [EOS])]


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed documents: ids, which document of its row a token is in (0: padding), its source."""

    ids: NDArray[numpy.uint16]  # [rows, s]
    segments: NDArray[numpy.uint8]  # [rows, s]
    sources: NDArray[numpy.uint8]  # [rows, s], index into SOURCES


def pack(documents: Iterable[Document], tokenizer: Tokenizer, rows: int, length: int) -> Rows:
    """Fill ``rows`` rows: a document goes to the fullest of 32 open rows that still holds it.

    A longer document is cut to ``length``. The last open rows are dropped, the rest is padded.
    """
    ids = numpy.zeros((rows, length), numpy.uint16)
    segments = numpy.zeros((rows, length), numpy.uint8)
    sources = numpy.zeros((rows, length), numpy.uint8)
    open_rows: list[list[tuple[int, list[int]]]] = [[] for _ in range(32)]
    used = [0] * len(open_rows)
    done = 0
    for document in documents:
        tokens = tokenizer.document(document)[:length]
        fitting = [i for i, taken in enumerate(used) if taken + len(tokens) <= length]
        if fitting:
            row = max(fitting, key=used.__getitem__)
        else:
            row = max(range(len(used)), key=used.__getitem__)
            at = 0
            for index, (source, part) in enumerate(open_rows[row]):
                ids[done, at : at + len(part)] = part
                segments[done, at : at + len(part)] = index + 1
                sources[done, at : at + len(part)] = source
                at += len(part)
            done += 1
            open_rows[row], used[row] = [], 0
            if done == rows:
                break
        open_rows[row].append((SOURCES.index(document.source), tokens))
        used[row] += len(tokens)
    return Rows(ids, segments, sources)
