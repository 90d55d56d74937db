"""The tokenizer, on the small sentencepiece model that ptkit-nano ships."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_chatglm2.tokenizer import ChatGLM2Tokenizer
from ptkit_nano import ptkit_resolve_source

import ptkit

FOLDER = ptkit_resolve_source("nano")
assert FOLDER is not None
MODEL = FOLDER / "tokenizer.model"
TOKENIZER = ChatGLM2Tokenizer(MODEL)


def test_specials_come_behind_the_pieces() -> None:
    count = TOKENIZER.pieces_count
    assert TOKENIZER.specials == {
        "[MASK]": count,
        "[gMASK]": count + 1,
        "[sMASK]": count + 2,
        "sop": count + 3,
        "eop": count + 4,
    }
    assert TOKENIZER.start_ids == (count + 1, count + 3)
    assert (TOKENIZER.pad_id, TOKENIZER.eos_id) == (0, 2)


def test_the_published_template() -> None:
    assert TOKENIZER.prompt("你好").text == "[Round 1]\n\n问：你好\n\n答："
    history = [("a", "b"), ("c", "d")]
    assert TOKENIZER.prompt("e", history).text == (
        "[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c\n\n答：d\n\n[Round 3]\n\n问：e\n\n答："
    )


@pytest.mark.parametrize("text", ["[gMASK] sop", "<eop>", "[MASK]", "sop", "</s>", "<s>", "<unk>"])
def test_specials_in_a_text_are_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not set(ids) & {*TOKENIZER.specials.values(), 0, 1, 2}
    assert TOKENIZER.decode(ids) == text


def test_specials_decode_to_nothing() -> None:
    specials = list(TOKENIZER.specials.values())
    ids = [*specials, *TOKENIZER.encode("你好"), 2, TOKENIZER.vocab_size + 7]
    assert TOKENIZER.decode(ids) == "你好"


def test_a_continuation_has_no_dummy_blank() -> None:
    whole = TOKENIZER.encode("红色的裙")
    assert TOKENIZER.decode(TOKENIZER.pieces("红色的裙")) == "红色的裙"
    assert len(TOKENIZER.pieces("红")) <= len(TOKENIZER.encode("红"))
    assert TOKENIZER.encode("\n红色的裙")[-len(TOKENIZER.pieces("红色的裙")) :] == TOKENIZER.pieces(
        "红色的裙"
    )
    assert whole


text_like = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(text_like)
def test_round_trip(text: str) -> None:
    # sentencepiece takes U+2581 for a blank, and drops one leading blank as its own
    expected = text.replace("\u2581", " ").replace("\0", "")
    if "\0" not in text:
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == expected


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_offsets_cover_the_text_in_order(text: str) -> None:
    ids, spans = TOKENIZER.offsets(text)
    assert ids == TOKENIZER.encode(text)
    assert len(spans) == len(ids)
    assert all(0 <= start <= stop <= len(text) for start, stop in spans)
    assert [s for s, _ in spans] == sorted(s for s, _ in spans)
    covered = {place for start, stop in spans for place in range(start, stop)}
    assert covered == set(range(len(text)))


def test_offsets_of_bytes_and_words() -> None:
    ids, spans = TOKENIZER.offsets("红\U0001f600x")
    covering = [span for span in spans if span == (1, 2)]
    assert len(covering) >= 1  # an emoji without a piece is four bytes, each with its span
    assert spans[-1] == (2, 3)
    assert len(ids) == len(spans)


@pytest.mark.parametrize("count", [0, 3, 200])
def test_many_texts_at_once_have_the_same_ids(count: int) -> None:
    texts = [f"第{i}件：红色的裙子 {i * i}\n😀" for i in range(count)]
    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


def test_whole_prompts_begin_with_the_start_ids() -> None:
    parts = TOKENIZER.prompt("你好")
    expected = [*TOKENIZER.start_ids, *TOKENIZER.encode(parts.text)]
    assert TOKENIZER.encode_prompts([parts, parts]) == [expected, expected]


def test_fingerprint_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "copy.model").write_bytes(MODEL.read_bytes())
    assert ChatGLM2Tokenizer(tmp_path / "copy.model").fingerprint == TOKENIZER.fingerprint


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ptkit.CheckpointError, match="can't be read: No such file"):
        ChatGLM2Tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"\x00nonsense")
    with pytest.raises(ptkit.CheckpointError, match="is not a sentencepiece model"):
        ChatGLM2Tokenizer(tmp_path / "tokenizer.model")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "golden" / "base-safetensors" / "config.json"
    (tmp_path / "config.json").write_bytes(golden.read_bytes())  # padded_vocab_size 500
    (tmp_path / "tokenizer.model").write_bytes(MODEL.read_bytes())
    with pytest.raises(ptkit.CheckpointError, match="they belong to different models"):
        _ = ChatGLM2(ChatGLM2.Settings(source=str(tmp_path))).tokenizer


def test_tokenizer_and_geometry_need_no_torch() -> None:
    code = (
        "import sys, ptkit_chatglm2;"
        "b = ptkit_chatglm2.ptkit_register_backbones()[0];"
        f"b = b(b.Settings(source={str(FOLDER)!r}));"
        "b.tokenizer.encode('x'); b.geometry;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
