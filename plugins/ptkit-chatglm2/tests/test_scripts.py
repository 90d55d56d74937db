"""The published scripts as recipes, damaged ones as a line each, and the README's table."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptkit_chatglm2 import ptkit_recipe_from_script
from ptkit_chatglm2.arguments import ARGUMENTS, BOOLEANS, BY_NAME, LISTS, table
from ptkit_chatglm2.shell import read_commands

import ptkit
from ptkit.cli import main

README = Path(__file__).parents[1] / "README.md"

# The values of the published scripts; None: a flag without one.
TRAIN: dict[str, str | None] = {
    "do_train": None,
    "train_file": "AdvertiseGen/train.json",
    "validation_file": "AdvertiseGen/dev.json",
    "preprocessing_num_workers": "10",
    "prompt_column": "content",
    "response_column": "summary",
    "overwrite_cache": None,
    "model_name_or_path": "THUDM/chatglm2-6b",
    "output_dir": "output/adgen-chatglm2-6b-pt-$PRE_SEQ_LEN-$LR",
    "overwrite_output_dir": None,
    "max_source_length": "64",
    "max_target_length": "128",
    "per_device_train_batch_size": "1",
    "per_device_eval_batch_size": "1",
    "gradient_accumulation_steps": "16",
    "predict_with_generate": None,
    "max_steps": "3000",
    "logging_steps": "10",
    "save_steps": "1000",
    "learning_rate": "$LR",
    "pre_seq_len": "$PRE_SEQ_LEN",
    "quantization_bit": "4",
}
CHAT = TRAIN | {
    "train_file": "$CHAT_TRAIN_DATA",
    "validation_file": "$CHAT_VAL_DATA",
    "prompt_column": "prompt",
    "response_column": "response",
    "history_column": "history",
    "output_dir": "$CHECKPOINT_NAME",
    "max_source_length": "256",
    "max_target_length": "256",
}
EVALUATE: dict[str, str | None] = {
    "do_predict": None,
    "validation_file": "AdvertiseGen/dev.json",
    "test_file": "AdvertiseGen/dev.json",
    "overwrite_cache": None,
    "prompt_column": "content",
    "response_column": "summary",
    "model_name_or_path": "THUDM/chatglm2-6b",
    "ptuning_checkpoint": "./output/$CHECKPOINT/checkpoint-$STEP",
    "output_dir": "./output/$CHECKPOINT",
    "overwrite_output_dir": None,
    "max_source_length": "64",
    "max_target_length": "64",
    "per_device_eval_batch_size": "1",
    "predict_with_generate": None,
    "pre_seq_len": "$PRE_SEQ_LEN",
    "quantization_bit": "4",
}
TORCHRUN = "torchrun --standalone --nnodes=1 --nproc-per-node=$NUM_GPUS main.py"


def script(
    flags: Mapping[str, str | None],
    *,
    launch: str = TORCHRUN,
    rate: str = "2e-2",
    first: str = "",
    **changes: Any,
) -> str:
    """A script in the published form; ``changes``: other values, False to leave an argument out."""
    chosen = {name: value for name, value in {**flags, **changes}.items() if value is not False}
    lines = [
        f"--{name}" if value is None else f"--{name} {value}" for name, value in chosen.items()
    ]
    variables = f"PRE_SEQ_LEN=128\nLR={rate}\nNUM_GPUS=1\n{first}\n"
    return variables + " \\\n    ".join([launch, *lines]) + "\n"


def convert(text: str) -> str:
    recipe = ptkit_recipe_from_script(text, "x/train.sh")
    assert recipe is not None
    return recipe


def data(text: str) -> dict[str, Any]:
    return tomllib.loads(convert(text))


def refused(text: str) -> tuple[str, ...]:
    with pytest.raises(ptkit.RecipeError) as error:
        convert(text)
    return error.value.lines


# ------------------------------------------------------------------------------ as published


def test_train_sh() -> None:
    assert data(script(TRAIN)) == {
        "ptkit": 1,
        "backbone": {
            "kind": "chatglm2",
            "source": "models/chatglm2-6b",
            "quantization": "int4",
            "dtype": "auto",
        },
        "prefix": {"length": 128},
        "dataset": {
            "kind": "adgen",
            "train": "AdvertiseGen/train.json",
            "validation": "AdvertiseGen/dev.json",
            "prompt_column": "content",
            "response_column": "summary",
        },
        "task": {"kind": "generation", "max_source_tokens": 64, "max_target_tokens": 128},
        "metrics": [{"kind": "rouge-zh"}, {"kind": "bleu-char"}],
        "train": {
            "max_steps": 3000,
            "batch_size": 16,
            "loss_average": "row",
            "learning_rate": 0.02,
            "schedule": "linear",
            "gradient_checkpointing": True,
            "save_every": 1000,
        },
    }


def test_the_comments_of_train_sh() -> None:
    text = convert(script(TRAIN))
    assert "hf download THUDM/chatglm2-6b --local-dir models/chatglm2-6b" in text
    assert "batch_size = 16                 # 1 row × 16 accumulation steps\n" in text
    assert "each row counts the same" in text
    assert '# truncation = "published"' in text
    for name, value in TRAIN.items():
        if not BY_NAME[name].key:
            assert f"--{name}{'' if value is None else ' '}" in text
    assert "--output_dir output/adgen-chatglm2-6b-pt-128-2e-2" in text
    assert "never reads" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_train_chat_sh() -> None:
    text = script(CHAT, rate="1e-2")
    found = data(text)
    assert found["dataset"] == {
        "kind": "adgen",
        "train": "CHAT_TRAIN_DATA",
        "validation": "CHAT_VAL_DATA",
        "prompt_column": "prompt",
        "response_column": "response",
        "history_column": "history",
    }
    assert "# the script leaves $CHAT_TRAIN_DATA open: name the file here" in convert(text)
    assert found["train"]["learning_rate"] == 0.01
    assert found["task"]["max_source_tokens"] == found["task"]["max_target_tokens"] == 256


def test_evaluate_sh() -> None:
    text = script(EVALUATE, first="CHECKPOINT=adgen\nSTEP=3000")
    found = data(text)
    assert found["dataset"]["test"] == found["dataset"]["validation"] == "AdvertiseGen/dev.json"
    assert found["dataset"]["train"] == "train.json"
    assert (found["task"]["max_source_tokens"], found["task"]["max_target_tokens"]) == (64, 64)
    assert found["train"]["learning_rate"] == 0.02
    written = convert(text)
    assert (
        """\
# The script scores a finished prefix and trains nothing. With ptkit that is
#   ptkit convert ./output/adgen/checkpoint-3000 adapter --to ptkit --backbone models/chatglm2-6b
#   ptkit evaluate adapter --data AdvertiseGen/dev.json --backbone models/chatglm2-6b \\
#     --set 'backbone.quantization="int4"' \\
#     --set 'dataset.kind="adgen"' \\
#     --set 'dataset.prompt_column="content"' \\
#     --set 'dataset.response_column="summary"' \\
#     --set 'metrics=[{kind="rouge-zh"},{kind="bleu-char"}]' \\
#     --set task.max_source_tokens=64 \\
#     --set task.max_target_tokens=64
"""
        in written
    )
    assert '# rope = "published-half"\n' in written
    assert "# sampling = { temperature = 0.95, top_p = 0.7 }\n" in written


def test_an_evaluation_with_training_values_keeps_them() -> None:
    found = data(script(EVALUATE, max_steps="7", per_device_train_batch_size="2"))
    assert (found["train"]["max_steps"], found["train"]["batch_size"]) == (7, 2)


def test_published_defaults() -> None:
    given = ("model_name_or_path", "train_file", "pre_seq_len")
    text = script({name: TRAIN[name] for name in given}, launch="python main.py")
    found = data(text)
    assert found["task"] == {
        "kind": "generation",
        "max_source_tokens": 1024,
        "max_target_tokens": 128,
    }
    assert found["train"] == {
        "epochs": 3,
        "batch_size": 8,
        "loss_average": "token",
        "learning_rate": 5e-5,
        "schedule": "linear",
        "gradient_checkpointing": True,
        "save_every": 500,
    }
    assert "quantization" not in found["backbone"]
    assert convert(text).count("# the published default\n") == 3


# ------------------------------------------------------------------------------ recipes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what the recipes name: a row in every file."""
    (tmp_path / "models" / "chatglm2-6b").mkdir(parents=True)
    row = {"content": "类型#裙", "summary": "裙子", "prompt": "q", "response": "r", "history": []}
    for name in ("AdvertiseGen/train", "AdvertiseGen/dev", "chat/train", "chat/dev", "train"):
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(row), encoding="utf-8")
    return tmp_path


def loaded(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return ptkit.Recipe.load(path).resolved()


CHAT_FILES = "CHAT_TRAIN_DATA=chat/train.json\nCHAT_VAL_DATA=chat/dev.json"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adgen-chatglm2-6b", script(TRAIN)),
        ("chat-chatglm2-6b", script(CHAT, rate="1e-2", first=CHAT_FILES)),
    ],
)
def test_the_recipes_are_what_the_published_scripts_give(
    folder: Path, name: str, text: str
) -> None:
    ours = (README.parents[2] / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert loaded(folder, ours) == loaded(folder, convert(text))


def test_the_recipe_of_an_evaluation_loads(folder: Path) -> None:
    found = loaded(folder, convert(script(EVALUATE)))
    assert found["dataset"]["test"].endswith("AdvertiseGen/dev.json")


def test_ptkit_check_accepts_the_recipe(folder: Path) -> None:
    """Through the command line, on the built-in model."""
    path = folder / "train.sh"
    path.write_bytes(script(TRAIN).replace("\n", "\r\n").encode())
    assert main(["new", "recipe", "--from-script", str(path)]) == 0
    values = ['backbone.source="nano"', "task.max_source_tokens=64"]
    options = [option for value in values for option in ("--set", value)]
    assert main(["check", str(folder / "train.toml"), *options]) == 0


# ------------------------------------------------------------------------------ arguments

CHANGES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"quantization_bit": "8"}, "backbone", {"quantization": "int8"}),
    ({"fp16": None}, "backbone", {"dtype": "float16"}),
    ({"bf16": "True"}, "backbone", {"dtype": "bfloat16"}),
    ({"bf16": "False"}, "backbone", {"dtype": "auto"}),
    ({"model_name_or_path": "/models/chatglm2-6b"}, "backbone", {"source": "/models/chatglm2-6b"}),
    ({"model_name_or_path": "me/glm"}, "backbone", {"source": "me/glm"}),
    ({"prefix_projection": None}, "prefix", {"projection": True}),
    ({"prefix_projection": "true"}, "prefix", {"projection": True}),
    ({"pre_seq_len": "64"}, "prefix", {"length": 64}),
    ({"test_file": "t.json"}, "dataset", {"test": "t.json"}),
    (
        {"max_train_samples": "9", "max_eval_samples": "8", "max_predict_samples": "7"},
        "dataset",
        {"limit": {"train": 9, "validation": 8, "test": 7}},
    ),
    ({"max_steps": "-1", "num_train_epochs": "2.5"}, "train", {"epochs": 2.5}),
    ({"num_train_epochs": "2.5"}, "train", {"max_steps": 3000}),
    ({"learning_rate": ".02"}, "train", {"learning_rate": 0.02}),
    ({"learning_rate": "2E-2"}, "train", {"learning_rate": 0.02}),
    ({"lr_scheduler_type": "cosine"}, "train", {"schedule": "cosine"}),
    (
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": "5"},
        "train",
        {"schedule": "constant", "warmup_steps": 5},
    ),
    ({"warmup_ratio": "0.03"}, "train", {"warmup_steps": 90}),
    ({"warmup_steps": "5", "warmup_ratio": "0.03"}, "train", {"warmup_steps": 5}),
    ({"weight_decay": "0.1"}, "train", {"weight_decay": 0.1}),
    ({"adam_beta2": "0.95"}, "train", {"betas": [0.9, 0.95]}),
    ({"adam_beta1": "0.8"}, "train", {"betas": [0.8, 0.999]}),
    ({"max_grad_norm": "0.5"}, "train", {"clip_norm": 0.5}),
    ({"eval_steps": "50", "save_total_limit": "3"}, "train", {"eval_every": 50, "keep": 3}),
    ({"seed": "42"}, "train", {"seed": 42}),
    (
        {"per_device_train_batch_size": "4", "gradient_accumulation_steps": "1"},
        "train",
        {"batch_size": 4, "loss_average": "token"},
    ),
    ({"per_device_train_batch_size": "4"}, "train", {"batch_size": 64, "loss_average": "token"}),
]


@pytest.mark.parametrize(("changes", "section", "expected"), CHANGES, ids=lambda value: str(value))
def test_an_argument_is_a_key(
    changes: dict[str, Any], section: str, expected: dict[str, Any]
) -> None:
    found = data(script(TRAIN, **changes))[section]
    assert {key: found.get(key) for key in expected} == expected


def test_every_argument_with_a_key_is_tried() -> None:
    tried = {name for changes, _, _ in CHANGES for name in changes}
    keys = {name for argument in ARGUMENTS if argument.key for name in argument.names.split()}
    assert keys - tried - TRAIN.keys() == {"history_column", "gradient_checkpointing"}


def test_what_a_larger_micro_batch_averages_is_said() -> None:
    text = convert(script(TRAIN, per_device_train_batch_size="4"))
    assert "averages the tokens of each micro-batch of 4 rows, then\n# the micro-batches" in text


def test_a_constant_schedule_has_no_warm_up() -> None:
    text = convert(script(TRAIN, lr_scheduler_type="constant", warmup_steps="5"))
    assert "# no warm-up: the published schedule 'constant' has none" in text
    assert "warmup_steps =" not in text


def test_arguments_without_a_key_are_named_with_the_reason() -> None:
    text = convert(
        script(
            TRAIN,
            pad_to_max_length=None,
            num_beams="4",
            source_prefix="'Answer: '",
            optim="adamw_torch",
            adafactor="False",
        )
    )
    never, lost = text.split("never reads:\n")[1].split("there is no setting for:\n")
    assert "# - --pad_to_max_length\n" in never
    assert "# - --num_beams 4: answers are decoded without beams\n" in lost
    assert "# - --source_prefix 'Answer: ': a text in front of the prompt's template\n" in lost
    assert "--optim" not in lost
    assert "--optim adamw_torch, --adafactor False: it is given a value that changes" in text


def test_no_argument_is_left_without_a_word() -> None:
    """Each alone: it sets a key, or a comment names it."""
    for name, argument in BY_NAME.items():
        value = None if name in BOOLEANS else "steps" if name.endswith("strategy") else "2"
        if argument.key:
            continue
        assert f"--{name}" in convert(script(TRAIN, **{name: value}))


# ------------------------------------------------------------------------------ the shell


@pytest.mark.parametrize(
    ("launch", "batch"),
    [
        ("CUDA_VISIBLE_DEVICES=0 python3 main.py", 16),
        ("CUDA_VISIBLE_DEVICES=0,1 python3 main.py", 32),
        ("export CUDA_VISIBLE_DEVICES=0,1\npython3 main.py", 32),
        ("CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 main.py", 32),
        ("torchrun --nnodes=2 --nproc-per-node=4 main.py", 128),
        ("deepspeed --num_gpus=4 --master_port $PORT main.py --deepspeed deepspeed.json", 64),
        ("accelerate launch --num_processes 2 main.py", 32),
        ("python -m torch.distributed.launch --nproc_per_node=2 ptuning/main.py", 32),
        ("nohup python -u main.py", 16),
    ],
)
def test_launch_lines(launch: str, batch: int) -> None:
    assert data(script(TRAIN, launch=launch))["train"]["batch_size"] == batch


def test_processes_are_said() -> None:
    text = convert(script(TRAIN).replace("NUM_GPUS=1", "NUM_GPUS=2"))
    assert "# 1 row × 16 accumulation steps × 2 processes\n" in text
    for got in ("gpu", "$COUNT"):
        assert refused(script(TRAIN, launch=f"torchrun --nproc-per-node={got} main.py")) == (
            f"x/train.sh:5: --nproc-per-node must be a number, got {got!r}; "
            "the batch size is counted from it",
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 'b c' \"d e\" f\\ g", ["a", "b c", "d e", "f g"]),
        ("X=1 # no; comment\necho a#b $X # rest", ["echo", "a#b", "1"]),
        ('export X="1 2"\necho $X "$X" \'$X\' ${X}', ["echo", "1", "2", "1 2", "$X", "1", "2"]),
        ('echo ${Y:-a} ${Y:-"b"} ${Y-c} x$Z', ["echo", "a", "b", "c", "x$Z"]),
        ("Y=\necho ${Y:-d}", ["echo", "d"]),
        ("Y=e; Z=$Y/f; echo ${Y:-d} ${W:-$Z}", ["echo", "e", "e/f"]),
        ("echo a \\\n  b > log.txt 2>&1 c >> 'd' &", ["echo", "a", "b", "c"]),
        ("echo a | tee b", ["echo", "a"]),
        ("P=$(shuf -n 1 -i 1-9)\necho $P `date`", ["echo", "$(shuf -n 1 -i 1-9)", "`date`"]),
        ("cat <<EOF\n' \"\nEOF\n", ["cat"]),
        ('echo "a\\"b\\$c" "d\\\ne"', ["echo", 'a"b$c', "de"]),
        ("\ufeffecho a\r\n", ["echo", "a"]),
        ("E=\necho $E b", ["echo", "b"]),
        ("A=$(x) B=1 echo c", ["echo", "c"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    first = next(read_commands(text, "x.sh"))
    assert [word.text for word in first.words] == words


def test_variables_and_lines_of_words() -> None:
    first, second = read_commands("A=1\nB=2 run \\\n $A$C\n\nend", "x.sh")
    assert [(word.line, word.unset) for word in first.words] == [(2, ()), (3, ("$C",))]
    assert first.environment["B"].text == "2"
    assert (second.words[0].line, dict(second.environment)) == (5, {})


def test_the_line_that_trains_is_taken() -> None:
    second = script(EVALUATE).split("\n", 4)[4]
    for text in (script(TRAIN) + second, second + script(TRAIN)):
        recipe = convert(text)
        assert "Of the script's 2 launch lines, this is the one on line " in recipe
        assert tomllib.loads(recipe)["train"]["save_every"] == 1000


# ------------------------------------------------------------------------------ damaged


def test_a_missing_value() -> None:
    assert refused(script(TRAIN, max_steps=None)) == (
        "x/train.sh:22: --max_steps needs a value, got --logging_steps",
    )
    assert refused(script(TRAIN, quantization_bit=None)) == (
        "x/train.sh:27: --quantization_bit needs a value, got the end of the line",
    )


def test_unknown_arguments() -> None:
    text = script(TRAIN, pre_seq_length="128", zzz=None)
    assert refused(text) == (
        "x/train.sh:28: --pre_seq_length is no argument of the published main.py "
        "(did you mean 'pre_seq_len'?)",
        "x/train.sh:29: --zzz is no argument of the published main.py",
    )


def test_no_model() -> None:
    assert refused(script(TRAIN, model_name_or_path=False)) == (
        "x/train.sh:5: --model_name_or_path is missing; add it, with the folder of the base model",
    )
    assert refused(script(TRAIN, model_name_or_path='""')) == (
        "x/train.sh:13: --model_name_or_path is empty; give it a path",
    )


@pytest.mark.parametrize("quote", ["'", '"'])
def test_an_open_quote(quote: str) -> None:
    assert refused(script(TRAIN, prompt_column=f"{quote}content")) == (
        f"x/train.sh:10: the quote {quote} is never closed",
    )


def test_windows_line_ends() -> None:
    assert convert(script(TRAIN).replace("\n", "\r\n")) == convert(script(TRAIN))


DAMAGED = [
    ({"max_steps": "many"}, "22: --max_steps must be a whole number of at least -1, got 'many'"),
    ({"learning_rate": "fast"}, "25: --learning_rate must be a number of at least 0, got 'fast'"),
    ({"learning_rate": "$RATE"}, "25: --learning_rate is $RATE, which the script doesn't set"),
    (
        {"quantization_bit": "2"},
        "27: --quantization_bit must be one that ptkit has (4, 8), got '2'",
    ),
    ({"pre_seq_len": "0"}, "26: --pre_seq_len must be a whole number of at least 1, got '0'"),
    ({"prefix_projection": "perhaps"}, "28: 'perhaps' belongs to no argument; remove it, or quote"),
    ({"prefix_projection=perhaps": None}, "28: --prefix_projection must be True or False, got"),
    (
        {"lr_scheduler_type": "cosin"},
        "28: --lr_scheduler_type must be one that ptkit has (linear, cosine, constant, "
        "constant_with_warmup), got 'cosin' (did you mean 'cosine'?)",
    ),
    (
        {"max_steps": False, "warmup_ratio": "0.1"},
        "27: --warmup_ratio needs --max_steps, because ptkit counts warm-up in steps; give "
        "--warmup_steps instead",
    ),
    ({"train_file": "t.csv"}, "7: --train_file is 't.csv', but adgen reads JSON rows; convert"),
    ({"train_file": False}, "5: --train_file is missing; add it, with the file of the training"),
    (
        {"pre_seq_len": False},
        "5: --pre_seq_len is missing; without it the published code trains all weights",
    ),
    ({"overwrite_cache": "\\\n\n --seed 1"}, "14: a command begins with --seed; end the line befo"),
    ({"seed": "a b"}, "28: 'b' belongs to no argument; remove it, or quote the value in front"),
]


@pytest.mark.parametrize(("changes", "expected"), DAMAGED, ids=lambda value: str(value)[:30])
def test_other_damage_is_one_line(changes: dict[str, Any], expected: str) -> None:
    (line,) = refused(script(TRAIN, **changes))
    assert line.startswith(f"x/train.sh:{expected}")


def test_arrays_are_refused() -> None:
    assert refused("ARGS=(--do_train)\n" + script(TRAIN)) == (
        "x/train.sh:1: ARGS=(…) is an array, which isn't read; "
        "write its values where they are used",
    )


@pytest.mark.parametrize("text", ["", "it's", "python train.py --lr 3", "echo --pre_seq_len"])
def test_other_scripts_are_not_ours(text: str) -> None:
    assert ptkit_recipe_from_script(text, "x.sh") is None


pieces = st.sampled_from(
    ["'", '"', "\\", "\n", "#", "$A", "${", "}", "$(", ")", "`", " ", "|", ">", "&", "\x01", "裙"]
)


@given(st.sampled_from(sorted(TRAIN)), st.lists(pieces, max_size=6).map("".join))
def test_whatever_stands_in_it_is_toml_or_a_line(name: str, value: str) -> None:
    lines: tuple[str, ...] = ()
    try:
        recipe = ptkit_recipe_from_script(script(TRAIN, **{name: value}), "x.sh")
    except ptkit.RecipeError as error:
        recipe, lines = None, error.lines
    assert all(line.startswith("x.sh:") and line.isprintable() for line in lines)
    assert recipe is None or tomllib.loads(recipe)["ptkit"] == 1


# ------------------------------------------------------------------------------ the table


def test_the_readme_has_the_table_of_arguments() -> None:
    assert f"\n{table()}\n" in README.read_text(encoding="utf-8")


def test_the_table_is_of_one_mind() -> None:
    names = [name for argument in ARGUMENTS for name in argument.names.split()]
    assert len(names) == len(set(names))
    assert set(names) >= BOOLEANS | LISTS | TRAIN.keys() | CHAT.keys() | EVALUATE.keys()
