"""Tables in the terminal: with rules on one, aligned text when piped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()
) -> None:
    """Print a table; ``numbers``: the places of columns to align to the right."""
    from rich.cells import cell_len

    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for place, title in enumerate(header):
            table.add_column(Text(title), justify="right" if place in numbers else "left")
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    lines = (header, *rows)
    widths = [max(cell_len(line[place]) for line in lines) for place in range(len(header))]
    for line in lines:
        cells = []
        for place, (cell, width) in enumerate(zip(line, widths, strict=True)):
            room = " " * (width - cell_len(cell))
            cells.append(room + cell if place in numbers else cell + room)
        click.echo("  ".join(cells).rstrip())
