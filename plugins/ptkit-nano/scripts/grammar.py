"""A seeded grammar of product descriptions: attribute lists, and texts that put them into words.

A *style* fixes how a shop writes: its opening and closing, which phrases it prefers, in which order
it takes the attributes. Pretraining sees thousands of styles; the quickstart's own are the *house
styles*, one a product type, whose openings and closings belong to no pretraining style.

Which attribute pairs may meet is decided by a hash, so that the quickstart asks for combinations
that pretraining never showed: see :func:`split_of`.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal, TypeAlias

from lexicon import (
    ATTRIBUTES,
    CLOSINGS,
    HOUSE,
    OPENINGS,
    PHRASES,
    PRODUCTS,
    RARE_CHARACTERS,
)

Pair: TypeAlias = tuple[str, str]
Split: TypeAlias = Literal["pretraining", "train", "validation"]

TYPE_KEY = "类型"
_BUCKETS = 40


@lru_cache(maxsize=1 << 18)
def _bucket(first: Pair, second: Pair) -> int:
    low, high = sorted(("#".join(first), "#".join(second)))
    return zlib.crc32(f"{low}|{high}".encode()) % _BUCKETS


def split_of(pairs: Sequence[Pair]) -> Split:
    """The only split that may hold a product with these attributes.

    Any two attributes fall into one of 40 buckets by a CRC. Bucket 1 is kept for validation, bucket
    0 for training and validation; pretraining has neither. So every validation row holds two
    attributes that never meet in training or pretraining, and every training row two that never
    meet in pretraining.
    """
    buckets = {_bucket(first, second) for first, second in itertools.combinations(pairs, 2)}
    if 1 in buckets:
        return "validation"
    return "train" if 0 in buckets else "pretraining"


@dataclass(frozen=True, slots=True)
class Item:
    """One product: its type and its other attributes, in the order in which they are listed."""

    kind: str
    pairs: tuple[Pair, ...]

    @property
    def all_pairs(self) -> tuple[Pair, ...]:
        return ((TYPE_KEY, self.kind), *self.pairs)

    @property
    def content(self) -> str:
        """As ADGEN writes it.

        >>> Item("裙", (("颜色", "红色"), ("裙长", "短裙"))).content
        '类型#裙*颜色#红色*裙长#短裙'
        """
        return "*".join(f"{key}#{value}" for key, value in self.all_pairs)


@dataclass(frozen=True, slots=True)
class Style:
    """How one shop writes.

    ``picks[group]`` are (head, tail) pairs, the favourite first. ``moved`` is a key that goes to
    the front or to the back; the others keep the order of the list.
    """

    opening: str
    closing: str
    noun: int
    picks: Mapping[str, tuple[tuple[str, str], ...]]
    order: Literal["listed", "reversed", "front", "back"]
    moved: str
    comma: str
    stop: str

    def describe(self, item: Item, rng: Random) -> str:
        noun = PRODUCTS[item.kind].nouns[self.noun]
        clauses = []
        for key, value in self.ordered(item.pairs):
            picks = self.picks[ATTRIBUTES[key].group]
            head, tail = picks[0] if rng.random() < 0.8 else rng.choice(picks)
            clauses.append(f"{head.format(v=value)}{self.comma}{tail}")
        body = self.stop.join(clauses)
        return f"{self.opening.format(n=noun)}{body}。{self.closing}"

    def ordered(self, pairs: tuple[Pair, ...]) -> list[Pair]:
        if self.order == "listed":
            return list(pairs)
        if self.order == "reversed":
            return list(pairs[::-1])
        moved = [pair for pair in pairs if ATTRIBUTES[pair[0]].group == self.moved]
        rest = [pair for pair in pairs if ATTRIBUTES[pair[0]].group != self.moved]
        return moved + rest if self.order == "front" else rest + moved


def random_style(rng: Random) -> Style:
    """A style of a pretraining shop."""
    picks = {}
    for group, phrases in PHRASES.items():
        count = rng.choice((1, 1, 2, 3))
        picks[group] = tuple(
            (rng.choice(phrases.heads), rng.choice(phrases.tails)) for _ in range(count)
        )
    return Style(
        opening=rng.choice(OPENINGS),
        closing=rng.choice(CLOSINGS),
        noun=rng.randrange(3),
        picks=picks,
        order=rng.choice(("listed", "listed", "reversed", "front", "back")),
        moved=rng.choice(("颜色", "风格", "材质", "图案", "款型", "版型", "细节")),
        comma=rng.choice(("，", "，", "")),
        stop=rng.choice(("。", "，", "；")),
    )


def house_style(kind: str) -> Style:
    """The quickstart's style for a type: its own opening and closing, the style word always last.

    It differs from type to type, so that no single text is a good answer to every query.
    """
    rng = Random(f"house-{kind}")
    picks = {}
    for group, phrases in PHRASES.items():
        heads = rng.sample(phrases.heads, 2)
        tails = rng.sample(phrases.tails, 2)
        picks[group] = ((heads[0], tails[0]), (heads[1], tails[1]))
    opening, closing = HOUSE[kind]
    return Style(
        opening=opening,
        closing=closing,
        noun=0,
        picks=picks,
        order="back",
        moved="风格",
        comma="，",
        stop="；",
    )


def _rare_value(rng: Random) -> str:
    return "".join(rng.choice(RARE_CHARACTERS) for _ in range(rng.choice((2, 2, 3, 3, 4))))


def random_item(
    rng: Random,
    split: Split,
    *,
    kinds: Sequence[str] = tuple(PRODUCTS),
    fewest: int,
    most: int,
    rare: float = 0.0,
) -> Item:
    """A product of one of ``kinds`` that ``split`` may hold.

    ``rare`` is the chance of each value to be a made-up word instead of a real one: such values
    can't be guessed, so they teach a model to copy.
    """
    while True:
        kind = rng.choice(kinds)
        keys = PRODUCTS[kind].keys
        chosen = rng.sample(keys, min(len(keys), rng.randint(fewest, most)))
        pairs = tuple(
            (
                key,
                _rare_value(rng) if rng.random() < rare else rng.choice(ATTRIBUTES[key].values),
            )
            for key in chosen
        )
        item = Item(kind, pairs)
        if split_of(item.all_pairs) == split:
            return item


def house_rows(split: Literal["train", "validation"], count: int) -> list[dict[str, str]]:
    """``count`` different rows ``{"content", "summary"}`` of three or four attributes each."""
    rng = Random(f"quickstart-{split}")
    styles = {kind: house_style(kind) for kind in PRODUCTS}
    rows: dict[frozenset[Pair], dict[str, str]] = {}
    while len(rows) < count:
        item = random_item(rng, split, fewest=3, most=4)
        key = frozenset(item.all_pairs)
        if key not in rows:
            rows[key] = {"content": item.content, "summary": styles[item.kind].describe(item, rng)}
    return list(rows.values())
