"""Prefixes of the published script and of PEFT, through ``ptkit convert``; PEFT is the real one.

The published outputs are those of ``golden/``, see test_golden.py. The golden base has no
tokenizer, so a sentencepiece model of 300 pieces is made for it.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from ptkit_chatglm2.backbone import ChatGLM2
from safetensors.torch import load_file, save_file

import ptkit
from ptkit import cli

GOLDEN = Path(__file__).parent / "golden"
KINDS = ["prefix", "projection"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    shutil.copytree(GOLDEN / "base-safetensors", folder)
    tokenizer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["[Round 1]\n\n问：a b c\n\n答：d e f"]),
        model_writer=tokenizer,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(tokenizer.getvalue())
    return folder


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call ``ptkit`` in an empty folder; returns (exit code, stdout, stderr)."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def checkpoint(kind: str) -> Path:
    return GOLDEN / f"{kind}-checkpoint"


def copied(kind: str = "prefix") -> Path:
    """A copy of a golden checkpoint in the current folder, to be damaged."""
    return Path(shutil.copytree(checkpoint(kind), "copy", dirs_exist_ok=True))


def change_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    config = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "pytorch_model.bin"
    tensors = dict(torch.load(path, weights_only=True))
    change(tensors)
    torch.save(tensors, path)


IN_MODEL = "transformer.prefix_encoder."
EMBEDDING = f"{IN_MODEL}embedding.weight"


def imported(run: Run, base: Path, source: Path, target: str = "adapter") -> Path:
    code, _, err = run("convert", source, target, "--to", "ptkit", "--backbone", base)
    assert (code, err) == (0, "")
    return Path(target)


# ------------------------------------------------------------------------------ published


@pytest.mark.parametrize("kind", KINDS)
def test_published_logits(run: Run, base: Path, golden: dict[str, torch.Tensor], kind: str) -> None:
    tuned = ptkit.load(base, imported(run, base, checkpoint(kind)), device="cpu")
    for ids, wanted in zip(golden["input_ids"], golden[f"{kind}_logits"], strict=True):
        torch.testing.assert_close(tuned.model.logits(ids.tolist()), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_in_out_and_in_again_changes_no_bit(run: Run, base: Path, kind: str) -> None:
    adapter = imported(run, base, checkpoint(kind))
    code, out, _ = run("convert", adapter, "out", "--to", "published", "--backbone", base)
    width = ", projection of width 64" if kind == "projection" else ""
    assert (code, out) == (
        0,
        f"read adapter: ptkit, 6 virtual tokens{width}\nwrote out: published\n",
    )
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "config.json",
        "pytorch_model.bin",
    ]
    before, after = (
        torch.load(folder / "pytorch_model.bin", weights_only=True)
        for folder in (checkpoint(kind), Path("out"))
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == torch.float32
        assert torch.equal(tensor, after[name])
    written = json.loads(Path("out/config.json").read_text())
    assert json.loads((checkpoint(kind) / "config.json").read_text()).items() <= written.items()
    again = imported(run, base, Path("out"), "again")
    for path in adapter.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_the_manifest_records_the_base_that_was_given(run: Run, base: Path) -> None:
    manifest = json.loads((imported(run, base, checkpoint("prefix")) / "adapter.json").read_text())
    backbone = ChatGLM2(ChatGLM2.Settings(source=str(base)))
    assert manifest["backbone"]["fingerprint"] == backbone.fingerprint
    assert manifest["backbone"]["tokenizer"] == backbone.tokenizer.fingerprint
    assert manifest["recipe"]["backbone"]["source"] == "base"  # no folder
    assert manifest["imported_from"] == "published"


def test_half_precision_is_widened(run: Run, base: Path) -> None:
    folder = copied()
    change_tensors(folder, lambda t: t.update({EMBEDDING: t[EMBEDDING].half()}))
    out = run("convert", folder, "x", "--to", "ptkit", "--backbone", base)[1]
    assert "the numbers were widened to float32" in out.splitlines()
    half = torch.load(folder / "pytorch_model.bin", weights_only=True)[EMBEDDING]
    assert torch.equal(load_file("x/prefix.safetensors")["embedding.weight"], half.float())


def test_published_without_the_base(run: Run, base: Path) -> None:
    adapter = imported(run, base, checkpoint("projection"))
    code, out, _ = run("convert", adapter, "out", "--to", "published")
    assert code == 0
    assert "config.json lacks what only the base knows; add it with --backbone" in out
    config = json.loads(Path("out/config.json").read_text())
    assert (config["pre_seq_len"], config["prefix_projection"], config["num_layers"]) == (
        6,
        True,
        4,
    )
    imported(run, base, Path("out"), "again")


def refused(run: Run, *arguments: str | Path) -> str:
    """The one line of a refusal; nothing is left behind."""
    before = sorted(Path().rglob("*"))
    code, out, err = run("convert", *arguments)
    assert (code, out) == (2, "")
    assert sorted(Path().rglob("*")) == before
    assert len(err.splitlines()) == 1, err
    return err.strip()


def drop_config(folder: Path) -> None:
    """Leave nothing in config.json that says what base it is for."""
    (folder / "config.json").write_text('{"pre_seq_len": 6, "prefix_projection": false}')


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("evil"),)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda f: change_config(f, num_layers=28, kv_channels=128),
            "config.json: is for another base than {base}: num_layers 28, not 4; "
            "kv_channels 128, not 16",
        ),
        (
            lambda f: (
                drop_config(f),
                change_tensors(f, lambda t: t.update({EMBEDDING: t[EMBEDDING][:, :192].clone()})),
            ),
            "copy: has 192 numbers a virtual token, as 3 such layers have, but {base} takes 256 "
            "(4 layers x 2 x 2 key/value groups x 16); it was made for another base",
        ),
        (
            lambda f: change_config(f, pre_seq_len=7),
            "pytorch_model.bin: embedding.weight has the shape [6, 256], but config.json has "
            "pre_seq_len = 7",
        ),
        (
            lambda f: change_config(f, prefix_projection=True),
            "pytorch_model.bin: has no trans.0.bias, no trans.0.weight, no trans.2.bias, no "
            "trans.2.weight, but config.json has prefix_projection = true",
        ),
        (
            lambda f: change_tensors(f, lambda t: t.update({f"{IN_MODEL}x": t[EMBEDDING]})),
            "pytorch_model.bin: has x besides, but config.json has prefix_projection = false",
        ),
        (
            lambda f: change_tensors(f, lambda t: t.update({"lm_head.weight": t[EMBEDDING]})),
            "pytorch_model.bin: must hold transformer.prefix_encoder.* and nothing else, got "
            "lm_head.weight",
        ),
        (
            lambda f: change_tensors(f, lambda t: t.update({EMBEDDING: t[EMBEDDING].int()})),
            f"must hold transformer.prefix_encoder.* and nothing else, got {EMBEDDING}",
        ),
        (
            lambda f: torch.save([1], f / "pytorch_model.bin"),
            "must hold transformer.prefix_encoder.* and nothing else, got nothing",
        ),
        (
            lambda f: change_tensors(f, lambda t: t[EMBEDDING].view(-1)[0].fill_(torch.nan)),
            "copy: has numbers that are not finite; its training failed",
        ),
        (
            lambda f: (f / "pytorch_model.bin").write_bytes(b"PK\3\4 cut"),
            "pytorch_model.bin: can't be read as weights (",
        ),
        (lambda f: torch.save(Evil(), f / "pytorch_model.bin"), "can't be read as weights ("),
        (lambda f: (f / "config.json").write_text("{"), "is no adapter of a known format"),
    ],
)
def test_what_is_wrong_with_a_published_folder(
    run: Run, base: Path, damage: Callable[[Path], Any], line: str
) -> None:
    folder = copied()
    damage(folder)
    said = refused(run, folder, "x", "--to", "ptkit", "--backbone", base)
    assert said.startswith("copy")
    assert line.format(base=base) in said
    assert not Path("evil").exists()


def test_a_projection_of_the_wrong_shape(run: Run, base: Path) -> None:
    folder = copied("projection")
    name = f"{IN_MODEL}trans.2.weight"
    change_tensors(folder, lambda t: t.update({name: t[name].T.clone()}))
    said = refused(run, folder, "x", "--to", "ptkit", "--backbone", base)
    assert said == "copy: is damaged: trans.2.weight [64, 256]"


def test_a_published_folder_needs_its_base(run: Run, base: Path) -> None:
    folder = copied()
    assert refused(run, folder, "x", "--to", "ptkit") == (
        "copy: is a published adapter, which does not say what base it was made for; name it with "
        "--backbone"
    )
    assert refused(run, folder, "x", "--to", "published", "--backbone", base) == (
        "copy: is a published adapter already; copy the folder"
    )


def test_a_width_that_the_published_code_does_not_know(run: Run, base: Path) -> None:
    from ptkit.engine.adapter import describe_backbone, save_adapter
    from ptkit.engine.prefix import PrefixEncoder

    backbone = ChatGLM2(ChatGLM2.Settings(source=str(base)))
    prefix = PrefixEncoder(backbone.geometry, 2, projection_hidden_size=8)
    task = {"kind": "generation", "labels": []}
    manifest = {"backbone": describe_backbone(backbone), "task": task, "recipe": {}}
    save_adapter(Path("narrow"), prefix, {}, manifest)
    assert refused(run, "narrow", "x", "--to", "published") == (
        "narrow: has a projection of width 8; the published code knows none but the model's hidden "
        "size, 64"
    )


# ------------------------------------------------------------------------------ PEFT


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft", reason="the real PEFT is not installed")


@pytest.fixture
def glm(base: Path) -> Any:
    """The golden base as transformers' own model, new for every test: PEFT changes it."""
    from transformers import GlmForCausalLM

    backbone = ChatGLM2(ChatGLM2.Settings(source=str(base)))
    loaded = backbone.load("cpu", "float32")
    model = GlmForCausalLM(backbone.config.transformers())
    model.model, model.lm_head = loaded.body, loaded.lm_head
    return model.eval()


def positions(mask: torch.Tensor) -> torch.Tensor:
    """0, 1, 2… for the real tokens of left-padded rows; PEFT adds the prefix's length."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_an_export(
    run: Run, base: Path, golden: dict[str, torch.Tensor], peft: Any, glm: Any, kind: str
) -> None:
    adapter = imported(run, base, checkpoint(kind))
    code, out, _ = run("convert", adapter, "peft", "--to", "peft", "--backbone", base)
    assert code == 0
    assert ("the projection was worked out" in out) == (kind == "projection")
    model = peft.PeftModel.from_pretrained(glm, "peft").eval()
    ids, mask = golden["left_input_ids"], golden["left_attention_mask"]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask)).logits
        greedy = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=golden[f"{kind}_greedy"].shape[1] - ids.shape[1],
            do_sample=False,
        )
    real = mask.bool()
    wanted = golden[f"{kind}_left_logits"][real]
    torch.testing.assert_close(logits[real], wanted, atol=1e-4, rtol=0)
    for got, published in zip(greedy.tolist(), golden[f"{kind}_greedy"].tolist(), strict=True):
        assert until_eos(got[ids.shape[1] :]) == until_eos(published[ids.shape[1] :])


def until_eos(ids: list[int]) -> list[int]:
    return ids[: ids.index(2)] if 2 in ids else ids


def test_to_peft_and_back(run: Run, base: Path) -> None:
    adapter = imported(run, base, checkpoint("prefix"))
    assert run("convert", adapter, "peft", "--to", "peft", "--backbone", base)[0] == 0
    assert sorted(path.name for path in Path("peft").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    back = load_file(imported(run, base, Path("peft"), "back") / "prefix.safetensors")
    before = load_file(adapter / "prefix.safetensors")["embedding.weight"]
    torch.testing.assert_close(back["embedding.weight"], before, atol=1e-6, rtol=0)
    moved = load_file("peft/adapter_model.safetensors")["prompt_embeddings"]
    moved, before = moved.view(6, 8, 32), before.view(6, 8, 32)  # [p, 2l, g·d]
    assert not torch.allclose(moved[:, 0::2], before[:, 0::2], atol=0.1)
    assert torch.equal(moved[:, 1::2], before[:, 1::2])  # values have no position


def test_published_straight_to_peft(run: Run, base: Path) -> None:
    run("convert", checkpoint("prefix"), "one", "--to", "peft", "--backbone", base)
    imported(run, base, checkpoint("prefix"))
    run("convert", "adapter", "two", "--to", "peft", "--backbone", base)
    for path in Path("one").iterdir():
        assert path.read_bytes() == (Path("two") / path.name).read_bytes()


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_that_peft_made(
    run: Run, base: Path, golden: dict[str, torch.Tensor], peft: Any, glm: Any, projection: bool
) -> None:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=projection
    )
    model = peft.get_peft_model(glm, config).eval()
    model.save_pretrained("made")
    ids = golden["input_ids"]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    tuned = ptkit.load(base, imported(run, base, Path("made")), device="cpu")
    assert tuned.adapter is not None
    assert (tuned.adapter.length, tuned.adapter.prefix.trans) == (5, None)
    for row, logits in zip(ids.tolist(), wanted, strict=True):
        torch.testing.assert_close(tuned.model.logits(row), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("ratio", "settings"),
    [
        (1, {}),
        (4, {"rope_scaling": "positions"}),
        (4, {"rope_scaling": "base"}),
        (4, {"rope_scaling": "positions", "rope": "published-half"}),
    ],
)
def test_the_outline_rotates_as_the_model_and_reads_no_weights(
    run: Run, base: Path, ratio: int, settings: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(base, "model"))
    change_config(folder, rope_ratio=ratio)
    exact = {key: value for key, value in settings.items() if key != "rope"}
    loaded = ChatGLM2(ChatGLM2.Settings(source=str(folder), **exact)).load("cpu", "float32")
    for path in folder.glob("model*"):
        path.unlink()
    outline = ChatGLM2(ChatGLM2.Settings(source=str(folder), **settings)).outline()
    x, places = torch.zeros(1), torch.tensor([[0, 3, 40]])
    for got, wanted in zip(
        outline.body.rotary_emb(x, places), loaded.body.rotary_emb(x, places), strict=True
    ):
        assert torch.equal(got, wanted)


def test_a_peft_prefix_of_another_base(run: Run, base: Path) -> None:
    Path("peft").mkdir()
    Path("peft/adapter_config.json").write_text(
        '{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 2}'
    )
    save_file({"prompt_embeddings": torch.ones(2, 100)}, "peft/adapter_model.safetensors")
    assert refused(run, "peft", "x", "--to", "ptkit", "--backbone", base) == (
        f"peft: has 100 numbers a virtual token, but {base} takes 256 (4 layers x 2 x 2 key/value "
        "groups x 16); it was made for another base"
    )
