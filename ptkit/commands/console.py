"""What a run shows in the terminal: a live bar with rich, plain lines when the output is piped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ptkit.reporter import Reporter

PLAIN_EVERY = 10.0  # seconds between the plain lines of one stage
COLUMNS = ("before", "constant", "after")
EXPLAINED = {
    "before": "the frozen model without a prefix",
    "constant": "the best training answer, given to every row",
    "after": "with the trained prefix",
}


class ConsoleReporter(Reporter):
    """Writes to ``console``; a progress bar if it is a terminal, else a line every ten seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._next_line = 0.0

    def stage(self, text: str) -> None:
        self.close()
        self._print(text)

    def warning(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def progress(
        self, what: str, done: int, total: int | None, values: Mapping[str, float]
    ) -> None:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        if self._console.is_terminal:
            self._show_bar(what, done, total, figures)
        elif what != self._what or done == total or time.monotonic() >= self._next_line:
            # a stage's first line only says that it began; stages of unknown size end without one
            if total is not None or what == self._what:
                of = f"{done:,}" if total is None else f"{done:,}/{total:,}"
                self._print(f"{what}: {of}  {figures}".rstrip())
            self._next_line = time.monotonic() + PLAIN_EVERY
        self._what = what

    def _show_bar(self, what: str, done: int, total: int | None, figures: str) -> None:
        if self._bar is None or what != self._what:
            self.close()
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[figures]}", style="dim"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(what, total=total, figures=figures)
        assert self._task is not None
        self._bar.update(self._task, completed=done, figures=figures)
        if total is not None and done >= total:
            self.close()

    def close(self) -> None:
        """Take the bar off the screen's live part; its last state stays."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def scores(
        self, scores: Mapping[str, Mapping[str, float]], constant: str | None, part: str, rows: int
    ) -> None:
        on = f"{rows:,} {part} row{'' if rows == 1 else 's'}"
        columns = [name for name in COLUMNS if name in scores]
        if not scores[columns[-1]]:
            self._print(f"\nno scores on {on}: no metric gave one")
            return
        table = Table(box=None)
        table.add_column("", style="bold")
        for name in columns:
            table.add_column(name, justify="right", style="green" if name == "after" else "")
        for metric in scores[columns[-1]]:
            cells = [
                f"{scores[name][metric]:.2f}" if metric in scores[name] else "–" for name in columns
            ]
            table.add_row(metric, *cells)
        self._print(f"\nscores on {on}")
        self._console.print(table)
        self._console.print()
        for name in columns:
            self._print(f"{name}: {EXPLAINED[name]}", style="dim")
        if constant is not None:
            shown = constant if len(constant) <= 60 else f"{constant[:60]}…"
            self._print(f"the constant answer: {shown}", style="dim")

    def finished(self, folder: Path) -> None:
        self._print(f"\nrun folder: {folder}")
        self._print(f"adapter:    {folder / 'adapter'}")
