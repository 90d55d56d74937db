"""The format ``dialogue-csv``: records by hand, and a line for each bad row."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ptkit import BadRow, DataError, GenerationRecord, Origin, SourcePath
from ptkit.testing import check_dataset_format

from ptkit_dialogues.format import DialogueCsv

DATA = Path(__file__).parents[1] / "data"
HEADER = "conversation,role,text"
Read = Callable[..., list[Any]]


def dialogues(**settings: Any) -> DialogueCsv:
    train = SourcePath("x.csv", Path("x.csv"))
    return DialogueCsv(DialogueCsv.Settings(train=train, **settings))


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(
        text: str | bytes,
        header: str = HEADER,
        *,
        unanswered: bool = False,
        **settings: Any,
    ) -> list[Any]:
        if isinstance(text, str):
            text = f"{header}\n{text}".encode()
        path = tmp_path / "x.csv"
        path.write_bytes(text)
        form = dialogues(**settings)
        check = form.read_unanswered if unanswered else form.read
        return list(check(path, "x.csv"))

    return read


def record(
    line: int, prompt: str, response: str | None, *history: tuple[str, str]
) -> GenerationRecord:
    origin = Origin("x.csv", line)
    return GenerationRecord(
        origin=origin, prompt=prompt, response=response, history=history
    )


def lines(rows: list[Any]) -> list[Any]:
    """Bad rows as they are told, records as their lines."""
    return [str(r) if isinstance(r, BadRow) else r.origin.line for r in rows]


def cost(line: int, cause: int, key: str = "a") -> str:
    return (
        f"x.csv:{line}: can't be used, since line {cause} of conversation {key!r} "
        "can't; mend that line first"
    )


def test_each_reply_is_a_record_with_what_came_before(read: Read) -> None:
    rows = read(
        "a,user,q\na,assistant,r\na,user,q2\na,assistant,r2\nb,user,q\nb,assistant,r"
    )
    assert rows == [
        record(3, "q", "r"),
        record(5, "q2", "r2", ("q", "r")),
        record(7, "q", "r"),
    ]


def test_quotes_over_several_lines_and_blank_lines(read: Read) -> None:
    text = '\r\na,user,"one, ""two""\r\n\r\nthree"\r\n,,\r\na,assistant, r \r\n'
    assert read(text) == [record(7, 'one, "two"\n\nthree', "r")]


def test_a_byte_order_mark_and_other_columns(read: Read) -> None:
    text = '\ufeff"text",id,conversation,role\nq,1,a,user\nr,2,a,assistant\n'
    assert read(text.encode()) == [record(3, "q", "r")]


def test_other_names_separator_and_encoding(read: Read) -> None:
    text = "会话;谁;内容\n1;客户;多少钱，包邮吗？\n1;客服;九元。\n"
    names = {"conversation_column": "会话", "role_column": "谁", "text_column": "内容"}
    roles = {"user_role": "客户", "assistant_role": "客服"}
    rows = read(
        text.encode("gb18030"), encoding="gb18030", separator=";", **names, **roles
    )
    assert rows == [record(3, "多少钱，包邮吗？", "九元。")]


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\na,user,q\na,assistant,r\n".encode()))
    assert list(dialogues().read(path, "x.csv")) == [record(3, "q", "r")]


def test_rows_to_be_answered(read: Read) -> None:
    text = "a,user,q\na,assistant,r\na,user,q2\nb,user,q"
    assert read(text, unanswered=True) == [
        record(3, "q", None),
        record(4, "q2", None, ("q", "r")),
        record(5, "q", None),
    ]
    no_reply = (
        "conversation 'b' has no reply of 'assistant' to a turn of 'user'; add one, "
        'or drop such rows with dataset.on_bad_row = "skip"'
    )
    assert lines(read(text)) == [3, f"x.csv:5: {no_reply}"]


def test_the_history_can_be_cut(read: Read) -> None:
    text = "\n".join(f"a,user,q{i}\na,assistant,r{i}" for i in (1, 2, 3))
    histories = [
        [row.history for row in read(text, max_history=most)] for most in (0, 1, 2)
    ]
    one, two = ("q1", "r1"), ("q2", "r2")
    assert histories == [
        [(), (), ()],
        [(), (one,), (two,)],
        [(), (one,), (one, two)],
    ]


def test_who_begins(read: Read) -> None:
    text = "a,assistant,hi\na,user,q\na,assistant,r"
    assert lines(read(text)) == [
        (
            "x.csv:2: conversation 'a' begins with 'assistant', who has nothing to "
            'answer; mend it, or set dataset.opening to "keep" or "drop"'
        ),
        cost(4, 2),
    ]
    assert read(text, opening="keep") == [record(4, "q", "r", ("", "hi"))]
    assert read(text, opening="drop") == [record(4, "q", "r")]
    (alone,) = read("a,assistant,hi", opening="drop")
    assert "x.csv:2: conversation 'a' has no reply of 'assistant'" in str(alone)


def test_two_turns_of_one_speaker(read: Read) -> None:
    text = (
        "a,user,q\na,assistant,r\na,assistant,r2\na,user,q2\na,user,q3\na,assistant,r3"
    )
    assert lines(read(text)) == [
        3,
        (
            "x.csv:4: is of 'assistant' again, after line 3 of conversation 'a'; mend "
            'it, or set dataset.consecutive = "join"'
        ),
        cost(7, 4),
    ]
    assert read(text, consecutive="join") == [
        record(3, "q", "r\nr2"),
        record(7, "q2\nq3", "r3", ("q", "r\nr2")),
    ]


def test_turns_are_sorted_by_their_numbers(read: Read) -> None:
    header = "conversation,role,text,turn"
    text = "a,assistant,r2,4\na,user,q,1\na,assistant,r,2\na,user,q2,03\n"
    assert read(text, header, turn_column="turn") == [
        record(2, "q2", "r2", ("q", "r")),
        record(4, "q", "r"),
    ]
    text = "a,user,q,1\na,assistant,r,2\na,user,q2,2\na,assistant,r2,3\n"
    assert lines(read(text, header, turn_column="turn")) == [
        3,
        (
            "x.csv:4: conversation 'a' has the turn 2 on line 3 too; number its turns, "
            "or set dataset.turn_column"
        ),
        cost(5, 4),
    ]
    # nobody knows where the second row belongs: perhaps between the others
    text = "a,user,q,1\na,user,q2,1.5\na,assistant,r,2\n"
    assert lines(read(text, header, turn_column="turn")) == [
        (
            "x.csv:3: column 'turn' must be a whole number, got '1.5'; mend the row, "
            "or set dataset.turn_column"
        ),
        cost(4, 3),
    ]


def test_rows_of_a_conversation_that_are_not_adjacent(read: Read) -> None:
    text = "a,user,q\nb,user,p\na,assistant,r\nb,assistant,s\nb,user,p2\nb,assistant,s2"
    apart = (
        "goes on here, but rows of others stand between this and line {}; sort the "
        "file, or set dataset.interleaved = true"
    )
    assert [row for row in lines(read(text)) if "no reply" not in str(row)] == [
        f"x.csv:4: conversation 'a' {apart.format(2)}",
        f"x.csv:5: conversation 'b' {apart.format(3)}",
        cost(7, 5, "b"),
    ]
    assert read(text, interleaved=True) == [
        record(4, "q", "r"),
        record(5, "p", "s"),
        record(7, "p2", "s2", ("p", "s")),
    ]


ROLES = "known: user, assistant; set dataset.user_role and dataset.assistant_role"
SKIP = 'or drop such rows with dataset.on_bad_row = "skip"'
BAD_TURNS = [
    (
        "a,asistant,r",
        "column 'role' has the unknown role 'asistant' (did you mean 'assistant'?); "
        + ROLES,
    ),
    ("a,zz,r", f"column 'role' has the unknown role 'zz'; {ROLES}"),
    ("a,assistant, \u3000", f"column 'text' is empty; give it a text, {SKIP}"),
    (
        " ,assistant,r",
        "column 'conversation' is empty; say which conversation the row is of, " + SKIP,
    ),
    (
        "a,assistant,well, yes",
        (
            "must have 3 columns (conversation, role, text), got 4; quote texts that "
            "hold a ',', or set dataset.separator"
        ),
    ),
    (
        'a,assistant,"r" s',
        (
            "not CSV (line 6): ',' expected after '\"'; write a quote inside a quoted "
            "text twice"
        ),
    ),
    (
        "a,assistant,r\rs",
        "not CSV (line 6): a carriage return stands outside quotes; quote the text",
    ),
    (
        "a,assistant,r\0",
        (
            "a NUL character at column 14 of the line; is it a text file? Remove it, "
            "or set dataset.encoding"
        ),
    ),
]


@pytest.mark.parametrize(("row", "said"), BAD_TURNS, ids=range(len(BAD_TURNS)))
def test_a_bad_turn_costs_what_follows_it_and_nothing_else(
    read: Read, row: str, said: str
) -> None:
    before = "a,user,q\na,assistant,r\na,user,q2"
    behind = "\nz,user,q\nz,assistant,r\ny,user,q\ny,assistant,r"
    rows = lines(read(f"{before}\n\n{row}\na,user,q3\na,assistant,r3{behind}"))
    assert rows == [3, f"x.csv:6: {said}", cost(8, 6), 10, 12]


def test_a_row_of_nobody_may_be_the_first_of_the_next(read: Read) -> None:
    end = "b,user,q\nb,assistant,r\nc,user,q\nc,assistant,r"
    rows = lines(read(f"a,user,q\na,assistant,r\n,user,p\n{end}"))
    assert (rows[0], rows[2:]) == (3, [cost(6, 4, "b"), 8])
    assert "x.csv:4: column 'conversation' is empty" in rows[1]


def test_a_row_of_nobody_among_interleaved_conversations(read: Read) -> None:
    text = "a,user,q\nb,user,q\na,assistant,r\n,,oh\nb,assistant,r\n"
    text += "c,user,q\nc,assistant,r"
    rows = lines(read(text, interleaved=True))
    assert (rows[0], rows[2:]) == (4, [cost(6, 5, "b"), 8])
    numbered = "\n".join(f"{row},{i}" for i, row in enumerate(text.split("\n")))
    header = f"{HEADER},turn"
    rows = lines(read(numbered, header, interleaved=True, turn_column="turn"))
    assert (rows[0], rows[2:]) == (4, [cost(6, 5, "b"), 8])


def test_a_bad_turn_may_be_more_of_what_comes_before(read: Read) -> None:
    text = "a,user,q\na,assistant,r\na,zz,r2\na,user,q2"
    assert lines(read(text))[0] == 3
    assert lines(read(text, consecutive="join"))[0] == cost(3, 4)
    asked = "a,user,q\na,zz,q2"
    (bad,) = read(asked, consecutive="join")
    assert bad.origin.line == 3
    for consecutive in ("join", "error"):
        rows = lines(read(asked, unanswered=True, consecutive=consecutive))
        assert rows[0] == cost(2, 3)
        assert len(rows) == 2
    rows = read("a,assistant,hi\na,zz,r", opening="keep", consecutive="join")
    assert len(rows) == 1


def test_a_quote_that_is_never_closed(read: Read) -> None:
    rows = lines(read('a,user,q\na,assistant,r\nb,user,"q\nb,assistant,r\n'))
    assert rows == [
        3,
        (
            "x.csv:4: not CSV (lines 4 to 5): a quote is opened and not closed; write "
            "a quote inside a quoted text twice"
        ),
    ]
    rows = lines(read('a,user,"' + "q" * 200_000))
    assert rows == [
        (
            "x.csv:2: not CSV (line 2): field is larger than field limit (131072); is "
            "a quote not closed?"
        )
    ]


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        (
            b"",
            {"turn_column": "n"},
            (
                "x.csv: is empty; its first row must name the columns, such as "
                "conversation,role,text,n"
            ),
        ),
        (
            b"conversation,rolle,text\n",
            {},
            (
                "x.csv:1: the header has no column 'role' (did you mean 'rolle'?), "
                "but: conversation, rolle, text; set dataset.role_column, or "
                "dataset.separator (now ',')"
            ),
        ),
        (
            b"\nconversation;role;text\n",
            {},
            (
                "x.csv:2: the header has no column 'conversation', but: "
                "conversation;role;text; set dataset.conversation_column, or "
                "dataset.separator (now ',')"
            ),
        ),
        (
            b"conversation,role,text,text\n",
            {},
            "x.csv:1: the header has the column 'text' 2 times; rename all but one",
        ),
        (
            b'"conversation" ,role\n',
            {},
            (
                "x.csv:1: the header can't be read: not CSV (line 1): ',' expected "
                "after '\"'; write a quote inside a quoted text twice"
            ),
        ),
        (
            HEADER.encode("utf-16"),
            {},
            "x.csv: is UTF-16, not UTF-8; re-save the file as UTF-8",
        ),
    ],
)
def test_files_that_cannot_be_read(
    read: Read, text: bytes, settings: Any, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(text, **settings)
    assert str(caught.value) == said


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        f"{HEADER}\na,user,q\na,assistant,r\nb,assistant,r\nc,user,q\na,user,q\n"
    )
    check_dataset_format(dialogues(), path, bad_rows=3)
    check_dataset_format(dialogues(interleaved=True), path, bad_rows=2)
    for part, count in (("train", 192), ("validation", 36)):
        form = dialogues(turn_column="turn")
        records = check_dataset_format(form, DATA / f"{part}.csv", bad_rows=0)
        assert len(records) == count
