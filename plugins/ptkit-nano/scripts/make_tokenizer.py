"""Train the tokenizer.

``python scripts/make_tokenizer.py --corpus corpus-zh --out ptkit_nano/model``

ChatGLM2's settings with a small vocabulary. Its five special tokens are no pieces: they take the
ids after the last piece, as in the published tokenizer.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import sentencepiece
from documents import Corpus, documents, read_corpus

PIECES = 4000


def lines(corpus: Corpus) -> Iterator[str]:
    """A good part of the text is products, so that their words become pieces."""
    for document in islice(documents(corpus, "tokenizer"), 12000):
        text = document.text + "\n" + (document.answer or "")
        yield from filter(None, text.split("\n"))
    rng = Random("tokenizer-text")
    for file in corpus.files:
        yield from (line[:400] for line in rng.sample(file, min(len(file), 12000)) if line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines(read_corpus(arguments.corpus, held_out=False)),
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        character_coverage=0.993,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        max_sentence_length=8192,
        num_threads=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=1,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tokenizer.model").write_bytes(model.getvalue())


if __name__ == "__main__":
    main()
