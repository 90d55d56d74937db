"""Seconds to encode as many rows as ADGEN has, of its lengths; fails from 6 s on.

    python tests/benchmarks/tokenizer.py [--model FOLDER] [--rows 114599]

Rows are recombined from those of ptkit-nano.
``--model``: a folder with a published tokenizer.model; the nano model's if not given.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ptkit_nano
from ptkit_chatglm2.tokenizer import ChatGLM2Tokenizer
from ptkit_tasks.generation import Generation

import ptkit
from ptkit.data import Part, encode_part
from ptkit.settings import SourcePath

FOLDER = Path(ptkit_nano.__file__).parent
LIMIT = 6.0  # seconds


def records(count: int) -> list[ptkit.GenerationRecord]:
    """Prompts of 46 characters and answers of 112 on average, as ADGEN's training rows have."""
    source = FOLDER / "data" / "train.json"
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    draw = random.Random(0)
    made = []
    for line in range(count):
        parts = [draw.choice(rows) for _ in range(3)]
        prompt = "*".join(part["content"] for part in parts)[: draw.randint(28, 64)]
        answer = "".join(part["summary"] for part in parts)[: draw.randint(72, 152)]
        origin = ptkit.Origin("train.json", line + 1)
        made.append(ptkit.GenerationRecord(origin=origin, prompt=prompt, response=answer))
    return made


def timed(what: str, work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{what:58} {seconds:6.2f} s")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER / "model")
    parser.add_argument("--rows", type=int, default=114_599)
    options = parser.parse_args()
    tokenizer = ChatGLM2Tokenizer(options.model / "tokenizer.model")
    rows = records(options.rows)
    prompts = [tokenizer.prompt(row.prompt) for row in rows]
    answers = [row.response or "" for row in rows]
    texts = [*(prompt.text for prompt in prompts), *answers]
    head = Generation(Generation.Settings(max_source_tokens=64, max_target_tokens=128))
    part = Part.of("train", SourcePath("generated", FOLDER), list(rows))

    def encode_all() -> None:
        tokenizer.encode_prompts(prompts)
        tokenizer.encode_batch(answers)

    sample = tokenizer.encode_batch(texts[:: max(1, len(texts) // 5000)])
    mean = sum(map(len, sample)) / len(sample)
    print(f"{options.rows:,} rows, {mean:.0f} tokens a text, {os.cpu_count()} CPU cores")
    timed(
        "sentencepiece alone, one thread", lambda: tokenizer._processor.encode(texts, num_threads=1)
    )
    timed("sentencepiece alone, all cores", lambda: tokenizer._processor.encode(texts))
    timed("Tokenizer.encode, text by text", lambda: [tokenizer.encode(text) for text in texts])
    seconds = timed("Tokenizer.encode_prompts, encode_batch", encode_all)
    timed(
        "into training rows, cut to 64 / 128 tokens",
        lambda: encode_part(part, head, tokenizer, 8192),
    )
    if options.rows >= 100_000 and seconds >= LIMIT:
        sys.exit(f"encoding must take less than {LIMIT:.0f} s")


if __name__ == "__main__":
    main()
