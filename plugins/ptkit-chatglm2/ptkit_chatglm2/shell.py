"""Shell scripts as a reader of them needs it: their commands with variables put in; none is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import ptkit

_TOKEN = re.compile(
    r"""
    (?P<continued>\\\n)
  | (?P<blank>[ \t]+)
  | (?P<heredoc><<-?[ ]*['"]?(?P<tag>\w+)['"]?[^\n]*\n(?:.*?\n)?[ \t]*(?P=tag)(?=\n|\Z))
  | (?P<redirect>(?:[0-9]|&)?(?:>>?|<)(?:&[0-9-])?)
  | (?P<end>\n|;|\|+|&+)
  | (?P<single>'[^']*')
  | (?P<double>"(?:\\.|[^"\\])*")
  | (?P<escape>\\.)
  | (?P<variable>\$\w+|\$\{(?:[^{}]|\$\{[^{}]*\})*\}|\$\((?:[^()]|\([^()]*\))*\)|`[^`]*`)
  | (?P<plain>[^\s\\'"$`;&|<>\#]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_INSIDE = re.compile(  # what is special between double quotes
    r"\\(?P<escaped>[\\\"$`\n])"
    r"|(?P<variable>\$\w+|\$\{(?:[^{}]|\$\{[^{}]*\})*\}|\$\((?:[^()]|\([^()]*\))*\)|`[^`]*`)",
    re.DOTALL,
)
_BRACES = re.compile(r"\$\{(?P<name>\w+)(?::?[-=](?P<default>.*))?\}", re.DOTALL)
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_SETTERS = ("export", "declare", "readonly", "local", "typeset")


def printable(text: str) -> str:
    """``text`` for a message or a comment: on one line, without control characters."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


@dataclass(frozen=True)
class Word:
    """A word of a command, and the line that it begins on.

    ``unset``: the variables in it that the script doesn't set, or sets by running something; they
    stand in ``text`` as they were written.
    """

    text: str
    line: int
    unset: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """The ``words`` of a simple command, and the variables exported to it or set in front of it."""

    words: tuple[Word, ...]
    environment: Mapping[str, Word]


def read_commands(text: str, name: str) -> Iterator[Command]:
    """The commands of the script ``text``, in order.

    >>> [command] = read_commands("A=1\\necho $A", "x.sh")
    >>> [word.text for word in command.words]
    ['echo', '1']

    Quotes, continued lines, comments, ``${A:-default}`` and redirections are read as a shell reads
    them; loops and conditions are not. ``name`` begins every message. Raises `RecipeError`.
    """
    yield from _Reader(text.replace("\r\n", "\n").removeprefix("\ufeff"), name).commands()


@dataclass
class _Reader:
    source: str
    name: str
    variables: dict[str, Word] = field(default_factory=dict)
    exported: dict[str, Word] = field(default_factory=dict)
    words: list[Word] = field(default_factory=list)
    """The finished words of the command being read."""
    word: Word | None = None
    """The word being read."""

    def commands(self) -> Iterator[Command]:
        at, line, skip_next = 0, 1, False
        while at < len(self.source):
            if self.source[at] == "#" and self.word is None:
                at = self._end_of_line(at)
                continue
            match = _TOKEN.match(self.source, at)
            assert match is not None  # "." takes what nothing else does
            kind, token = match.lastgroup, match[0]
            if kind == "tag":
                kind = "heredoc"
            if kind == "plain" and token in "'\"":
                raise ptkit.RecipeError(f"{self.name}:{line}: the quote {token} is never closed")
            if kind in ("blank", "redirect", "end", "heredoc"):
                if self.word is not None and skip_next:
                    self.word, skip_next = None, False
                self._end_word()
                skip_next = skip_next or (kind == "redirect" and "&" not in token[1:])
                if kind == "end":
                    skip_next = False
                    yield from self._end_command()
            elif kind != "continued":
                self._add(kind or "", token, line)
            line += token.count("\n")
            at = match.end()
        if skip_next:
            self.word = None
        self._end_word()
        yield from self._end_command()

    def _end_of_line(self, at: int) -> int:
        end = self.source.find("\n", at)
        return len(self.source) if end < 0 else end

    def _add(self, kind: str, token: str, line: int) -> None:
        """Add one token to the word being read, or begin one with it."""
        if kind == "single":
            self._append(token[1:-1], line)
        elif kind == "double":
            self._append(*self._inside(token[1:-1], line))
        elif kind == "escape":
            self._append(token[1:], line)
        elif kind == "variable":
            found = self._expand(token, line)
            if self.word is not None and _ASSIGNMENT.match(self.word.text):
                self._append(found.text, line, found.unset)
            else:
                self._append_split(found, line)
        else:
            array = re.match(r"([A-Za-z_]\w*)=\(", token)
            if array and self.word is None:
                raise ptkit.RecipeError(
                    f"{self.name}:{line}: {array[1]}=(…) is an array, which isn't read; "
                    "write its values where they are used"
                )
            self._append(token, line)

    def _append(self, text: str, line: int, unset: tuple[str, ...] = ()) -> None:
        before = self.word or Word("", line)
        self.word = Word(before.text + text, before.line, before.unset + unset)

    def _append_split(self, found: Word, line: int) -> None:
        """A variable outside quotes: blanks in its value part words, an empty one adds none."""
        parts = [found.text] if found.unset else re.split(r"\s+", found.text)
        for number, part in enumerate(parts):
            if number:
                self._end_word()
            if part:
                self._append(part, line, found.unset)

    def _inside(self, text: str, line: int) -> tuple[str, int, tuple[str, ...]]:
        unset: list[str] = []

        def put_in(match: re.Match[str]) -> str:
            escaped: str | None = match["escaped"]
            if escaped is not None:
                return escaped.replace("\n", "")
            found = self._expand(match["variable"], line)
            unset.extend(found.unset)
            return found.text

        return _INSIDE.sub(put_in, text), line, tuple(unset)

    def _expand(self, token: str, line: int) -> Word:
        if token.startswith(("$(", "`")):
            return Word(token, line, (token,))
        braces = _BRACES.fullmatch(token)
        name = braces["name"] if braces else token[1:]
        found = self.variables.get(name)
        if found is not None and not (braces and braces["default"] is not None and not found.text):
            return Word(found.text, line, found.unset)
        if braces and braces["default"] is not None:
            text, _, unset = self._inside(braces["default"], line)
            return Word(re.sub(r"^(['\"])(.*)\1$", r"\2", text), line, unset)
        return Word(token, line, (token,))

    def _end_word(self) -> None:
        if self.word is not None:
            self.words.append(self.word)
            self.word = None

    def _end_command(self) -> Iterator[Command]:
        words, self.words = self.words, []
        sets = bool(words) and words[0].text in _SETTERS
        given: dict[str, Word] = {}
        rest = words[1:] if sets else words
        while rest and (match := _ASSIGNMENT.fullmatch(rest[0].text)):
            given[match["name"]] = Word(match["value"], rest[0].line, rest[0].unset)
            rest = rest[1:]
        if sets:
            self.variables.update(given)
            if words[0].text == "export":
                named = {word.text: self.variables.get(word.text) for word in rest}
                self.exported |= given | {key: value for key, value in named.items() if value}
        elif rest:
            yield Command(tuple(rest), {**self.exported, **given})
        else:
            self.variables.update(given)
