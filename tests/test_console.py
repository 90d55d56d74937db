"""What a run shows: plain lines when piped, a bar on a terminal, one table of scores."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ptkit.commands import console
from ptkit.commands.console import ConsoleReporter

SCORES = {
    "before": {"rouge-1": 12.256, "share": 4.0},
    "constant": {"rouge-1": 28.6},
    "after": {"rouge-1": 89.24, "share": 93.8},
}


def reporter(*, terminal: bool = False) -> tuple[ConsoleReporter, io.StringIO]:
    text = io.StringIO()
    made = Console(file=text, force_terminal=terminal, width=100, color_system=None)
    return ConsoleReporter(made), text


def test_plain_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, one every ten seconds, and the last."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    shown, text = reporter()
    for step in range(1, 101):
        now[0] += 0.25
        shown.progress("training", step, 100, {"loss": 1 / step})
    lines = text.getvalue().splitlines()
    assert lines == [
        "training: 1/100  loss 1.0000",
        "training: 41/100  loss 0.0244",
        "training: 81/100  loss 0.0123",
        "training: 100/100  loss 0.0100",
    ]


def test_a_stage_of_unknown_size_is_not_announced() -> None:
    shown, text = reporter()
    shown.progress("encoding train", 1000, None, {})
    assert text.getvalue() == ""


def test_a_bar_on_a_terminal_ends_and_makes_room() -> None:
    shown, text = reporter(terminal=True)
    shown.progress("training", 1, 2, {"loss": 0.5})
    shown.progress("training", 2, 2, {"loss": 0.25})
    shown.progress("answering", 1, 2, {})
    shown.stage("done")
    out = text.getvalue()
    assert "training" in out
    assert "2/2" in out
    assert "loss 0.2500" in out
    assert out.rstrip().endswith("done")


@pytest.mark.parametrize("terminal", [False, True])
def test_the_score_table(terminal: bool) -> None:
    shown, text = reporter(terminal=terminal)
    shown.scores(SCORES, "这件裙子" * 30, "validation", 1234)
    out = text.getvalue()
    assert "scores on 1,234 validation rows" in out
    rows = [line.split() for line in out.splitlines() if line.strip()]
    assert ["before", "constant", "after"] in rows
    assert ["rouge-1", "12.26", "28.60", "89.24"] in rows
    assert ["share", "4.00", "–", "93.80"] in rows
    assert "the best training answer, given to every row" in out
    assert ("这件裙子" * 15 + "…") in out


def test_no_table_without_a_score() -> None:
    shown, text = reporter()
    shown.scores({"before": {}, "constant": {}, "after": {}}, "x", "validation", 1)
    assert text.getvalue() == "\nno scores on 1 validation row: no metric gave one\n"


def test_markup_in_data_is_text() -> None:
    shown, text = reporter()
    shown.warning("[bold]x[/bold] failed")
    shown.finished(Path("runs/[a]"))
    assert "warning: [bold]x[/bold] failed" in text.getvalue()
    assert "runs/[a]" in text.getvalue()
