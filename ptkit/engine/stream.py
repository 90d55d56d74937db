"""Tokens into text while they come: no character is shown in halves, and nothing is taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what decoders make of the first bytes of a character


class TextStream:
    """Hands on the text of growing ids, stripped as answers are, piece by piece.

    White space waits for what follows it, because at the end of an answer it is left out.

    Worked example: 😀 comes as four byte tokens, so that the texts of 1 to 5 ids are 裙, 裙�, 裙��,
    裙���, 裙😀; the pieces are 裙 and 😀.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], each: Callable[[str], None]) -> None:
        self._decode = decode
        self._each = each
        self._ids: list[int] = []
        self.text = ""

    def add(self, token: int) -> None:
        self._ids.append(token)
        whole = self._decode(self._ids).lstrip()
        self._grow(whole.rstrip(UNFINISHED).rstrip())

    def finish(self, answer: str) -> None:
        """Hand on what is left of the whole answer."""
        self._grow(answer)

    def _grow(self, text: str) -> None:
        if len(text) > len(self.text):
            piece, self.text = text[len(self.text) :], text
            self._each(piece)
