"""The line of a script that starts main.py: its flags, and how many processes it starts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ptkit
from ptkit_chatglm2.arguments import BOOLEANS, BY_NAME, LISTS
from ptkit_chatglm2.shell import Command, Word, printable, read_commands

_MARKS = ("pre_seq_len", "ptuning_checkpoint", "max_source_length")
_PROCESSES = re.compile(
    r"--(nproc_per_node|num_gpus|num_processes|nnodes|num_nodes)(?:=(?P<value>.*))?"
)
_TRUE = ("true", "t", "yes", "y", "1")
_FALSE = ("false", "f", "no", "n", "0")


@dataclass(frozen=True)
class Flag:
    """An argument as it was given: ``value`` is None for one that stood without."""

    name: str
    line: int
    value: Word | None

    def __str__(self) -> str:
        if self.value is None:
            return f"--{self.name}"
        text = self.value.text
        shown = repr(text) if not text or not text.isprintable() or " " in text else text
        return f"--{self.name} {shown}"


@dataclass(frozen=True)
class Launch:
    """``others``: how many launch lines the script has besides this one."""

    line: int
    flags: Mapping[str, Flag]
    processes: int
    others: int


def read_launch(text: str, name: str) -> Launch | None:
    """The launch of a published script; the one that trains, if there are several.

    None for a text that isn't such a script. Raises `RecipeError`, a line a problem, each beginning
    with ``name`` and the line.
    """
    if not any(mark in text.replace("-", "_") for mark in _MARKS):
        return None
    commands = []
    for command in read_commands(text, name):
        first = command.words[0]
        if first.text.startswith("--"):
            raise ptkit.RecipeError(
                f"{name}:{first.line}: a command begins with {printable(first.text)}; "
                "end the line before with '\\' and nothing behind it"
            )
        if _program(command) is not None:
            commands.append(command)
    if not commands:
        return None
    training = [c for c in commands if any(word.text == "--do_train" for word in c.words)]
    command = (training or commands)[0]
    start = _program(command) or 0
    flags = _flags(command.words[start + 1 :], name)
    processes = _processes(command, start, name)
    return Launch(command.words[start].line, flags, processes, len(commands) - 1)


def _program(command: Command) -> int | None:
    """Where the first Python file of a command stands."""
    return next((i for i, w in enumerate(command.words) if w.text.endswith(".py")), None)


def _processes(command: Command, start: int, name: str) -> int:
    """Processes that work on one step: of all nodes together, or cards that one process uses."""
    words = command.words[:start]
    counts: dict[str, int] = {}
    for word, behind in zip(words, [*words[1:], None], strict=True):
        match = _PROCESSES.fullmatch(word.text.replace("-", "_").replace("__", "--", 1))
        if match is None:
            continue
        got = match["value"] if match["value"] is not None else behind.text if behind else ""
        if not re.fullmatch(r"[1-9]\d*", got):
            raise ptkit.RecipeError(
                f"{name}:{word.line}: {word.text.split('=')[0]} must be a number, "
                f"got {got!r}; the batch size is counted from it"
            )
        counts[match[1]] = int(got)
    total = 1
    for count in counts.values():
        total *= count
    cards = command.environment.get("CUDA_VISIBLE_DEVICES")
    if words and not counts and re.fullmatch(r"(.*/)?python[\d.]*", words[-1].text) and cards:
        total = len([card for card in cards.text.split(",") if card.strip()]) or 1
    return total


def _flags(words: Iterable[Word], name: str) -> dict[str, Flag]:
    rest = list(words)
    flags: dict[str, Flag] = {}
    problems: list[str] = []
    while rest:
        word = rest.pop(0)
        if not word.text.startswith("--"):
            problems.append(
                f"{name}:{word.line}: {word.text!r} belongs to no argument; remove it, or quote "
                "the value in front of it"
            )
            continue
        written, equals, given = word.text[2:].partition("=")
        key = written.replace("-", "_")
        value: Word | None = Word(given, word.line, word.unset) if equals else None
        negated = key.removeprefix("no_")
        if key not in BY_NAME and key != negated and negated in BOOLEANS:
            key, value = negated, Word("False", word.line)
        if key not in BY_NAME:
            known = ptkit.suggestion(written, BY_NAME)
            problems.append(
                f"{name}:{word.line}: --{written} is no argument of the published main.py{known}"
            )
            while rest and not rest[0].text.startswith("--"):
                rest.pop(0)
            continue
        if value is None:
            if key in BOOLEANS:
                if rest and rest[0].text.lower() in (*_TRUE, *_FALSE):
                    value = rest.pop(0)
            elif rest and not rest[0].text.startswith("--"):
                value = rest.pop(0)
            else:
                got = rest[0].text if rest else "the end of the line"
                problems.append(f"{name}:{word.line}: --{written} needs a value, got {got}")
        while key in LISTS and rest and not rest[0].text.startswith("--"):
            rest.pop(0)
        flags[key] = Flag(key, word.line, value)
    if problems:
        raise ptkit.RecipeError(*map(printable, problems))
    return flags


class Arguments:
    """The flags as values. What is wrong with one is added to ``problems``, with its line."""

    def __init__(self, flags: Mapping[str, Flag], name: str) -> None:
        self.flags = flags
        self.name = name
        self.problems: list[str] = []

    def problem(self, flag: Flag, text: str) -> None:
        self.problems.append(printable(f"{self.name}:{flag.line}: --{flag.name} {text}"))

    def word(self, name: str) -> Word | None:
        flag = self.flags.get(name)
        return None if flag is None else flag.value

    def text(self, name: str) -> str | None:
        """The value; one that holds a variable without a value is a problem."""
        flag = self.flags.get(name)
        if flag is None or flag.value is None:
            return None
        if flag.value.unset:
            self.problem(flag, f"is {flag.value.unset[0]}, which the script doesn't set; set it")
            return None
        return flag.value.text

    def yes(self, name: str) -> bool:
        if name not in self.flags:
            return False
        text = self.text(name)
        if text is not None and text.lower() not in (*_TRUE, *_FALSE):
            self.problem(self.flags[name], f"must be True or False, got {text!r}")
        return text is None or text.lower() in _TRUE

    def whole(self, name: str, *, least: int = 1) -> int | None:
        text = self.text(name)
        if text is None:
            return None
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < least:
            self.problem(
                self.flags[name], f"must be a whole number of at least {least}, got {text!r}"
            )
            return None
        return int(text)

    def number(self, name: str, *, least: float = 0.0) -> str | None:
        """The value as TOML writes it."""
        text = self.text(name)
        if text is None:
            return None
        if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) or float(text) < least:
            self.problem(self.flags[name], f"must be a number of at least {least:g}, got {text!r}")
            return None
        plain = re.fullmatch(r"(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", text)
        return text if plain else repr(float(text))

    def choice(self, name: str, known: Mapping[str, str]) -> str | None:
        text = self.text(name)
        if text is None:
            return None
        if text not in known:
            names = ", ".join(known)
            found = ptkit.suggestion(text, known)
            self.problem(
                self.flags[name], f"must be one that ptkit has ({names}), got {text!r}{found}"
            )
            return None
        return known[text]
