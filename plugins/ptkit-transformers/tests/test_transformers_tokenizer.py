"""Tokenizers: ids as transformers gives them, control tokens only where the template has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ptkit_transformers.backbone import CausalLM, TransformersBackbone
from ptkit_transformers.template import read_template
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer

import ptkit

MakeFolder = Callable[..., Path]
MakeBackbone = Callable[..., TransformersBackbone]

TEXT = ["a red dress", "a red skirt with a red belt", "the dress is red", "好看的红色连衣裙"] * 5
MARKS = ["<s>", "<pad>", "</s>", "<unk>"]


def byte_level(*, space: bool = False) -> Tokenizer:
    """As RoBERTa and GPT-2: a blank belongs to the word behind it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(vocab_size=320, special_tokens=MARKS, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    made.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=space
    )
    return made


def unigram() -> Tokenizer:
    """As XLM-R: "▁" begins a word, and a text."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = UnigramTrainer(
        vocab_size=60, special_tokens=MARKS, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return made


def save(folder: Path, made: Tokenizer | dict[str, Any], **settings: Any) -> None:
    text = json.dumps(made) if isinstance(made, dict) else made.to_str()
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture
def roberta(make_folder: MakeFolder, make_backbone: MakeBackbone) -> ptkit.Tokenizer:
    folder = make_folder(model_type="roberta", vocab_size=400, pad_token_id=1, type_vocab_size=1)
    save(folder, byte_level())
    return make_backbone(folder).tokenizer


@pytest.fixture
def xlmr(make_folder: MakeFolder, make_backbone: MakeBackbone) -> ptkit.Tokenizer:
    folder = make_folder(
        model_type="xlm-roberta", vocab_size=400, pad_token_id=1, type_vocab_size=1
    )
    save(folder, unigram())
    return make_backbone(folder).tokenizer


# ------------------------------------------------------------------------------------ BERT


def test_a_vocabulary_gives_berts_ids(make_backbone: MakeBackbone) -> None:
    """Pieces by hand: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4, "[" 5, "]" 6, hel 7, ##lo 8,
    world 9, sep 10."""
    tokenizer = make_backbone().tokenizer
    assert tokenizer.encode("Hello world 世") == [7, 8, 9, 1]
    assert tokenizer.encode_batch(["hello", "", "world"]) == [[7, 8], [], [9]]
    assert tokenizer.offsets("Hello  world") == ([7, 8, 9], [(0, 3), (3, 5), (7, 12)])
    assert tokenizer.decode([2, 7, 8, 9, 3, 0]) == "hello world"
    assert (tokenizer.start_ids, tokenizer.eos_id, tokenizer.pad_id) == ((2,), 3, 0)
    assert tokenizer.stop_ids == ()


def test_a_vocabulary_that_keeps_case(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    folder = make_folder()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    assert make_backbone(folder).tokenizer.encode("Hello hello") == [1, 7, 8]


def test_text_never_becomes_a_control_token(make_backbone: MakeBackbone) -> None:
    assert make_backbone().tokenizer.encode("[SEP] [CLS]") == [5, 10, 6, 5, 1, 6]


def test_bert_joins_with_types(make_backbone: MakeBackbone) -> None:
    tokenizer = make_backbone().tokenizer
    assert tokenizer.join([7, 8]) == ptkit.Joined((2, 7, 8, 3), (0, 0, 0, 0), 1, 3)
    assert tokenizer.join([7, 8], [9]) == ptkit.Joined((2, 7, 8, 3, 9, 3), (0, 0, 0, 0, 1, 1), 1, 4)


def test_models_of_one_type_get_none(make_backbone: MakeBackbone) -> None:
    tokenizer = make_backbone(type_vocab_size=1).tokenizer
    assert tokenizer.join([7], [9]).token_types == ()


def test_ids_and_joins_equal_transformers(
    make_folder: MakeFolder, make_backbone: MakeBackbone
) -> None:
    from transformers import BertTokenizer

    folder = make_folder()
    theirs = BertTokenizer(str(folder / "vocab.txt"))
    ours = make_backbone(folder).tokenizer
    for text in ("hello, WORLD!", "wörld 世界", "hello"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    both = theirs("hello world", "sep")
    joined = ours.join(ours.encode("hello world"), ours.encode("sep"))
    assert list(joined.tokens) == both["input_ids"]
    assert list(joined.token_types) == both["token_type_ids"]


# -------------------------------------------------------------------------- RoBERTa and XLM-R


@pytest.mark.parametrize("name", ["roberta", "xlmr"])
def test_pairs_have_two_marks_between(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    assert tokenizer.join([9, 8], [7]) == ptkit.Joined((0, 9, 8, 2, 2, 7, 2), (), 1, 5)
    assert tokenizer.join([9]) == ptkit.Joined((0, 9, 2), (), 1, 2)
    assert (tokenizer.start_ids, tokenizer.eos_id, tokenizer.pad_id) == ((0,), 2, 1)


@pytest.mark.parametrize("name", ["roberta", "xlmr"])
def test_no_piece_stands_for_a_control_token(name: str, request: pytest.FixtureRequest) -> None:
    """A vocabulary has "</s>" among its pieces, and Unigram would take it for a piece of text."""
    tokenizer = request.getfixturevalue(name)
    for text in ("</s>", "red </s> dress", "<s><pad></s>"):
        for ids in (tokenizer.encode(text), tokenizer.pieces(text), tokenizer.offsets(text)[0]):
            assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode([0, *tokenizer.encode("a red dress"), 2, 1]) == "a red dress"


@pytest.mark.parametrize(("name", "made"), [("roberta", byte_level()), ("xlm-roberta", unigram())])
def test_added_tokens_keep_their_ids(
    name: str, made: Tokenizer, make_folder: MakeFolder, make_backbone: MakeBackbone
) -> None:
    """Such as "<think>", which is not special: those before it, which are, are taken out."""
    made.add_special_tokens(["<start>", "<end>"])
    made.add_tokens(["<think>"])
    folder = make_folder(model_type=name, vocab_size=400, pad_token_id=1, type_vocab_size=1)
    save(folder, made)
    tokenizer = make_backbone(folder).tokenizer
    think = made.token_to_id("<think>")
    assert think == made.get_vocab_size() - 1
    wanted = made.encode("red <think> dress", add_special_tokens=False).ids
    assert think in wanted
    assert tokenizer.encode("red <think> dress") == wanted
    assert think in tokenizer.pieces("red <think> dress")
    assert tokenizer.decode([think]) == "<think>"
    start = made.token_to_id("<start>")
    assert not {start, start + 1} & {*tokenizer.encode("<start> red <end>")}


def test_a_continuation_has_no_mark_of_a_beginning(xlmr: ptkit.Tokenizer) -> None:
    made = unigram()
    assert xlmr.encode("red dress") == made.encode("red dress", add_special_tokens=False).ids
    whole, inner = xlmr.encode("dress"), xlmr.pieces("dress")
    assert xlmr.decode(inner) == "dress"
    assert made.id_to_token(whole[0]).startswith("▁")
    assert not made.id_to_token(inner[0]).startswith("▁")


def test_byte_level_blanks(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    """A tokenizer that puts a blank before a text puts none before a continuation."""
    folder = make_folder(model_type="roberta", vocab_size=400, pad_token_id=1)
    save(folder, byte_level(space=True))
    tokenizer = make_backbone(folder).tokenizer
    assert tokenizer.encode("red") == tokenizer.pieces(" red")
    assert tokenizer.encode("red") != tokenizer.pieces("red")


@pytest.mark.parametrize("name", ["roberta", "xlmr"])
def test_spans_are_characters_without_blanks(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer, text = request.getfixturevalue(name), "a red  连衣裙 dress"
    ids, spans = tokenizer.offsets(text)
    assert ids == tokenizer.encode(text)
    covered = {i for start, stop in spans for i in range(start, stop)}
    assert covered >= {i for i, character in enumerate(text) if not character.isspace()}
    assert all(not text[start].isspace() for start, stop in spans if text[start:stop].strip())


def test_llamas_old_normalizer_goes_without_its_mark(
    make_folder: MakeFolder, make_backbone: MakeBackbone
) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "r": 4, "▁r": 5}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "r")], unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    folder = make_folder(model_type="llama", eos_token_id=2, num_key_value_heads=1)
    save(folder, made, eos_token="</s>")
    tokenizer = make_backbone(folder, kind=CausalLM).tokenizer
    assert (tokenizer.encode("r r"), tokenizer.pieces("r r")) == ([5, 5], [4, 5])
    assert tokenizer.start_ids == (1,)
    assert tokenizer.join([5], [4]).token_types == ()
    assert tokenizer.join([5]).tokens == (1, 5)


def test_vocab_and_merges(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    folder = make_folder(model_type="roberta", vocab_size=400, pad_token_id=1)
    (folder / "vocab.txt").unlink()
    byte_level().model.save(str(folder))
    tokenizer = make_backbone(folder).tokenizer
    assert (
        tokenizer.encode("red dress")
        == byte_level().encode("red dress", add_special_tokens=False).ids
    )
    assert tokenizer.join([9], [8]).tokens == (0, 9, 2, 2, 8, 2)


# ------------------------------------------------------------------------------------ ends


def test_what_ends_an_answer(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    """The tokenizer's own eos first, then what the configurations name besides."""
    folder = make_folder(model_type="llama", eos_token_id=[2, 7], num_key_value_heads=1)
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"vocab_size": 16', '"vocab_size": 400')
    )
    save(folder, byte_level(), eos_token={"content": "</s>"}, pad_token="<pad>")
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}', encoding="utf-8")
    tokenizer = make_backbone(folder, kind=CausalLM).tokenizer
    assert (tokenizer.eos_id, tokenizer.stop_ids, tokenizer.pad_id) == (2, (7, 9), 1)


def test_fingerprints_tell_vocabularies_apart(
    make_folder: MakeFolder, make_backbone: MakeBackbone
) -> None:
    folder = make_folder()
    first = make_backbone(folder).tokenizer.fingerprint
    assert make_backbone(folder).tokenizer.fingerprint == first
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8")
    (folder / "vocab.txt").write_text(pieces.replace("world", "word"), encoding="utf-8")
    assert make_backbone(folder).tokenizer.fingerprint != first


# ------------------------------------------------------------------------------------ errors


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(ptkit.CheckpointError) as refused:
        make()
    (line,) = refused.value.lines
    return line


def test_folders_without_a_tokenizer(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    folder = make_folder()
    vocabulary = folder / "vocab.txt"

    def make() -> object:
        return make_backbone(folder).tokenizer

    vocabulary.write_text("[PAD]\n[UNK]\nred", encoding="utf-8")
    assert refusal(make) == (
        f"{vocabulary}: has no [CLS], [SEP]; a BERT vocabulary has a piece a line, these too"
    )
    vocabulary.write_bytes(b"\xff")
    assert refusal(make).startswith(f"{vocabulary}: can't be read: 'utf-8' codec")
    vocabulary.unlink()
    assert refusal(make) == (
        f"{folder}: no tokenizer.json, which ptkit reads; make it once, with transformers: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )
    (folder / "vocab.json").write_text("[]", encoding="utf-8")
    (folder / "merges.txt").write_text("", encoding="utf-8")
    assert refusal(make).startswith(f"{folder}: vocab.json and merges.txt are no BPE (")


def test_a_damaged_tokenizer(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    folder = make_folder(vocab_size=400)
    data = json.loads(byte_level().to_str())
    data["pre_tokenizer"] = {"type": "None such"}
    save(folder, data)
    line = refusal(lambda: make_backbone(folder).tokenizer)
    assert line.startswith(f"{folder / 'tokenizer.json'}: is not a tokenizer (")
    assert line.endswith("); save it again with transformers")


def test_a_tokenizer_without_a_model(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    folder = make_folder()
    save(folder, {"model": {"type": "BPE"}})
    line = refusal(lambda: make_backbone(folder).tokenizer)
    assert line == (
        f"{folder / 'tokenizer.json'}: has no vocabulary under model.vocab; save it again with "
        "transformers"
    )


def test_a_tokenizer_of_another_model(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    folder = make_folder(vocab_size=10)
    assert refusal(lambda: make_backbone(folder).tokenizer) == (
        f"{folder / 'vocab.txt'}: has 11 ids, but vocab_size in config.json is 10; they belong to "
        "different models"
    )


def test_no_end_of_an_answer(make_folder: MakeFolder, make_backbone: MakeBackbone) -> None:
    folder = make_folder(model_type="llama", num_key_value_heads=1)
    assert refusal(lambda: make_backbone(folder, kind=CausalLM).tokenizer) == (
        f"{folder}: no token ends an answer; set eos_token in tokenizer_config.json or "
        "eos_token_id in config.json"
    )


@pytest.mark.parametrize(
    ("processor", "told"),
    [
        ({"type": "BertProcessing", "sep": ["[SEP]", 3]}, "is damaged (KeyError: 'cls')"),
        (
            {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
            "is damaged (ValueError: single must hold the texts A, in this order)",
        ),
    ],
)
def test_damaged_templates(processor: dict[str, Any], told: str) -> None:
    line = refusal(lambda: read_template(processor, Path("t.json")))
    assert line == f"t.json: post_processor {told}; save the tokenizer again with transformers"


def test_unknown_templates() -> None:
    assert refusal(lambda: read_template({"type": "Other"}, Path("t.json"))) == (
        "t.json: post_processor of type 'Other' is not known; known: BertProcessing, ByteLevel, "
        "RobertaProcessing, Sequence, TemplateProcessing"
    )


def test_templates_in_a_sequence() -> None:
    """Llama 3's: the bytes first, then the template."""
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": n, "type_id": 0}} for n in "AB"],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [5], "tokens": ["<s>"]}},
    }
    both = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    assert read_template(both, Path("t.json")).start == (5,)
    assert read_template(None, Path("t.json")).start == ()
