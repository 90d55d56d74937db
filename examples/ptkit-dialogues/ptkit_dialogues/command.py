"""The command ``ptkit dialogue-stats``: what a file of dialogues holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, get_args, get_origin

import click
import ptkit
from pydantic import ValidationError

from ptkit_dialogues.distinct import distinct
from ptkit_dialogues.format import DialogueCsv

SHOWN = 3  # bad rows


def _settings(command: Callable[..., None]) -> Callable[..., None]:
    """The settings of `DialogueCsv` as options, with the same names and defaults."""
    for name, field in reversed(DialogueCsv.Settings.model_fields.items()):
        if name in ptkit.DatasetFormat.Settings.model_fields and name != "on_bad_row":
            continue
        flag = f"--{name.replace('_', '-')}"
        text = " ".join((field.description or "").split())
        if isinstance(field.default, bool):
            option = click.option(flag, is_flag=True, default=field.default, help=text)
        else:
            kind: Any = int if name == "max_history" else str
            if get_origin(field.annotation) is Literal:
                kind = click.Choice(get_args(field.annotation))
            option = click.option(
                flag, type=kind, default=field.default, show_default=True, help=text
            )
        command = option(command)
    return command


@click.command(name="dialogue-stats")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--tokens",
    type=click.Choice(["characters", "words"]),
    default="characters",
    show_default=True,
    help="What lengths and distinct-n are counted in.",
)
@_settings
def stats(file: Path, tokens: Any, **given: Any) -> None:
    """Count the conversations and replies of FILE, a CSV of dialogues.

    It reads as dataset.kind = "dialogue-csv" does, with the same settings. distinct-n
    is that of the replies in the file, which is what a model's replies compare with.
    """
    name = str(file)
    try:
        settings = DialogueCsv.Settings(train=ptkit.SourcePath(name, file), **given)
    except ValidationError as error:
        raise ptkit.PtkitError(*map(_option_problem, error.errors())) from None
    conversations, items = 0, []
    for number, found in DialogueCsv(settings).conversations(file, name):
        conversations += number
        items += found
    bad = [item for item in items if isinstance(item, ptkit.BadRow)]
    records = [item for item in items if isinstance(item, ptkit.GenerationRecord)]
    if bad and settings.on_bad_row == "error":
        more = f" (and {len(bad) - 1} more such rows)" if len(bad) > 1 else ""
        raise ptkit.DataError(f"{bad[0]}{more}", bad_rows=bad)
    for row in bad[:SHOWN]:
        click.echo(str(row), err=True)
    if not records:
        raise ptkit.DataError(f"{name}: has no replies; see the rows below its header")

    def lengths(texts: Sequence[str]) -> str:
        sizes = [len(t.split() if tokens == "words" else t) for t in texts]
        return f"{_number(median(sizes))} {tokens} (median), longest {max(sizes)}"

    turns = [len(record.history) for record in records]
    replies = [record.response or "" for record in records]
    scores = distinct(replies, tokens)
    rows = {
        "conversations": str(conversations),
        "replies": str(len(records)),
        "history": f"{mean(turns):.1f} earlier exchanges (mean), longest {max(turns)}",
        "prompt": lengths([record.prompt for record in records]),
        "reply": lengths(replies),
        **{key: f"{value:.1f} %" for key, value in scores.items()},
        "bad rows": str(len(bad)),
    }
    for key, text in rows.items():
        click.echo(f"{key:<15}{text}")


def _option_problem(problem: Any) -> str:
    where = "".join(f"--{str(key).replace('_', '-')}: " for key in problem["loc"])
    return f"{where}{problem['msg'].removeprefix('Value error, ')}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
