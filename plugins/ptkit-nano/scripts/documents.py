"""What ptkit-nano is pretrained on: product documents, short chats and plain text, seeded.

Product texts appear only in documents: lists, cards, tables and shop pages. In the chat form, a
product's attributes are answered by a question, a refusal or a title. So the skill that the
quickstart needs is there, but the chat prompt alone doesn't call for it.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from grammar import Item, Style, random_item, random_style
from lexicon import PRODUCTS

SOURCES = ("list", "shop", "card", "product chat", "chat", "text")
_SHARES = (0.26, 0.12, 0.12, 0.20, 0.22, 0.08)  # of documents, not of tokens

_RENDERERS: tuple[Callable[[Item, str], str], ...] = (
    lambda item, text: f"{item.content}\n{text}",
    lambda item, text: f"{item.content}\n{text}",
    lambda item, text: f"{item.content} => {text}",
    lambda item, text: f"【属性】{item.content}\n【文案】{text}",
    lambda item, text: f"{item.content}\n\n文案：{text}",
    lambda item, text: f"商品属性：{_joined(item, '=', '；')}\n文案：{text}",
    lambda item, text: f"{_joined(item, '：', '，')}\n→{text}",
    lambda item, text: f"{_joined(item, '：', chr(10))}\n描述：{text}",
    lambda item, text: f"|{_joined(item, '|', '|')}|\n{text}",
    lambda item, text: f"{text}（{_joined(item, '：', '，')}）",
)
_SEPARATORS = ("\n", "\n\n", "\n---\n")
_HEADERS = ("", "", "商品文案\n\n", "新品目录\n", "# 商品描述\n\n", "以下是商品和文案。\n\n")

_SHOP_FIRST = "云花雨素青锦"
_SHOP_SECOND = "裳间舍坊记集"

_ASK = (
    "请问您想了解这款{n}的价格还是尺码？",
    "您好，这款{n}有货，请问需要几件？",
    "请问{n}是您自用还是送人？",
    "您想看看{n}的实物图吗？",
    "这款{n}需要帮您查库存吗？",
    "请问您对{n}有什么要求？",
)
_REFUSE = (
    "抱歉，暂时没有这款{n}的信息。",
    "不好意思，{n}已经卖完了。",
    "对不起，我没有找到这样的{n}。",
    "抱歉，这个问题我还不会回答。",
)
_GREETINGS = (
    ("你好", "你好，我是一个很小的语言模型。"),
    ("你是谁？", "我是一个很小的语言模型。"),
    ("谢谢", "不客气。"),
    ("再见", "再见，祝您生活愉快。"),
)


def _joined(item: Item, inner: str, outer: str) -> str:
    return outer.join(f"{key}{inner}{value}" for key, value in item.all_pairs)


@dataclass(frozen=True, slots=True)
class Document:
    """``answer`` is None for plain text; else ``text`` is a chat prompt that it answers."""

    source: str
    text: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """The plain text: paragraphs a file, poems, and what chats are made from."""

    files: tuple[tuple[str, ...], ...]
    poems: tuple[tuple[str, str, str], ...]  # title, author, text
    terms: tuple[tuple[str, str], ...]  # a term and the sentence that says what it is
    sentences: tuple[str, ...]


def read_corpus(folder: Path, *, held_out: bool) -> Corpus:
    """Read ``*.txt.gz`` and ``poetry.jsonl.gz``; the last fiftieth of each is held out."""
    files, terms, sentences = [], [], []
    for path in sorted(folder.glob("*.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            lines = _part([line.strip() for line in stream], held_out=held_out)
        files.append(tuple(lines))
        for line in lines:
            if match := re.match(r"^([^，。：（“《\s]{2,10})是[^。\s]{8,50}。", line):
                terms.append((match[1], match[0]))
            if match := re.match(r"^[^。\s]{24,70}。", line):
                sentences.append(match[0])
    poems = []
    with gzip.open(folder / "poetry.jsonl.gz", "rt", encoding="utf-8") as stream:
        for line in _part(list(stream), held_out=held_out):
            poem = json.loads(line)
            poems.append((poem["title"], poem["author"], poem["text"]))
    return Corpus(tuple(files), tuple(poems), tuple(terms), tuple(sentences))


def _part(lines: list[str], *, held_out: bool) -> list[str]:
    cut = len(lines) * 49 // 50
    return lines[cut:] if held_out else lines[:cut]


def documents(corpus: Corpus, seed: str) -> Iterator[Document]:
    """An endless, seeded stream of documents."""
    rng = Random(seed)
    makers: dict[str, Callable[[Corpus, Random], Document]] = {
        "list": _list,
        "shop": _shop,
        "card": _card,
        "product chat": _product_chat,
        "chat": _chat,
        "text": _text,
    }
    while True:
        (source,) = rng.choices(SOURCES, _SHARES)
        yield makers[source](corpus, rng)


def _item(rng: Random, kinds: Sequence[str] = tuple(PRODUCTS)) -> Item:
    rare = rng.choice((0.0, 0.0, 0.1, 0.5))
    return random_item(rng, "pretraining", kinds=kinds, fewest=2, most=6, rare=rare)


def _items(rng: Random, styles: Mapping[str, Style], count: int) -> str:
    """``styles``: how each product type that may come is described."""
    kinds = tuple(styles)
    render = rng.choice(_RENDERERS)
    separator = rng.choice(_SEPARATORS)
    number = rng.random() < 0.2
    parts = []
    for index in range(count):
        item = _item(rng, kinds)
        text = render(item, styles[item.kind].describe(item, rng))
        parts.append(f"{index + 1}. {text}" if number else text)
    return separator.join(parts)


def _list(corpus: Corpus, rng: Random) -> Document:
    """Several products: all types in one style, or one or two types, each in a style of its own."""
    count = rng.choice((1, 2, len(PRODUCTS)))
    kinds = rng.sample(tuple(PRODUCTS), count)
    style = random_style(rng)
    styles = {kind: style if count > 2 else random_style(rng) for kind in kinds}
    return Document("list", rng.choice(_HEADERS) + _items(rng, styles, rng.randint(2, 6)))


def _shop(corpus: Corpus, rng: Random) -> Document:
    """A page of a shop that comes again and again, with a fixed style for each product type."""
    name = rng.choice(_SHOP_FIRST) + rng.choice(_SHOP_SECOND)
    styles = {kind: random_style(Random(f"shop-{name}-{kind}")) for kind in PRODUCTS}
    header = rng.choice(("店铺：{}\n", "{}的小店\n\n", "【{}】")).format(name)
    return Document("shop", header + _items(rng, styles, rng.randint(1, 3)))


def _card(corpus: Corpus, rng: Random) -> Document:
    style = random_style(rng)
    return Document("card", _items(rng, dict.fromkeys(PRODUCTS, style), 1))


def _product_turn(rng: Random) -> tuple[str, str]:
    item = _item(rng)
    noun = PRODUCTS[item.kind].nouns[0]
    if rng.random() < 0.3:
        value = rng.choice(item.pairs)[1]
        question = rng.choice(("有{v}的{n}吗？", "{n}有{v}的吗？", "想买{v}的{n}"))
        answer = rng.choice(("有的，{v}的{n}现在有货。", "{v}的{n}下周到货。"))
        return question.format(v=value, n=noun), answer.format(v=value, n=noun)
    chance = rng.random()
    if chance < 0.55:
        return item.content, rng.choice(_ASK).format(n=noun)
    if chance < 0.8:
        return item.content, rng.choice(_REFUSE).format(n=noun)
    return item.content, f"{rng.choice(item.pairs)[1]}{noun}新款"


def _chat_turn(corpus: Corpus, rng: Random) -> tuple[str, str]:
    chance = rng.random()
    if chance < 0.3:
        title, author, text = rng.choice(corpus.poems)
        if rng.random() < 0.2:
            return f"《{title}》的作者是谁？", author
        return rng.choice(("写一首《{}》", "《{}》", "背诵《{}》")).format(title), text[:48]
    if chance < 0.55:
        term, sentence = rng.choice(corpus.terms)
        return rng.choice(("什么是{}？", "{}是什么？", "解释{}")).format(term), sentence
    if chance < 0.95:
        sentence = rng.choice(corpus.sentences)
        cut = len(sentence) // 3
        return rng.choice(("请续写：", "接着写：")) + sentence[:cut], sentence[cut:]
    return rng.choice(_GREETINGS)


def _dialogue(source: str, corpus: Corpus, rng: Random, turn: tuple[str, str]) -> Document:
    """The published chat template, with up to two turns before the last."""
    parts = []
    turns = rng.choice((0, 0, 0, 1, 2))
    for index in range(turns):
        query, answer = _chat_turn(corpus, rng) if rng.random() < 0.6 else _product_turn(rng)
        parts.append(f"[Round {index + 1}]\n\n问：{query}\n\n答：{answer}\n\n")
    parts.append(f"[Round {turns + 1}]\n\n问：{turn[0]}\n\n答：")
    return Document(source, "".join(parts), turn[1])


def _product_chat(corpus: Corpus, rng: Random) -> Document:
    return _dialogue("product chat", corpus, rng, _product_turn(rng))


def _chat(corpus: Corpus, rng: Random) -> Document:
    return _dialogue("chat", corpus, rng, _chat_turn(corpus, rng))


def _text(corpus: Corpus, rng: Random) -> Document:
    if rng.random() < 0.1:
        title, author, text = rng.choice(corpus.poems)
        return Document("text", f"《{title}》{author}\n{text}")
    (lines,) = rng.choices(corpus.files, [len(file) for file in corpus.files])
    start = rng.randrange(len(lines))
    text = ""
    for line in lines[start : start + 40]:
        if len(text) + len(line) > 900:
            break
        text += line + "\n"
    return Document("text", text or lines[start][:900])
