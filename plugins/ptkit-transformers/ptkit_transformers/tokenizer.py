"""Tokenizers of transformers models by the library ``tokenizers``: no torch, no transformers.

Control tokens are taken out of the tokenizer and put in by `ptkit_transformers.template` alone, so
that no text can stand for one: neither as an added token, nor as a piece of the vocabulary.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ptkit
from ptkit_transformers.config import ModelConfig, read_json
from ptkit_transformers.gguf import read_gguf_tokenizer
from ptkit_transformers.template import control_names, read_template

NAMED = ("bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token")
# Pre-tokenizers replace or split at blanks, so no piece of a text is ever looked up with one.
_UNREACHABLE = " \0 "


class FastTokenizer(ptkit.Tokenizer):
    """The tokenizer of a model folder: tokenizer.json, or what it can be made from."""

    def __init__(self, config: ModelConfig, files: TokenizerFiles) -> None:
        from tokenizers import Tokenizer

        self._source, self._data, self._settings = files.source, files.data, files.settings
        data = files.data
        self._ids = _ids_of(data)
        if not self._ids:
            raise ptkit.CheckpointError(
                f"{self._source}: has no vocabulary under model.vocab; save it again with "
                "transformers"
            )
        self._template = read_template(data.get("post_processor"), self._source)
        self._control = self._control_ids()
        self._stripped = stripped(data, self._control)
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(self._stripped))
        except Exception as error:  # the library raises nothing more special
            raise ptkit.CheckpointError(
                f"{self._source}: is not a tokenizer ({error}); save it again with transformers"
            ) from None
        self.vocab_size = max(self._ids.values()) + 1
        if self.vocab_size > config.numbers["vocab_size"]:
            raise ptkit.CheckpointError(
                f"{self._source}: has {self.vocab_size} ids, but vocab_size in config.json is "
                f"{config.numbers['vocab_size']}; they belong to different models"
            )
        self._segments = config.segments
        self._causal = config.family.causal
        self.start_ids = self._template.start
        self.eos_id, self.stop_ids = self._ends(config)
        self.pad_id = self._first(
            self._named("pad_token"), config.raw.get("pad_token_id"), self.eos_id
        )

    # --------------------------------------------------------------------------- control tokens

    def _named(self, name: str) -> int | None:
        """The id of a token that tokenizer_config.json names, such as its ``pad_token``."""
        content = token_name(self._settings.get(name))
        return None if content is None else self._ids.get(content)

    def _control_ids(self) -> frozenset[int]:
        added = {
            token["content"] for token in self._data.get("added_tokens") or () if _special(token)
        }
        found = {
            self._ids[name] for name in added | control_names(self._template) & self._ids.keys()
        }
        found |= {i for name in NAMED if (i := self._named(name)) is not None}
        return frozenset(found | set(self._template.ids))

    def _ends(self, config: ModelConfig) -> tuple[int, tuple[int, ...]]:
        """What ends a text: the tokenizer's own eos (encoders: what closes a text), and others."""
        if not self._causal:
            closing = self._template.end or self._template.start
            return self._first(self._named("sep_token"), *closing, 0), ()
        ends = self._answer_ends(config)
        if not ends:
            raise ptkit.CheckpointError(
                f"{config.folder}: no token ends an answer; set eos_token in tokenizer_config.json "
                "or eos_token_id in config.json"
            )
        return ends[0], tuple(ends[1:])

    def _answer_ends(self, config: ModelConfig) -> list[int]:
        """What ends an answer, the one that ends those that are trained on first."""
        given = [config.raw.get("eos_token_id")]
        given.append(_optional_json(config.folder / "generation_config.json").get("eos_token_id"))
        ends = [i for ids in given for i in (ids if isinstance(ids, list) else [ids])]
        return [i for i in dict.fromkeys([self._named("eos_token"), *ends]) if type(i) is int]

    @staticmethod
    def _first(*ids: object) -> int:
        return next(i for i in ids if type(i) is int)

    # --------------------------------------------------------------------------- text to ids

    @cached_property
    def fingerprint(self) -> str:
        keys = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
        used = {key: self._data.get(key) for key in keys}
        return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _inner(self) -> Any:
        """The same tokenizer without a mark of a text's beginning."""
        from tokenizers import Tokenizer

        data = without_beginning(self._stripped)
        return self._tokenizer if data == self._stripped else Tokenizer.from_str(json.dumps(data))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """By all CPU cores."""
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def pieces(self, text: str) -> list[int]:
        ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return ids

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Blanks before a word, which many vocabularies have in its piece, don't count to its
        span."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [without_blanks(text, *span) for span in encoding.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        kept = [i for i in ids if 0 <= i < self.vocab_size and i not in self._control]
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> ptkit.Joined:
        """As the model's template says: ``[CLS] a [SEP] b [SEP]`` for BERT.

        Causal models get a line break between two texts, and no token types.
        """
        if self._causal:
            return super().join(first, second)
        return self._template.join(first, second, segments=self._segments)


def token_name(value: object) -> str | None:
    """The name of a token of tokenizer_config.json, which is a text or an object."""
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None


def _special(token: Mapping[str, Any]) -> bool:
    return bool(token.get("special"))


def without_blanks(text: str, start: int, stop: int) -> tuple[int, int]:
    trimmed = start
    while trimmed < stop and text[trimmed].isspace():
        trimmed += 1
    return (trimmed, stop) if trimmed < stop else (start, stop)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


# ------------------------------------------------------------------------------------------ files


@dataclass(frozen=True)
class TokenizerFiles:
    """``data``: what tokenizer.json holds, from the file ``source``; ``settings``: what
    tokenizer_config.json holds."""

    source: Path
    data: dict[str, Any]
    settings: dict[str, Any]


def read_files(config: ModelConfig) -> TokenizerFiles:
    """The files of a model's tokenizer. Raises `ptkit.CheckpointError`."""
    if config.gguf is not None:
        return TokenizerFiles(config.gguf, *read_gguf_tokenizer(config.gguf))
    source, data = read_tokenizer(config.folder, config)
    return TokenizerFiles(source, data, _optional_json(config.folder / "tokenizer_config.json"))


def read_tokenizer(folder: Path, config: ModelConfig) -> tuple[Path, dict[str, Any]]:
    """The file and the content of ``tokenizer.json``, made from a BERT's vocab.txt if need be.

    Raises `ptkit.CheckpointError` where neither is there.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return path, read_json(path)
    vocabulary = folder / "vocab.txt"
    if vocabulary.is_file():
        return vocabulary, _from_vocabulary(vocabulary, config)
    if folder.joinpath("vocab.json").is_file() and folder.joinpath("merges.txt").is_file():
        return folder / "vocab.json", _from_merges(folder, config)
    raise ptkit.CheckpointError(
        f"{folder}: no tokenizer.json, which ptkit reads; make it once, with transformers: "
        f"AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def _from_vocabulary(path: Path, config: ModelConfig) -> dict[str, Any]:
    """WordPiece as BERT has it: a piece a line, lower case unless tokenizer_config.json says no."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece

    try:
        pieces = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ptkit.CheckpointError(f"{path}: can't be read: {error}") from None
    ids = {piece: index for index, piece in enumerate(pieces)}
    missing = [name for name in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if name not in ids]
    if missing:
        raise ptkit.CheckpointError(
            f"{path}: has no {', '.join(missing)}; a BERT vocabulary has a piece a line, these too"
        )
    settings = _optional_json(config.folder / "tokenizer_config.json")
    made = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    made.add_special_tokens([n for n in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if n in ids])
    data: dict[str, Any] = json.loads(made.to_str())
    return data


def _from_merges(folder: Path, config: ModelConfig) -> dict[str, Any]:
    """Byte-level BPE as RoBERTa and GPT-2 have it; RoBERTa-likes get their template."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    settings = _optional_json(folder / "tokenizer_config.json")
    space = bool(settings.get("add_prefix_space", False))
    try:
        vocabulary, merges = (str(folder / name) for name in ("vocab.json", "merges.txt"))
        made = Tokenizer(BPE.from_file(vocabulary, merges))
    except Exception as error:  # the library raises nothing more special
        raise ptkit.CheckpointError(
            f"{folder}: vocab.json and merges.txt are no BPE ({error})"
        ) from None
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    made.decoder = decoders.ByteLevel()
    ids = made.get_vocab()
    if config.family.after_padding and {"<s>", "</s>"} <= ids.keys():
        made.post_processor = processors.RobertaProcessing(
            ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=space
        )
    names = ("<s>", "</s>", "<pad>", "<mask>", "<|endoftext|>")
    made.add_special_tokens([name for name in names if name in ids])
    data: dict[str, Any] = json.loads(made.to_str())
    return data


def _ids_of(data: Mapping[str, Any]) -> dict[str, int]:
    """Every token of tokenizer.json and its id."""
    vocabulary = data.get("model", {}).get("vocab") or {}
    ids = (
        {entry[0]: index for index, entry in enumerate(vocabulary)}
        if isinstance(vocabulary, list)  # Unigram: pieces with scores
        else dict(vocabulary)
    )
    ids.update((token["content"], token["id"]) for token in data.get("added_tokens") or ())
    return ids


def stripped(data: Mapping[str, Any], control: frozenset[int]) -> dict[str, Any]:
    """``data`` without template and control tokens; pieces of control tokens can't be reached."""
    kept = {key: value for key, value in data.items() if key not in ("truncation", "padding")}
    kept["post_processor"] = None
    added = [token for token in data.get("added_tokens") or () if token["id"] not in control]
    kept["added_tokens"] = added
    model = dict(kept["model"])
    vocabulary, unknown = model["vocab"], model.get("unk_token")
    # the library numbers added tokens anew, behind the vocabulary, unless they are pieces of it
    behind = {token["id"]: token["content"] for token in added}
    if isinstance(vocabulary, list):
        model["vocab"] = [
            [_UNREACHABLE + piece if index in control else piece, score]
            for index, (piece, score) in enumerate(vocabulary)
        ]
        lowest = min((score for _, score in vocabulary), default=0.0)
        model["vocab"] += [
            [behind.get(index, f"{_UNREACHABLE}{index}"), lowest]
            for index in range(len(vocabulary), max(behind, default=-1) + 1)
        ]
    else:
        hidden = {piece for piece, index in vocabulary.items() if index in control} - {unknown}
        model["vocab"] = {
            **{content: index for index, content in behind.items()},
            **{
                _UNREACHABLE + piece if piece in hidden else piece: index
                for piece, index in vocabulary.items()
            },
        }
    kept["model"] = model
    return kept


def without_beginning(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` without what marks a text's beginning: Llama's and T5's "▁", RoBERTa's blank."""
    changed = copy.copy(dict(data))
    for key in ("normalizer", "pre_tokenizer"):
        changed[key] = _unmarked(data.get(key))
    return changed


def _unmarked(step: Any) -> Any:
    if not isinstance(step, Mapping):
        return step
    kind, step = step.get("type"), dict(step)
    if kind == "Sequence":
        for key in ("normalizers", "pretokenizers"):
            if key in step:
                inner = [_unmarked(part) for part in step[key]]
                step[key] = [part for part in inner if part is not None]
    elif kind == "Prepend":
        return None
    elif kind == "Metaspace":
        step |= {"prepend_scheme": "never"}
        step.pop("add_prefix_space", None)
    elif kind == "ByteLevel":
        step["add_prefix_space"] = False
    return step
