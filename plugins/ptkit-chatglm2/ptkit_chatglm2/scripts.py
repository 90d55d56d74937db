"""The published train.sh, train_chat.sh and evaluate.sh as recipes with comments."""

from __future__ import annotations

import json
import math
import re
import shlex
import textwrap
from pathlib import PurePosixPath

import ptkit
from ptkit_chatglm2.arguments import BY_NAME, Effect
from ptkit_chatglm2.launch import Arguments, Flag, Launch, read_launch
from ptkit_chatglm2.shell import printable

_SCHEDULES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_BITS = {"4": "int4", "8": "int8"}
_COLUMNS = ("prompt_column", "response_column", "history_column")
_HUBS = ("THUDM/", "zai-org/")
_WIDTH = 32  # where the comment behind a setting begins
_COMMENT_WIDTH = 98
_TRAINING = {name for name, argument in BY_NAME.items() if argument.key.startswith("train.")}
_HEADINGS: dict[Effect, str] = {
    "not needed": "Arguments of the script that no setting is needed for:",
    "never read": "Arguments that the published code declares and never reads:",
    "lost": "Arguments that change a published result, and that there is no setting for:",
}


def recipe_from_script(text: str, name: str) -> str | None:
    """The recipe that does what the script ``text`` does; None if it is no script for main.py.

    ``name``: what messages and the recipe call the script. Raises `ptkit.RecipeError`, a line a
    problem. Nothing of the script is executed.
    """
    launch = read_launch(text, name)
    return None if launch is None else _Writer(launch, name).recipe()


def quoted(text: str) -> str:
    """``text`` as a TOML string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class _Writer:
    def __init__(self, launch: Launch, name: str) -> None:
        self.launch = launch
        self.name = name
        self.given = Arguments(launch.flags, name)
        wanted = {flag: self.given.yes(flag) for flag in ("do_train", "do_eval", "do_predict")}
        self.trains = wanted["do_train"] or not (wanted["do_eval"] or wanted["do_predict"])
        self.source = ""
        self.notes: list[list[str]] = []
        """What the top of the recipe says, the lines of a paragraph each."""

    def recipe(self) -> str:
        sections = [
            self.backbone(),
            self.prefix(),
            self.dataset(),
            self.task(),
            ["[[metrics]]", 'kind = "rouge-zh"'],
            ["[[metrics]]", 'kind = "bleu-char"'],
            self.train(),
        ]
        if self.given.problems:
            raise ptkit.RecipeError(*dict.fromkeys(self.given.problems))
        return "\n\n".join(["\n".join(self.head()), *map("\n".join, sections)]) + "\n"

    # ------------------------------------------------------------------------ the top

    def head(self) -> list[str]:
        lines = [
            f"What {PurePosixPath(self.name).name} of ChatGLM2-6B's ptuning folder does, "
            "as a recipe.",
            "",
            "Paths are relative to this file; those of the script were to the folder it ran in.",
        ]
        if self.launch.others:
            lines.append(
                f"Of the script's {self.launch.others + 1} launch lines, this is the one on line "
                f"{self.launch.line}."
            )
        for note in self.notes:
            lines += ["", *note]
        for effect, heading in _HEADINGS.items():
            found = [f for f in self.launch.flags.values() if self.effect_of(f) == effect]
            if found:
                lines += ["", heading, *self.listed(found)]
        return [f"# {printable(line)}".rstrip() for line in lines] + ["ptkit = 1"]

    @staticmethod
    def effect_of(flag: Flag) -> Effect:
        argument = BY_NAME[flag.name]
        value = flag.value.text if flag.value is not None else ""
        if argument.effect == "lost" and value in argument.neutral:
            return "not needed"
        return argument.effect

    @staticmethod
    def listed(flags: list[Flag]) -> list[str]:
        """A line each; those with one reason stand together."""
        reasons: dict[str, list[str]] = {}
        for flag in flags:
            argument = BY_NAME[flag.name]
            value = flag.value.text if flag.value is not None else ""
            same = argument.effect == "lost" and value in argument.neutral
            reason = "it is given a value that changes nothing" if same else argument.note
            reasons.setdefault(reason, []).append(str(flag))
        return [
            line
            for reason, names in reasons.items()
            for line in textwrap.wrap(
                f"{', '.join(names)}{': ' if reason else ''}{reason}",
                _COMMENT_WIDTH,
                initial_indent="- ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        ]

    # ------------------------------------------------------------------------ sections

    def missing(self, flag: str, text: str) -> None:
        self.given.problems.append(f"{self.name}:{self.launch.line}: --{flag} is missing; {text}")

    def path(self, flag: str) -> tuple[str, str] | None:
        """A path, and what is to be said of it; a variable without a value gives it its name."""
        word = self.given.word(flag)
        if word is None:
            return None
        if not word.text.strip():
            self.given.problem(self.launch.flags[flag], "is empty; give it a path")
        if word.unset:
            names = ", ".join(word.unset)
            bare = re.sub(r"[^\w./-]+", "", word.text) or flag
            return bare, f"the script leaves {names} open: name the file here"
        return word.text, ""

    def backbone(self) -> list[str]:
        lines = ["[backbone]", 'kind = "chatglm2"']
        found = self.path("model_name_or_path")
        if found is None:
            if "model_name_or_path" not in self.launch.flags:
                self.missing("model_name_or_path", "add it, with the folder of the base model")
            return lines
        source, comment = found
        if source.startswith(_HUBS):
            folder = f"models/{source.split('/', 1)[1]}"
            self.notes.append(
                [
                    f"{source} is a name on a hub. Download the model first, beside this file:",
                    f"  hf download {source} --local-dir {folder}",
                ]
            )
            source = folder
        elif re.fullmatch(r"[\w-]+/[\w.-]+", source) and not comment:
            comment = f"from a hub: hf download {source} --local-dir {source}"
        lines.append(_setting("source", quoted(source), comment))
        self.source = source
        bits = self.given.choice("quantization_bit", _BITS)
        if bits is not None:
            lines.append(_setting("quantization", quoted(bits), "the frozen weights, on loading"))
        half = [
            dtype
            for flag, dtype in (("fp16", "float16"), ("bf16", "bfloat16"))
            if self.given.yes(flag)
        ]
        if half:
            lines.append(_setting("dtype", quoted(half[0])))
        else:
            lines.append(_setting("dtype", '"auto"', "bfloat16 on a GPU; published: float16"))
        if not self.trains:
            lines += [
                "# The published float16 code has its rotary table in float16, too:",
                '# rope = "published-half"',
            ]
        return lines

    def prefix(self) -> list[str]:
        if "pre_seq_len" not in self.launch.flags:
            self.missing(
                "pre_seq_len",
                "without it the published code trains all weights of the model, and ptkit trains a "
                "prefix",
            )
        length = self.given.whole("pre_seq_len")
        lines = ["[prefix]", _setting("length", str(length), "virtual tokens a layer")]
        if self.given.yes("prefix_projection"):
            lines.append(_setting("projection", "true"))
        return lines

    def dataset(self) -> list[str]:
        lines = ["[dataset]", 'kind = "adgen"']
        files = {part: self.path(f"{part}_file") for part in ("train", "validation", "test")}
        for part, found in files.items():
            if found is not None and found[0].endswith(".csv"):
                self.given.problem(
                    self.launch.flags[f"{part}_file"],
                    f"is {found[0]!r}, but adgen reads JSON rows; convert the file",
                )
        if files["train"] is None:
            if self.trains and "train_file" not in self.launch.flags:
                self.missing("train_file", "add it, with the file of the training rows")
            files["train"] = ("train.json", "the script names none; needed for training only")
        lines += [_setting(part, quoted(f[0]), f[1]) for part, f in files.items() if f is not None]
        for column in _COLUMNS:
            value = self.given.text(column)
            if value is not None:
                lines.append(_setting(column, quoted(value)))
        limits = {
            part: self.given.whole(f"max_{flag}_samples")
            for part, flag in (("train", "train"), ("validation", "eval"), ("test", "predict"))
        }
        inside = ", ".join(f"{part} = {n}" for part, n in limits.items() if n is not None)
        return [*lines, f"limit = {{ {inside} }}"] if inside else lines

    def task(self) -> list[str]:
        source = self.given.whole("max_source_length") or 1024
        target = self.given.whole("max_target_length") or 128
        limits = [f"max_source_tokens = {source}", f"max_target_tokens = {target}"]
        if not self.trains:
            self._say_evaluation(limits)
        lines = [
            "[task]",
            'kind = "generation"',
            *limits,
            "# A prompt over its limit is cut inside the query. The published code cuts its end,",
            '# and loses the "答：" that an answer begins behind:',
            '# truncation = "published"',
        ]
        if self.trains and not self.given.yes("do_predict"):
            return lines
        return [
            *lines,
            "# Answers are greedy. The published code draws them, other ones in every run:",
            "# sampling = { temperature = 0.95, top_p = 0.7 }",
        ]

    def train(self) -> list[str]:
        given = self.given
        if not self.trains and not _TRAINING & self.launch.flags.keys():
            return [
                "[train]",
                "# This script trains nothing; these are the values of the published train.sh.",
                "max_steps = 3000",
                "batch_size = 16",
                "learning_rate = 2e-2",
                'loss_average = "row"',
                "gradient_checkpointing = true",
            ]
        lines = ["[train]"]
        steps = given.whole("max_steps", least=-1)
        steps = steps if steps and steps > 0 else None
        if steps:
            lines.append(_setting("max_steps", str(steps)))
        else:
            epochs = given.number("num_train_epochs") or "3"
            note = "" if "num_train_epochs" in self.launch.flags else "the published default"
            lines.append(_setting("epochs", epochs, note))
        lines += self._batch()
        rate = given.number("learning_rate")
        note = "" if "learning_rate" in self.launch.flags else "the published default"
        lines.append(_setting("learning_rate", rate or "5e-5", note))
        scheduler = given.text("lr_scheduler_type") or "linear"
        schedule = given.choice("lr_scheduler_type", _SCHEDULES) or "linear"
        lines.append(_setting("schedule", quoted(schedule)))
        lines += self._warmup(scheduler, steps)
        decay = given.number("weight_decay")
        lines += [_setting("weight_decay", decay)] if decay is not None else []
        betas = [given.number("adam_beta1"), given.number("adam_beta2")]
        if any(beta is not None for beta in betas):
            first, second = betas[0] or "0.9", betas[1] or "0.999"
            lines.append(_setting("betas", f"[{first}, {second}]"))
        clip = given.number("max_grad_norm")
        lines += [_setting("clip_norm", clip)] if clip is not None else []
        given.yes("gradient_checkpointing")
        lines.append(
            _setting("gradient_checkpointing", "true", "published: always; less memory, slower")
        )
        for flag, key in (("eval_steps", "eval_every"), ("save_total_limit", "keep")):
            number = given.whole(flag)
            lines += [_setting(key, str(number))] if number is not None else []
        save = given.whole("save_steps") or 500
        note = "" if "save_steps" in self.launch.flags else "the published default"
        lines.append(_setting("save_every", str(save), note or "optimiser steps"))
        seed = given.whole("seed", least=0)
        if seed is not None:
            lines.append(_setting("seed", str(seed), "the draws differ from the published code's"))
        return lines

    def _batch(self) -> list[str]:
        rows = self.given.whole("per_device_train_batch_size") or 8
        accumulated = self.given.whole("gradient_accumulation_steps") or 1
        processes = self.launch.processes
        product = f"{rows} row{'s' if rows > 1 else ''} × {accumulated} accumulation steps"
        if processes > 1:
            product += f" × {processes} processes"
        lines = [_setting("batch_size", str(rows * accumulated * processes), product)]
        if rows == 1:
            return [
                *lines,
                "# One row a micro-batch: each row counts the same, however long its answer is.",
                'loss_average = "row"',
            ]
        if accumulated * processes == 1:
            return [
                *lines,
                "# One micro-batch a step: each token counts the same.",
                'loss_average = "token"',
            ]
        return [
            *lines,
            f"# The published loop averages the tokens of each micro-batch of {rows} rows, then",
            "# the micro-batches; here each token of a step counts the same, which is close to it.",
            'loss_average = "token"',
        ]

    def _warmup(self, scheduler: str, steps: int | None) -> list[str]:
        warmup = self.given.whole("warmup_steps", least=0) or 0
        ratio = float(self.given.number("warmup_ratio") or 0)
        comment = ""
        if not warmup and ratio:
            if steps is None:
                self.given.problem(
                    self.launch.flags["warmup_ratio"],
                    "needs --max_steps, because ptkit counts warm-up in steps; "
                    "give --warmup_steps instead",
                )
                return []
            warmup, comment = math.ceil(ratio * steps), f"{ratio:g} of {steps}"
        if not warmup:
            return []
        if scheduler == "constant":
            return ["# no warm-up: the published schedule 'constant' has none, whatever is given"]
        return [_setting("warmup_steps", str(warmup), comment)]

    def _say_evaluation(self, task: list[str]) -> None:
        """``task``: the limits of the section, as ``key = value``."""
        checkpoint = self.given.word("ptuning_checkpoint")
        rows = self.path("test_file") or self.path("validation_file") or ("FILE", "")
        given = self.given
        bits = given.choice("quantization_bit", _BITS)
        values = [f'backbone.quantization="{bits}"'] if bits else []
        values.append('dataset.kind="adgen"')
        for column in _COLUMNS:
            name = given.text(column)
            values += [f"dataset.{column}={quoted(name)}"] if name is not None else []
        values.append('metrics=[{kind="rouge-zh"},{kind="bleu-char"}]')
        values += [f"task.{line.replace(' ', '')}" for line in task]
        base = f"--backbone {shlex.quote(self.source)}"
        lines = ["The script scores a finished prefix and trains nothing. With ptkit that is"]
        if checkpoint is not None:
            lines.append(
                f"  ptkit convert {shlex.quote(checkpoint.text)} adapter --to ptkit {base}"
            )
        lines.append(f"  ptkit evaluate adapter --data {shlex.quote(rows[0])} {base} \\")
        settings = [f"    --set {shlex.quote(value)}" for value in values]
        lines += [f"{setting} \\" for setting in settings[:-1]] + settings[-1:]
        self.notes.append(lines)


def _setting(key: str, value: str, comment: str = "") -> str:
    line = f"{key} = {value}"
    return f"{line:<{_WIDTH - 1}} # {printable(comment)}" if comment else line
