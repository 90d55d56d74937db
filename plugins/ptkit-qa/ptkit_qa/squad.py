"""The format ``squad``: questions about contexts, in one JSON document as SQuAD and CMRC have
it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from ptkit import (
    Answer,
    BadRow,
    BadValueError,
    DataError,
    DatasetFormat,
    ExtractionRecord,
    Origin,
    Record,
    read_lines,
    shown_keys,
    shown_value,
    text_problem,
)
from ptkit_qa.located import Item, located

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
SHOWN = 40  # characters of an answer
MISALIGNED = 'dataset.misaligned to "find" or "keep-text"'
CONTEXT = ("context", "context_text")  # as SQuAD has it; as the first files of CMRC have it
QUESTION = ("question", "query_text")
KEY = ("id", "query_id")


class SquadFormat(DatasetFormat):
    """SQuAD 1.1, SQuAD 2.0 and CMRC 2018, to `ExtractionRecord`, one a question.

    Worked example (the line of a record is the one that its question begins on)::

        {"data": [{"paragraphs": [{
          "context": "It rained in Delft.",
          "qas": [
            {"id": "1", "question": "Where?", "answers": [{"text": "Delft", "answer_start": 13}]},
            {"id": "2", "question": "When?", "answers": [], "is_impossible": true}]}]}]}
        ExtractionRecord(key="1", question="Where?", context="It rained in Delft.",
                         answers=(Answer(text="Delft", start=13),))
        ExtractionRecord(key="2", question="When?", context="It rained in Delft.", answers=())

    Repeated answers are kept. Plausible answers of impossible questions are ignored.
    """

    name = "squad"
    record: ClassVar[type[Record]] = ExtractionRecord

    class Settings(DatasetFormat.Settings):
        misaligned: Literal["error", "find", "keep-text"] = "error"
        """An answer whose text is not what the context has at its start: "error" is a bad row,
        "find" takes the nearest place that has the text (a bad row if there is none), "keep-text"
        gives it the start -1: it counts for scores, but can't be trained on."""

    settings: Settings

    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        return self._read(path, name, answered=True)

    def read_unanswered(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        """As `read`; answers are not looked at."""
        return self._read(path, name, answered=False)

    def _read(self, path: Path, name: str, *, answered: bool) -> Iterator[Record | BadRow]:
        text = _text_of(path, name)
        if not text.strip():
            return
        lines = _Lines(text, name)
        first: dict[str, Origin] = {}
        for item in _paragraphs(_document(text, name), lines):
            if isinstance(item, BadRow):
                yield item
                continue
            origin = lines.origin(item.at)
            try:
                context, questions = _paragraph(item.value)
            except BadValueError as error:
                yield BadRow(origin, f"paragraph: {error}")
                continue
            for question in questions:
                origin = lines.origin(question.at)
                try:
                    record = self._question(origin, question.value, context, answered=answered)
                    if record.key in first:
                        raise BadValueError(
                            f"question {record.key!r}: the id is that of another question "
                            f"({first[record.key]}); give it one of its own, {SKIP}"
                        )
                    first[record.key] = origin
                    yield record
                except BadValueError as error:
                    yield BadRow(origin, str(error))

    def _question(
        self, origin: Origin, found: object, context: str, *, answered: bool
    ) -> ExtractionRecord:
        if not isinstance(found, dict):
            raise BadValueError(f"a question must be an object, got {shown_value(found)}; mend it")
        key = _key(found)
        try:
            question = _text(found, QUESTION)
            answers = self._answers(found, context) if answered else None
        except BadValueError as error:
            raise BadValueError(f"question {key!r}: {error}") from None
        return ExtractionRecord(
            origin=origin, key=key, question=question, context=context, answers=answers
        )

    def _answers(self, found: Mapping[str, Any], context: str) -> tuple[Answer, ...]:
        impossible = found.get("is_impossible", False)
        if not isinstance(impossible, bool):
            raise BadValueError(
                f"key 'is_impossible' must be true or false, got {shown_value(impossible)}; mend it"
            )
        answers = found.get("answers", [] if impossible else None)
        if not isinstance(answers, list):
            got = shown_value(answers) if "answers" in found else "no such key"
            raise BadValueError(f"key 'answers' must be a list, got {got}; mend it, {SKIP}")
        if bool(answers) == impossible:
            raise BadValueError(
                "is_impossible is true, but there are answers; remove them, or the mark"
                if impossible
                else "has no answers; add one, or set its is_impossible to true if the context "
                "has none"
            )
        return tuple(
            self._answer(answer, f"answer {number}", context)
            for number, answer in enumerate(answers, start=1)
        )

    def _answer(self, found: object, where: str, context: str) -> Answer:
        start = None
        if isinstance(found, dict):
            text, start = found.get("text"), found.get("answer_start")
        else:
            text = found  # the first files of CMRC have texts alone
        if not isinstance(text, str) or not text.strip():
            got = "an empty one" if isinstance(text, str) else shown_value(text)
            raise BadValueError(f"{where} must have a text, got {got}; mend it, {SKIP}")
        _check_pairs(where, text)
        if isinstance(start, bool) or not isinstance(start, int | None):
            raise BadValueError(
                f"{where} must have a whole number as answer_start, got {shown_value(start)}; mend "
                "it"
            )
        if start is not None and start >= 0 and context.startswith(text, start):
            return Answer(text, start)
        if self.settings.misaligned == "keep-text":
            return Answer(text, -1)
        if self.settings.misaligned == "find":
            place = _nearest(context, text, start or 0)
            if place is None:
                raise BadValueError(
                    f"{where}, {_cut(text)}, stands nowhere in the context; mend it, or set "
                    'dataset.misaligned to "keep-text"'
                )
            return Answer(text, place)
        if start is None:
            raise BadValueError(f"{where}, {_cut(text)}, has no answer_start; set {MISALIGNED}")
        there = (
            f"where the context has {_cut(context[start : start + len(text)])}"
            if 0 <= start < len(context)
            else f"which is outside the context of {len(context)} characters"
        )
        raise BadValueError(
            f"{where}, {_cut(text)}, does not stand at {start}, {there}; mend it, or set "
            f"{MISALIGNED}"
        )


def _nearest(context: str, text: str, start: int) -> int | None:
    """The place of ``text`` that is nearest to ``start``; of two, the first."""
    before = context.rfind(text, 0, max(start, 0) + len(text))
    behind = context.find(text, max(start, 0))
    places = [place for place in (before, behind) if place >= 0]
    return min(places, key=lambda place: abs(place - start), default=None)


# ------------------------------------------------------------------------------------- documents


class _Lines:
    """Turns places in a text, which must come in order, into lines."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name
        self._at, self._line = 0, 1

    def origin(self, at: int) -> Origin:
        self._line += self._text.count("\n", self._at, at)
        self._at = at
        return Origin(self._name, self._line)


def _text_of(path: Path, name: str) -> str:
    lines = []
    for origin, line in read_lines(path, name):
        problem = text_problem(line)
        if problem:
            raise DataError(f"{origin}: {problem.replace(', or set dataset.encoding', '')}")
        lines.append(line)
    return "".join(lines)


def _document(text: str, name: str) -> Any:
    paragraphs = text.lstrip(" \t\r\n").startswith("[")
    try:
        return located(text, ("qas",) if paragraphs else ("data", "paragraphs", "qas"))
    except json.JSONDecodeError as error:
        said = error.msg[:1].lower() + error.msg[1:]
        raise DataError(
            f"{name}:{error.lineno}: not JSON: {said} at column {error.colno}; a squad file is one "
            "JSON document"
        ) from None
    except (RecursionError, ValueError) as error:
        said = str(error).split(";")[0]
        raise DataError(f"{name}: can't be read as JSON ({said}); mend it") from None


def _paragraphs(document: Any, lines: _Lines) -> Iterator[Item | BadRow]:
    """The items of every "paragraphs", or, in the first files of CMRC, those of the document."""
    if isinstance(document, list):
        yield from document
        return
    articles = document.get("data") if isinstance(document, dict) else None
    if not isinstance(articles, list):
        given = isinstance(document, dict)
        got = f"the keys {shown_keys(document)}" if given else shown_value(document)
        raise DataError(
            f"{lines.origin(0)}: a squad file is an object with a list 'data', got {got}; check "
            "dataset.kind"
        )
    for at, article in articles:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if isinstance(paragraphs, list):
            yield from paragraphs
        else:
            got = shown_value(article) if not isinstance(article, dict) else shown_keys(article)
            yield BadRow(
                lines.origin(at),
                f"an article must be an object with a list 'paragraphs', got {got}; mend it",
            )


def _paragraph(found: object) -> tuple[str, list[Item]]:
    if not isinstance(found, dict):
        raise BadValueError(f"must be an object, got {shown_value(found)}; mend it")
    questions = found.get("qas")
    if not isinstance(questions, list):
        got = shown_value(questions) if "qas" in found else f"the keys {shown_keys(found)}"
        raise BadValueError(f"must have a list 'qas' of questions, got {got}; mend it")
    return _text(found, CONTEXT), questions


def _text(found: Mapping[str, Any], names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in found), None)
    if name is None:
        raise BadValueError(
            f"key {names[0]!r} is missing (there are: {shown_keys(found)}); add it, {SKIP}"
        )
    text = found[name]
    if not isinstance(text, str):
        raise BadValueError(f"key {name!r} must be a string, got {shown_value(text)}; mend it")
    if not text.strip():
        raise BadValueError(f"key {name!r} is empty; give it a text, {SKIP}")
    _check_pairs(f"key {name!r}", text)
    return text


def _check_pairs(where: str, text: str) -> None:
    """That no half of a surrogate pair is in a text, which could not be written again."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadValueError(
            f"{where} holds \\u{ord(text[error.start]):04x}, half of a surrogate pair and no "
            "character; write the whole pair, or remove it"
        ) from None


def _key(found: Mapping[str, Any]) -> str:
    name = next((name for name in KEY if name in found), None)
    if name is None:
        raise BadValueError(
            f"a question has no 'id' (it has: {shown_keys(found)}); give it one, {SKIP}"
        )
    value = found[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        got = "an empty one" if value == "" else shown_value(value)
        raise BadValueError(f"a question must have a text as {name!r}, got {got}; mend it")
    _check_pairs(f"key {name!r}", value)
    return value


def _cut(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")
