"""Chinese text to words, with jieba."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

REMEMBERED = 1 << 14  # texts; controls score the same references many times over


class Words:
    """Cuts texts into words, and remembers the cuts.

    Has its own jieba tokenizer with the dictionary that jieba ships. Words that other code adds to
    jieba's shared one change no score, and neither does the ``jieba.cache`` that jieba keeps in the
    temporary folder, which any version or user may have written.
    """

    def __init__(self) -> None:
        self._tokenizer: Any = None
        self.spaced = lru_cache(maxsize=REMEMBERED)(self._spaced)

    def _spaced(self, text: str) -> str:
        """The words of ``text``, joined by blanks; white space is a word, as jieba has it."""
        if self._tokenizer is None:
            self._tokenizer = _tokenizer()
        return " ".join(self._tokenizer.cut(text))


def _tokenizer() -> Any:
    with warnings.catch_warnings():
        # jieba imports pkg_resources, which warns, and has escapes that Python 3.12 warns of
        warnings.simplefilter("ignore")
        import jieba  # type: ignore[import-untyped]

    tokenizer = jieba.Tokenizer()
    # what Tokenizer.initialize() does, less its cache file and its log lines on stderr
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
