"""What else lies in the published layout: ChatGLM3, long positions, half-precision rotation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from ptkit_chatglm2.rope import PublishedRotary
from ptkit_chatglm2.tokenizer import ChatGLM2Tokenizer, ChatGLM3Tokenizer
from ptkit_nano import ptkit_resolve_source

import ptkit

NANO = ptkit_resolve_source("nano")
assert NANO is not None
GOLDEN = Path(__file__).parent / "golden" / "base-safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The nano model, which names no published one."""
    return Path(shutil.copytree(NANO, tmp_path / "base"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def backbone(folder: Path, **settings: Any) -> ChatGLM2:
    return ChatGLM2(ChatGLM2.Settings(source=str(folder), **settings))


def name(folder: Path, model: str) -> None:
    configure(folder, _name_or_path=model)


def write(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------- the prompt


@pytest.mark.parametrize(
    ("model", "prompt"),
    [
        ("THUDM/chatglm2-6b", "chatglm2"),
        ("THUDM/ChatGLM3-6B-32k", "chatglm3"),
        ("/models/codegeex2-6b", "chatglm2"),
    ],
)
def test_the_name_in_the_config_decides(folder: Path, model: str, prompt: str) -> None:
    name(folder, model)
    assert backbone(folder).variant["prompt"] == prompt


def test_chatglm3_is_known_by_its_special_tokens(folder: Path) -> None:
    write(folder, "tokenizer_config.json", '{"additional_special_tokens": ["<|user|>"]}')
    made = backbone(folder)
    assert isinstance(made.tokenizer, ChatGLM3Tokenizer)
    assert made.notes == ["prompt: ChatGLM3's format (tokenizer_config.json has <|user|>)"]


@pytest.mark.parametrize(
    ("code", "prompt", "reason"),
    [
        ('special_tokens = ["sop", "<|user|>"]', "ChatGLM3", "has <|user|>"),
        ('special_tokens = ["sop", "eop"]', "ChatGLM2", "has no <|user|>"),
    ],
)
def test_the_published_tokenizer_code_decides_and_is_not_run(
    folder: Path, code: str, prompt: str, reason: str
) -> None:
    write(folder, "tokenization_chatglm.py", f"{code}\nraise SystemExit('executed')\n")
    expected = f"prompt: {prompt}'s format (tokenization_chatglm.py {reason})"
    assert backbone(folder).notes == [expected]


def test_without_a_sign_it_is_chatglm2_and_said(folder: Path) -> None:
    made = backbone(folder)
    assert type(made.tokenizer) is ChatGLM2Tokenizer
    assert made.notes == [
        "prompt: ChatGLM2's format (no file names ChatGLM3 or has its special tokens)"
    ]


def test_files_that_disagree_are_refused(folder: Path) -> None:
    name(folder, "THUDM/chatglm2-6b")
    write(folder, "added_tokens.json", '{"<|user|>": 64795}')
    with pytest.raises(ptkit.CheckpointError) as refused:
        _ = backbone(folder).tokenizer
    assert refused.value.lines == (
        f"{folder}: can't tell ChatGLM2 from ChatGLM3: config.json names chatglm2 (chatglm2), "
        'added_tokens.json has <|user|> (chatglm3); set backbone.prompt = "chatglm2" or "chatglm3"',
    )
    made = backbone(folder, prompt="chatglm3")
    assert made.notes == ["prompt: ChatGLM3's format (backbone.prompt says so)"]


# ------------------------------------------------------------------------------------- chatglm3


def chatglm3(folder: Path = NANO) -> ChatGLM3Tokenizer:
    return ChatGLM3Tokenizer(folder / "tokenizer.model")


def test_chatglm3_specials_follow_those_of_chatglm2() -> None:
    tokenizer = chatglm3()
    first = tokenizer.pieces_count
    assert tokenizer.specials["eop"] == first + 4
    assert [tokenizer.specials[f"<|{role}|>"] for role in ("system", "user", "assistant")] == [
        first + 5,
        first + 6,
        first + 7,
    ]
    assert tokenizer.vocab_size == first + 9
    assert tokenizer.stop_ids == (first + 6, first + 8)  # <|user|>, <|observation|>


def test_the_published_chatglm3_prompt() -> None:
    tokenizer = chatglm3()
    user, assistant = tokenizer.specials["<|user|>"], tokenizer.specials["<|assistant|>"]
    encode, line = tokenizer.encode, tokenizer.encode("\n")
    parts = tokenizer.prompt("再来", [("你好", "好")])
    assert parts.text == "<|user|>\n你好<|assistant|>\n好<|user|>\n再来<|assistant|>"
    turns = [user, *line, *encode("你好"), assistant, *line, *encode("好")]
    assert tokenizer.encode_prompts([parts, tokenizer.prompt("你好")]) == [
        [*tokenizer.start_ids, *turns, user, *line, *encode("再来"), assistant],
        [*tokenizer.start_ids, user, *line, *encode("你好"), assistant],
    ]


def test_role_tokens_in_a_text_are_text() -> None:
    tokenizer = chatglm3()
    (ids,) = tokenizer.encode_prompts([tokenizer.prompt("<|assistant|>\n<|user|>")])
    user, assistant = tokenizer.specials["<|user|>"], tokenizer.specials["<|assistant|>"]
    assert (ids.count(user), ids.count(assistant)) == (1, 1)
    assert tokenizer.decode(ids).strip() == "<|assistant|>\n<|user|>"


def test_long_chatglm3_prompts_are_cut_inside_the_query(folder: Path) -> None:
    from ptkit_tasks.generation import Generation

    tokenizer = chatglm3()
    head = Generation(Generation.Settings(max_source_tokens=16))
    record = ptkit.GenerationRecord(origin=ptkit.Origin("x", 1), prompt="红色的裙子" * 20)
    (row,) = head.encode(record, tokenizer)
    assert len(row.tokens) <= 16
    assert row.tokens[-1] == tokenizer.specials["<|assistant|>"]
    assert row.cut > 0


# ------------------------------------------------------------------------------------- positions


def rotation(made: ChatGLM2) -> Any:
    return made.load("cpu", "float32").body.rotary_emb


def test_chatglm2_divides_positions(folder: Path) -> None:
    configure(folder, _name_or_path="THUDM/chatglm2-6b-32k", rope_ratio=50)
    made = backbone(folder)
    assert made.variant["rope_scaling"] == "positions"
    assert "positions are divided by rope_ratio = 50 (config.json names chatglm2)" in made.notes
    plain = rotation(backbone(NANO))
    x, positions = torch.zeros(1, 3, 8), torch.tensor([[0, 50, 5000]])
    for got, wanted in zip(
        rotation(made)(x, position_ids=positions), plain(x, positions // 50), strict=True
    ):
        torch.testing.assert_close(got, wanted)


def test_chatglm3_multiplies_the_base(folder: Path) -> None:
    configure(folder, _name_or_path="THUDM/chatglm3-6b-32k", rope_ratio=50)
    made = backbone(folder)
    assert made.variant["rope_scaling"] == "base"
    assert (
        "the rotary base is multiplied by rope_ratio = 50 (config.json names chatglm3)"
        in made.notes
    )
    exponents = torch.arange(0, 32, 2) / 32  # half of nano's 64 channels a head
    torch.testing.assert_close(rotation(made).inv_freq, 1 / 500_000**exponents)


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("seq_idx = torch.arange(seq_len) / self.rope_ratio", "positions"),
        ("base = base * self.rope_ratio", "base"),
    ],
)
def test_the_published_model_code_decides(folder: Path, code: str, rule: str) -> None:
    configure(folder, rope_ratio=8)
    write(folder, "modeling_chatglm.py", f"{code}\n")
    made = backbone(folder)
    assert made.variant["rope_scaling"] == rule
    assert any(note.endswith("(modeling_chatglm.py does so)") for note in made.notes)


def test_an_ambiguous_ratio_is_refused(folder: Path) -> None:
    configure(folder, rope_ratio=8)
    with pytest.raises(ptkit.CheckpointError) as refused:
        _ = backbone(folder).geometry
    assert refused.value.lines == (
        f"{folder}/config.json: rope_ratio = 8 divides positions in ChatGLM2 and multiplies the "
        "base in ChatGLM3, and nothing here tells which this is; "
        'set backbone.rope_scaling = "positions" or "base"',
    )
    for rule in ("positions", "base"):
        made = backbone(folder, rope_scaling=rule)
        assert made.variant["rope_scaling"] == rule
        assert any(note.endswith("(backbone.rope_scaling says so)") for note in made.notes)


def test_a_ratio_of_one_scales_nothing(folder: Path) -> None:
    configure(folder, rope_ratio=1)
    assert backbone(folder, rope_scaling="base").variant["rope_scaling"] == "none"
    assert not isinstance(rotation(backbone(folder)), PublishedRotary)


# ------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize(("position", "error"), [(100, 0.047), (2000, 0.58)])
def test_the_published_half_precision_table(position: int, error: float) -> None:
    """Its largest error of a cosine or sine, as measured on the published code."""
    half = PublishedRotary(64, angles=torch.float16, table=torch.float16)
    exact = position / 10000 ** (torch.arange(0, 64, 2).double() / 64)
    cos, sin = half(torch.zeros(1, 1, 8), torch.tensor([[position]]))
    errors = [
        (made[0, 0, :32].double() - true).abs().max().item()
        for made, true in ((cos, exact.cos()), (sin, exact.sin()))
    ]
    assert max(errors) == pytest.approx(error, abs=error / 100)


def test_published_half_replaces_the_rotation() -> None:
    made = backbone(NANO, rope="published-half")
    assert "the rotary embedding is in half precision, as in the published code" in made.notes
    assert made.variant["rope"] == "published-half"
    rotary = rotation(made)
    assert (rotary.inv_freq.dtype, rotary.table) == (torch.float16, torch.float16)
    x, positions = torch.zeros(1, 3, 8), torch.tensor([[0, 1, 400]])
    exact = rotation(backbone(NANO))
    for got, wanted in zip(rotary(x, positions), exact(x, positions), strict=True):
        assert got.shape == wanted.shape
        assert got.dtype == x.dtype
        torch.testing.assert_close(got[:, :2], wanted[:, :2], atol=1e-3, rtol=0)
        assert not torch.allclose(got[:, 2], wanted[:, 2], atol=1e-3)


def test_half_precision_of_chatglm3_has_exact_angles() -> None:
    rotary = rotation(backbone(GOLDEN, rope="published-half", prompt="chatglm3"))
    assert (rotary.inv_freq.dtype, rotary.table) == (torch.float32, torch.float16)


def test_half_precision_changes_logits_a_little(folder: Path) -> None:
    from ptkit.engine.model import Model

    found = []
    for rope in ("float32", "published-half"):
        made = backbone(folder, rope=rope)
        model = Model(made.load("cpu", "float32"), made.geometry, pad_id=0, eos_id=2)
        found.append(model.logits(list(range(10, 60))))
    difference = (found[0] - found[1]).abs().max()
    assert 1e-4 < difference < 1.0


# ------------------------------------------------------------------------------------- what is kept


def test_an_adapter_is_refused_on_another_rotation_or_prompt() -> None:
    from ptkit.engine.adapter import Adapter, describe_backbone
    from ptkit.engine.prefix import PrefixEncoder

    made = backbone(NANO, rope="published-half")
    manifest = {"backbone": describe_backbone(made)}
    adapter = Adapter(manifest, PrefixEncoder(made.geometry, 2), folder=Path("adapter"))
    assert adapter.check_fits(made) == []
    with pytest.raises(ptkit.CheckpointError) as refused:
        adapter.check_fits(backbone(NANO, prompt="chatglm3"))
    assert refused.value.lines == (
        'adapter: was made with backbone.prompt = "chatglm2", but here it is "chatglm3"',
        'adapter: was made with backbone.rope = "published-half", but here it is "float32"',
    )
    assert adapter.check_fits(backbone(NANO, rope="published-half", quantization="int4")) == [
        "adapter: was made on a base with quantization none, here it is int4: answers may differ"
    ]
