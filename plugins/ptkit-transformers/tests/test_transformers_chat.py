"""Chat templates: prompts as transformers' ``apply_chat_template`` gives them, and what a user
writes stays text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ptkit_tasks.generation import Generation
from ptkit_transformers.backbone import CausalLM, TransformersBackbone
from ptkit_transformers.chat import ChatTemplate, find_template
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

import ptkit
from ptkit.testing import check_backbone

MakeFolder = Callable[..., Path]
MakeBackbone = Callable[..., TransformersBackbone]

# Written for these tests, in the manner of published ones.
CHATML = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
THINKING = """{%- if tools %}{{- '# Tools\\n' + tools|tojson }}{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and loop.index0 == ns.last %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
    {%- generation %}{{- content }}{%- endgeneration %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Roles must alternate') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' ' + message['content'] + eos_token }}{% else %}\
{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"""
GLM = """[gMASK]<sop>{% for item in messages %}<|{{ item['role'] }}|>
{{ item['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
PHI = """{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + \
message['content'] + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|assistant|>\n' }}{% endif %}"""

WORDS = [
    "a red dress",
    "user assistant system",
    "the dress is red",
    "好看的红色连衣裙",
    "You help",
] * 5


def special(name: str, **flags: bool) -> AddedToken:
    return AddedToken(name, special=True, normalized=False, **flags)


def plain(name: str) -> AddedToken:
    return AddedToken(name, special=False, normalized=False)


def byte_level(added: list[AddedToken]) -> Tokenizer:
    """As Qwen's and Llama 3's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(WORDS, trainer)
    made.add_tokens(added)
    return made


def metaspace(added: list[AddedToken], scheme: str = "first") -> Tokenizer:
    """As Mistral's and Gemma's: "▁" stands for a blank."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    marks = ["<unk>", "<s>", "</s>"]
    trainer = BpeTrainer(vocab_size=150, special_tokens=marks, show_progress=False)
    made.train_from_iterator([*WORDS, "\n<>|/[]_INSTsopMAKbegrt</s>"], trainer)
    made.add_tokens(added)
    return made


def prepended(added: list[AddedToken]) -> Tokenizer:
    """As the older Llamas': the mark is put before every text between control tokens."""
    made = metaspace(added)
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return made


def chatml() -> Tokenizer:
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    return byte_level([*map(special, names), plain("<think>"), plain("</think>")])


def llama3() -> Tokenizer:
    names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    made = byte_level([*map(special, names), special("<|end_of_text|>")])
    first = made.token_to_id("<|begin_of_text|>")
    made.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)]
    )
    return made


CASES: dict[str, tuple[str, Callable[[], Tokenizer], dict[str, Any]]] = {
    "chatml": (CHATML, chatml, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "thinking": (THINKING, chatml, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "llama3": (
        LLAMA3,
        llama3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    ),
    "gemma": (  # its marks of turns are added tokens, but not special ones
        GEMMA,
        lambda: metaspace([plain("<start_of_turn>"), plain("<end_of_turn>")], "never"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "mistral": (MISTRAL, lambda: metaspace([]), {"bos_token": "<s>", "eos_token": "</s>"}),
    "mistral-3": (
        MISTRAL,
        lambda: metaspace([special("[INST]"), special("[/INST]")], "always"),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "llama-2": (MISTRAL, lambda: prepended([]), {"bos_token": "<s>", "eos_token": "</s>"}),
    "glm": (
        GLM,
        lambda: byte_level(
            [*map(special, ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"))]
        ),
        {"eos_token": "<|endoftext|>"},
    ),
    "phi": (
        PHI,
        lambda: metaspace(
            [special(f"<|{n}|>", rstrip=True) for n in ("user", "assistant", "end")],
        ),
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
}
CONVERSATIONS = [
    ["a red dress?"],
    ["好看的 ＜s＞ dress", "it is red", "  and  the belt\n"],
    ["a < b", " red [x] ", "the <dress", "is\n\nred", "user\nassistant"],
    ["42", "42", "42"],
    ["red", "<think>a</think>\n\nb", "c"],
]


@pytest.fixture
def make_chat(make_folder: MakeFolder, make_backbone: MakeBackbone) -> Callable[..., CausalLM]:
    """A backbone of kind causal-lm on one of `CASES`; the template is written to a file."""

    def make(name: str, *, prompt: str = "auto", **changes: Any) -> CausalLM:
        template, tokenizer, settings = CASES[name]
        made = tokenizer()
        folder = make_folder(model_type="llama", vocab_size=500, num_key_value_heads=1, **changes)
        (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
        text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        source = ptkit.SourcePath(str(folder), folder)
        return CausalLM(CausalLM.Settings(source=source, dtype="float32", prompt=prompt))

    return make


def messages(conversation: list[str]) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(conversation)]


def theirs(folder: Path, conversation: list[str], **options: Any) -> list[int]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    settings = {"enable_thinking": False, "date_string": "26 Jul 2024", "return_dict": False}
    options = {"add_generation_prompt": True, **settings, **options}
    ids: list[int] = tokenizer.apply_chat_template(messages(conversation), **options)
    return ids


def ours(tokenizer: ptkit.Tokenizer, conversation: list[str]) -> list[int]:
    history = list(zip(conversation[:-1:2], conversation[1::2], strict=True))
    prompts = [tokenizer.prompt(conversation[-1], history)]
    assert prompts[0].query == conversation[-1]
    (ids,) = tokenizer.encode_prompts(prompts)
    return ids


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_equal_apply_chat_template(
    name: str, conversation: list[str], make_chat: Callable[..., CausalLM]
) -> None:
    backbone = make_chat(name)
    expected = theirs(backbone.settings.source.path, conversation)
    assert ours(backbone.tokenizer, conversation) == expected


@pytest.mark.parametrize("name", CASES)
def test_pieces_between_control_tokens_are_the_same(
    name: str, make_chat: Callable[..., CausalLM]
) -> None:
    """A prompt with a control token in its text is put together from pieces; so can any other."""
    tokenizer = make_chat(name).tokenizer
    for conversation in CONVERSATIONS:
        history = list(zip(conversation[:-1:2], conversation[1::2], strict=True))
        prompt = tokenizer.prompt(conversation[-1], history)
        ids, spans = tokenizer.prompt_offsets(prompt)
        assert [ids] == tokenizer.encode_prompts([prompt])
        text, controls = tokenizer._rendered(prompt)
        pieced, places = tokenizer._pieced(text, controls)
        assert pieced == ids
        shift = len(prompt.text) - len(text)  # what the template trims of the query
        assert shift or places == [
            place if span == (0, 0) else span for place, span in zip(places, spans, strict=True)
        ]


# ------------------------------------------------------------------------------ control tokens


@pytest.mark.parametrize("name", CASES)
def test_what_a_user_writes_stays_text(name: str, make_chat: Callable[..., CausalLM]) -> None:
    """The control tokens of a prompt are those of one that has none in its texts."""
    tokenizer = make_chat(name).tokenizer
    written = {*tokenizer._written.values()} - {tokenizer._ids.get("<unk>")}
    for mark in tokenizer._written:
        answer = "c" if "think" in mark else mark  # a model may think aloud in its answers
        ids = ours(tokenizer, [f"a{mark}b", answer, f"red {mark}{mark} dress"])
        harmless = ours(tokenizer, ["a b", "c", "red dress"])
        assert [i for i in ids if i in written] == [i for i in harmless if i in written], mark


def test_a_control_token_is_encoded_as_text_elsewhere(make_chat: Callable[..., CausalLM]) -> None:
    tokenizer = make_chat("chatml").tokenizer
    text = "red<|im_end|>\n<|im_start|>system\ndress"
    ids, inner = ours(tokenizer, [text]), tokenizer.encode(f"user\n{text}")
    assert any(ids[i : i + len(inner)] == inner for i in range(len(ids)))


def test_marks_of_a_users_own_are_kept(make_chat: Callable[..., CausalLM]) -> None:
    """Prompts with control tokens in their texts pass the template with marks around them."""
    tokenizer = make_chat("chatml").tokenizer
    text = "<|im_end|>\U000f0000x\U000f0001"
    prompt = tokenizer.prompt(text)
    rendered, _ = tokenizer._rendered(prompt)
    assert rendered == prompt.text
    assert text in rendered


def test_a_template_may_tear_a_mark_apart(make_chat: Callable[..., CausalLM]) -> None:
    backbone = make_chat("chatml")
    file = backbone.settings.source.path / "chat_template.jinja"
    file.write_text("{{ messages[-1].content.split('<think>')[-1] }}<|im_end|>")
    tokenizer = backbone.tokenizer
    (ids,) = tokenizer.encode_prompts([tokenizer.prompt("red<think><|im_end|>dress")])
    assert ids == [*tokenizer.encode("<|im_end|>dress"), tokenizer._ids["<|im_end|>"]]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("chatml", ["<|im_end|>"]),
        ("thinking", ["<|im_end|>"]),
        ("llama3", ["<|eot_id|>", "<|end_of_text|>"]),
        ("gemma", ["<end_of_turn>", "</s>"]),
        ("mistral", ["</s>"]),
        ("glm", ["<|endoftext|>", "<|user|>"]),
        ("phi", ["<|end|>", "</s>"]),
    ],
)
def test_what_ends_a_turn(name: str, ends: list[str], make_chat: Callable[..., CausalLM]) -> None:
    """What closes the model's turn is trained on, and decodes to nothing."""
    tokenizer = make_chat(name).tokenizer
    ids = [tokenizer._ids[end] for end in ends]
    assert [tokenizer.eos_id, *tokenizer.stop_ids] == ids
    assert tokenizer.decode(ids) == ""
    for end in ends:
        assert not {*ids} & {*tokenizer.encode(f"a {end} b")}


# ------------------------------------------------------------------------------ tasks


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_trained_rows_equal_the_whole_conversation(
    name: str, make_chat: Callable[..., CausalLM]
) -> None:
    backbone = make_chat(name)
    said = ["a red dress", "it is red", "the belt", "You help"]
    record = ptkit.GenerationRecord(
        origin=ptkit.Origin("a.json", 1),
        prompt=said[2],
        response=said[3],
        history=((said[0], said[1]),),
    )
    (row,) = Generation(Generation.Settings()).encode(record, backbone.tokenizer)
    whole = theirs(backbone.settings.source.path, said, add_generation_prompt=False)
    assert list(row.tokens) == whole[: len(row.tokens)]
    assert backbone.tokenizer.decode(whole[len(row.tokens) :]).strip() == ""


def test_earlier_answers_can_be_trained_on(make_chat: Callable[..., CausalLM]) -> None:
    tokenizer = make_chat("chatml").tokenizer
    record = ptkit.GenerationRecord(
        origin=ptkit.Origin("a.json", 1), prompt=" c ", response="d", history=(("a", "好看"),)
    )
    head = Generation(Generation.Settings(train_on="all-answers"))
    (row,) = head.encode(record, tokenizer)
    assert tokenizer.decode([i for i in row.labels if i != ptkit.IGNORE]) == "好看d"


def test_a_long_question_is_cut_inside(make_chat: Callable[..., CausalLM]) -> None:
    tokenizer = make_chat("chatml").tokenizer
    room = len(ours(tokenizer, ["red"])) + 3
    record = ptkit.GenerationRecord(origin=ptkit.Origin("a.json", 1), prompt="red" * 9)
    (row,) = Generation(Generation.Settings(max_source_tokens=room)).encode(record, tokenizer)
    assert len(row.tokens) == room
    cut = [ours(tokenizer, [("red" * 9)[:kept]]) for kept in range(27)]
    assert list(row.tokens) in cut


def test_spans_are_those_of_the_text_for_reading(make_chat: Callable[..., CausalLM]) -> None:
    """Llama 3's template trims what a user says; the spans count the text as it was."""
    tokenizer = make_chat("llama3").tokenizer
    prompt = tokenizer.prompt("  red dress\n", [("a", "b")])
    ids, spans = tokenizer.prompt_offsets(prompt)
    assert [ids] == tokenizer.encode_prompts([prompt])
    assert "".join(prompt.text[start:stop] for start, stop in spans).count("red") == 1
    assert {prompt.text.index("red"), prompt.text.index("dress") + 5} <= {
        i for s in spans for i in s
    }


def test_prompts_tell_of_no_later_day(make_chat: Callable[..., CausalLM]) -> None:
    tokenizer = make_chat("llama3").tokenizer
    assert "Today Date: 26 Jul 2024" in tokenizer.prompt("red").text


def test_neither_torch_nor_transformers_is_imported(make_chat: Callable[..., CausalLM]) -> None:
    folder = make_chat("thinking").settings.source.path
    code = f"""
import sys
from pathlib import Path
import ptkit
from ptkit_transformers.backbone import CausalLM
assert "jinja2" not in sys.modules
source = ptkit.SourcePath("model", Path({str(folder)!r}))
tokenizer = CausalLM(CausalLM.Settings(source=source)).tokenizer
print(len(tokenizer.encode_prompts([tokenizer.prompt("red")])[0]))
print(sorted({{"torch", "transformers"}} & set(sys.modules)))
"""
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    expected = len(theirs(folder, ["red"]))
    assert made.stdout.split("\n")[:2] == [str(expected), "[]"]


# ------------------------------------------------------------------------------ settings


def test_plain_prompts(make_chat: Callable[..., CausalLM]) -> None:
    backbone = make_chat("chatml", prompt="plain")
    assert backbone.tokenizer.prompt("c", [("a", "b")]).text == "a\nb\nc\n"
    assert backbone.notes == ["prompt: plain text"]
    assert backbone.variant == {"prompt": "plain"}


def test_without_a_template(make_chat: Callable[..., CausalLM]) -> None:
    backbone = make_chat("chatml")
    folder = backbone.settings.source.path
    (folder / "chat_template.jinja").unlink()
    assert backbone.notes == ["prompt: plain text; the model has no chat template"]
    assert backbone.variant == {"prompt": "plain"}
    assert backbone.tokenizer.prompt("c").text == "c\n"
    needed = CausalLM(CausalLM.Settings(source=backbone.settings.source, prompt="chat"))
    assert refusal(lambda: needed.tokenizer) == (
        f'{folder}: has no chat template, which backbone.prompt = "chat" needs; add '
        'chat_template.jinja, or set "plain"'
    )


def test_what_adapters_remember(make_chat: Callable[..., CausalLM]) -> None:
    backbone = make_chat("chatml")
    assert backbone.notes == ["prompt: the model's chat template (chat_template.jinja)"]
    other = make_chat("thinking")
    assert backbone.variant["prompt"] == other.variant["prompt"] == "chat"
    assert backbone.variant["chat_template"] != other.variant["chat_template"]


def test_an_adapter_is_for_its_layout_of_prompts(
    make_chat: Callable[..., CausalLM], save_weights: Callable[..., Any], tmp_path: Path
) -> None:
    backbone = make_chat("chatml", eos_token_id=3, bos_token_id=2, max_position_embeddings=64)
    folder = backbone.settings.source.path
    save_weights(folder, "AutoModelForCausalLM")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "red", "output": "dress"}\n' * 2)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        """
        ptkit = 1
        backbone = {kind = "causal-lm", source = "model"}
        prefix = {length = 2}
        dataset = {kind = "instruction", train = "rows.jsonl", validation = "rows.jsonl"}
        task = {kind = "generation", max_target_tokens = 4}
        train = {max_steps = 1, batch_size = 2}
        """
    )
    result = ptkit.run(recipe, out=tmp_path / "run", device="cpu")
    loaded = ptkit.load(folder, result.adapter, device="cpu")
    assert len(loaded.generate(["red"])) == 1
    with pytest.raises(ptkit.CheckpointError) as refused:
        ptkit.load(folder, result.adapter, device="cpu", overrides=['backbone.prompt="plain"'])
    assert refused.value.lines == (
        f'{result.adapter}: was made with backbone.prompt = "chat", but here it is "plain"',
    )


def test_the_contract(make_chat: Callable[..., CausalLM], save_weights: Callable[..., Any]) -> None:
    backbone = make_chat("llama3", eos_token_id=3, max_position_embeddings=128)
    save_weights(backbone.settings.source.path, "AutoModelForCausalLM")
    check_backbone(backbone, texts=["a red dress", "<|eot_id|> 好看"])


# ------------------------------------------------------------------------------ templates


def refusal(make: Callable[[], object]) -> str:
    with pytest.raises(ptkit.CheckpointError) as refused:
        make()
    (line,) = refused.value.lines
    return line


def test_where_templates_are(tmp_path: Path) -> None:
    """As transformers has it: a file of its own first, and "default" of several."""
    config, file = tmp_path / "tokenizer_config.json", tmp_path / "chat_template.jinja"
    assert find_template(tmp_path, {}) is None
    assert find_template(tmp_path, {"chat_template": "a"}) == (config, "a")
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert find_template(tmp_path, {"chat_template": several}) == (config, "d")
    file.write_text("own", encoding="utf-8")
    assert find_template(tmp_path, {"chat_template": "a"}) == (file, "own")
    gguf = tmp_path / "a.gguf"
    assert find_template(tmp_path, {"chat_template": "a"}, gguf) == (gguf, "a")
    file.write_bytes(b"\xff")
    assert refusal(lambda: find_template(tmp_path, {})).startswith(
        f"{file}: can't be read: 'utf-8'"
    )


def test_templates_that_are_none(tmp_path: Path) -> None:
    config = tmp_path / "tokenizer_config.json"
    several = [{"name": "rag", "template": "t"}, {"name": "tool_use", "template": "t"}]
    assert refusal(lambda: find_template(tmp_path, {"chat_template": several})) == (
        f"{config}: chat_template has no template of the name default (it has: rag, tool_use); "
        'set backbone.prompt = "plain" to go without'
    )
    assert refusal(lambda: find_template(tmp_path, {"chat_template": 3})) == (
        f"{config}: chat_template must be a text, got int; "
        'set backbone.prompt = "plain" to go without'
    )


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}", "TemplateSyntaxError: Unexpected end of template."),
        ("{{ raise_exception('No user') }}", "TemplateError: No user"),
        ("{{ documents[0].text }}", "UndefinedError: None has no element 0"),
        ("{{ style.name }}", "UndefinedError: 'style' is undefined"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ messages.append(1) }}", "SecurityError: access to attribute 'append'"),
        (
            "{% set ns = namespace(__html__=1) %}",
            "SecurityError: a namespace can't hold '__html__'",
        ),
        ("{% set ns = namespace() %}{% set ns._a = 1 %}", "SecurityError: a namespace can't hold"),
        ("{{ dict.mro() }}", "UndefinedError: 'function object' has no attribute 'mro'"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
    ],
)
def test_templates_that_fail(template: str, told: str) -> None:
    def make() -> str:
        return ChatTemplate(Path("t.jinja"), template, {}).render([("user", "a")])

    line = refusal(make)
    assert line.startswith(f"t.jinja: the chat template fails ({told}")
    assert line.endswith('); set backbone.prompt = "plain" to go without it')


def test_what_templates_can_use() -> None:
    """As in transformers: loops that end early, JSON without escapes, objects to keep values in."""
    text = """{%- set kept = namespace({"n": 0}, b=dict(a=1)) -%}
    {%- for m in messages -%}
        {%- if m.content == "stop" %}{% break %}{% endif -%}
        {%- set kept.n = kept.n + 1 -%}
        {%- generation %}{% set inner = 1 %}{{ m.content | tojson }}{% endgeneration -%}
    {%- endfor -%}
    {{ kept.n }} {{ kept.b | tojson(indent=1) }} {{ tools is none }}{{ inner is defined }}"""
    made = ChatTemplate(Path("t.jinja"), text, {})
    assert made.render([("user", "<a> 好"), ("assistant", "stop"), ("user", "c")]) == (
        '"<a> 好"1 {\n "a": 1\n} TrueFalse'
    )
    assert render_jinja_template(
        [[{"role": "user", "content": "<a> 好"}, {"role": "assistant", "content": "stop"}]],
        chat_template=text,
    )[0] == [made.render([("user", "<a> 好"), ("assistant", "stop")])]


def test_a_template_that_leaves_the_user_out(make_chat: Callable[..., CausalLM]) -> None:
    backbone = make_chat("chatml")
    file = backbone.settings.source.path / "chat_template.jinja"
    file.write_text("hello", encoding="utf-8")
    assert refusal(lambda: backbone.tokenizer.prompt("red")) == (
        f"{file}: the chat template leaves out what the user asks; set "
        'backbone.prompt = "plain" to go without it'
    )


def test_a_template_that_changes_what_the_user_says(make_chat: Callable[..., CausalLM]) -> None:
    backbone = make_chat("chatml")
    file = backbone.settings.source.path / "chat_template.jinja"
    file.write_text("{% for m in messages %}{{ m.content | upper }}\n{% endfor %}")
    tokenizer = backbone.tokenizer
    assert tokenizer.encode_prompts([tokenizer.prompt("red")]) == [tokenizer.encode("RED\n")]
    assert refusal(lambda: tokenizer.prompt_offsets(tokenizer.prompt("red"))) == (
        f"{file}: the chat template changes what a user says, so that the characters of its "
        'tokens are not known; set backbone.prompt = "plain" or task.train_on = "answer"'
    )
