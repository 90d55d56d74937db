from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from ptkit_qa.messages import MessagesFormat

from ptkit import BadRow, DataError, GenerationRecord, Origin
from ptkit.testing import check_dataset_format

SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'


def messages(**settings: Any) -> MessagesFormat:
    return MessagesFormat(MessagesFormat.Settings(train="x.json", **settings))


def chat(*turns: str, **more: Any) -> dict[str, Any]:
    """A row of the turns ``u: text``, ``a: text`` and ``s: text``."""
    roles = {"u": "user", "a": "assistant", "s": "system"}
    found = [turn.split(": ", 1) for turn in turns]
    return {"messages": [{"role": roles.get(r, r), "content": text} for r, text in found], **more}


@pytest.fixture
def read(tmp_path: Path):
    def read(*rows: Any, unanswered: bool = False, **settings: Any) -> list[Any]:
        path = tmp_path / "x.json"
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
        form = messages(**settings)
        return list((form.read_unanswered if unanswered else form.read)(path, "x.json"))

    return read


def record(prompt: str, response: str | None, *history: tuple[str, str], line: int = 1):
    origin = Origin("x.json", line)
    return GenerationRecord(origin=origin, prompt=prompt, response=response, history=history)


def test_the_last_answer_is_the_response(read):
    rows = read(chat("u: q", "a: r"), chat("u: q", "a: r", "u: q2", "a: r2 ", "u: q3", "a: r3"))
    assert rows == [record("q", "r"), record("q3", "r3", ("q", "r"), ("q2", "r2 "), line=2)]


def test_a_system_message_goes_in_front_of_the_first_question(read):
    assert read(chat("s: short!", "u: q", "a: r")) == [record("short!\nq", "r")]
    assert read(chat("s: short!", "u: q", "a: r", "u: q2", "a: r2")) == [
        record("q2", "r2", ("short!\nq", "r"))
    ]


def test_an_array_and_gzip(tmp_path):
    path = tmp_path / "x.json.gz"
    path.write_bytes(gzip.compress(json.dumps([chat("u: q", "a: r")]).encode()))
    assert list(messages().read(path, "x.json")) == [record("q", "r")]


def test_other_names(read):
    row = {
        "id": 7,
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}],
    }
    names = {"messages_column": "conversations", "role_key": "from", "content_key": "value"}
    assert read(row, **names, user_role="human", assistant_role="gpt") == [record("q", "r")]


def test_rows_to_be_answered(read):
    rows = [chat("u: q"), chat("u: q", "a: r", "u: q2"), chat("u: q", "a: r", "u: q2", "a: r2")]
    assert read(*rows, unanswered=True) == [
        record("q", None),
        record("q2", None, ("q", "r"), line=2),
        record("q2", None, ("q", "r"), line=3),
    ]


ROLES = (
    "known: user, assistant, system; "
    "set dataset.user_role, dataset.assistant_role, dataset.system_role"
)
TURNS = "but 'user' and 'assistant' must take turns, beginning with 'user'; mend the row,"
BAD = [
    ({"chat": []}, "key 'messages' is missing (the row has: chat); set dataset.messages_column"),
    (
        {"messages": "hello"},
        "key 'messages' must be a list of messages, got the string 'hello'; mend the row, or set "
        "dataset.messages_column",
    ),
    ({"messages": []}, f"key 'messages' is an empty list; give it messages, {SKIP}"),
    (
        {"messages": ["hi"]},
        "key 'messages', message 1 must be an object with 'role' and 'content', got the string "
        "'hi'; mend the row",
    ),
    (
        {"messages": [{"from": "user", "content": "q"}]},
        "key 'messages', message 1: key 'role' is missing (it has: from, content); "
        "set dataset.role_key",
    ),
    (
        {"messages": [{"role": "user", "content": None}]},
        "key 'messages', message 1: key 'content' must be a string, got null; mend the row, or set "
        "dataset.content_key",
    ),
    (
        chat("u: q", "asistant: r"),
        "key 'messages', message 2: unknown role 'asistant' (did you mean 'assistant'?); " + ROLES,
    ),
    (chat("zz: q"), f"key 'messages', message 1: unknown role 'zz'; {ROLES}"),
    (
        chat("u: q", "s: now", "a: r"),
        "key 'messages', message 2 is of 'system', which only the first message may be; "
        f"mend the row, {SKIP}",
    ),
    (
        chat("u: q", "a:  \u3000"),
        f"key 'messages', message 2: key 'content' is empty; give it a text, {SKIP}",
    ),
    (chat("u: q", "u: q2", "a: r"), f"key 'messages', message 2 is of 'user', {TURNS} {SKIP}"),
    (chat("s: s", "a: r"), f"key 'messages', message 2 is of 'assistant', {TURNS} {SKIP}"),
    (chat("s: s"), f"key 'messages' has no message of 'user'; add one, {SKIP}"),
    (
        chat("u: q", "a: r", "u: q2"),
        f"key 'messages' has no message of 'assistant' at its end; add the answer, {SKIP}",
    ),
]


@pytest.mark.parametrize(("row", "expected"), BAD, ids=range(len(BAD)))
def test_bad_rows(read, row, expected):
    bad, good = read(row, chat("u: q", "a: r"))
    assert isinstance(bad, BadRow)
    assert str(bad) == f"x.json:1: {expected}"
    assert good == record("q", "r", line=2)


def test_unanswered_rows_are_checked_too(read):
    (bad,) = read(chat("s: s"), unanswered=True)
    assert "has no message of 'user'" in str(bad)


def test_what_is_no_json(read, tmp_path):
    (tmp_path / "y.json").write_text("nonsense\n")
    (bad,) = messages().read(tmp_path / "y.json", "y.json")
    assert str(bad) == "y.json:1: not JSON: expected a value at column 1, got 'n'"
    with pytest.raises(DataError, match=r"^z\.json: no such file"):
        list(messages().read(tmp_path / "z.json", "z.json"))


def test_roles_must_differ():
    with pytest.raises(ValueError, match="must be three names, got 'user', 'user', 'system'"):
        messages(assistant_role="user")


def test_it_keeps_the_contract(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [chat("s: s", "u: q", "a: r"), chat("u: q"), chat("u: q", "a: r", "u: q", "a: r")]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check_dataset_format(messages(), path, bad_rows=1)
