"""``ptkit bench``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ptkit.commands import options
from ptkit.commands.tables import show_table

if TYPE_CHECKING:
    from ptkit.engine.figures import Result

NOTHING = "–"


@click.command(name="bench")
@click.argument("recipe", type=click.Path(path_type=Path))
@options.device
@options.recipe_overrides
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Steps to measure; the table has their median.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=1),
    show_default="3, or 30 where steps are compiled",
    help="Steps before them, with all that is compiled or set up once.",
)
@click.option(
    "--against", type=click.Choice(["peft"]), help="Measure the same work by PEFT's prefix tuning."
)
@click.option("--generate", is_flag=True, help="Measure answering, too.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write all figures to a JSON file.",
)
def command(
    recipe: Path,
    device: str,
    overrides: tuple[str, ...],
    steps: int,
    warmup: int | None,
    against: str | None,
    generate: bool,  # noqa: FBT001 - click passes options by name
    json_file: Path | None,
) -> None:
    """Measure how fast a recipe trains.

    Trains a few steps on the recipe's own rows and throws the result away: seconds a step, tokens a
    second, the peak of memory, and the share of what the device reaches when it only multiplies the
    model's matrices. With --generate it also answers the scored rows, each with as many tokens as
    the reference answer has.
    """
    import json

    from ptkit.recipe import Recipe

    loaded = Recipe.load(recipe, overrides=overrides)

    from rich.console import Console

    from ptkit.commands.console import ConsoleReporter
    from ptkit.engine.bench import bench
    from ptkit.engine.files import write_text

    reporter = ConsoleReporter(Console(stderr=True))
    try:
        result = bench(
            loaded,
            device=device,
            steps=steps,
            warmup=warmup,
            against_peft=against is not None,
            answers=generate,
            command=_command(click.get_current_context()),
            reporter=reporter,
        )
    finally:
        reporter.close()
    show(result)
    if json_file is not None:
        write_text(json_file, json.dumps(result.as_dict(), ensure_ascii=False, indent=2) + "\n")
        click.echo(f"\nwrote {json_file}")


def _command(context: click.Context) -> str:
    """The command line of a call, with the options that aren't at their defaults."""
    words = ["ptkit", "bench"]
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif context.get_parameter_source(str(parameter.name)) is not ParameterSource.DEFAULT:
            values: Any = value if parameter.multiple else [value]
            flag = isinstance(parameter, click.Option) and parameter.is_flag
            for one in values:
                words += [parameter.opts[0], *([] if flag else [str(one)])]
    return shlex.join(words)


def show(result: Result) -> None:
    """Print what was measured, the figures as a table."""
    work, data = result.work, result.as_dict()
    quantized = "" if result.quantization == "none" else f", {result.quantization}"
    click.echo(
        f"{result.parameters:,} frozen parameters in {result.dtype}{quantized} on {_place(data)}"
    )
    # heads that bring their own loss have no tokens to predict
    targets = f", {work.targets:,.0f} of them targets" if work.targets else ""
    click.echo(
        f"a step: {work.rows:.0f} rows, {work.tokens:,.0f} tokens{targets}, "
        f"{work.flops / 1e12:.4g} TFLOP in linears"
    )
    click.echo(
        f"matmuls alone, {result.matmuls.tokens:,} tokens: "
        f"{result.matmuls.flops_per_second / 1e12:.4g} TFLOP/s\n"
    )
    both = result.peft.steps is not None or result.peft.answers is not None
    header = ("", "ptkit", "PEFT", "ratio") if both else ("", "ptkit")
    rows = [row[: len(header)] for row in table(data)]
    show_table(header, rows, numbers=tuple(range(1, len(header))))
    if both:
        click.echo("\nratio: how many times faster, or smaller, ptkit is")
    if result.ptkit.loss is not None and result.peft.loss is not None:
        ours, theirs = result.ptkit.loss, result.peft.loss
        click.echo(f"the first step's loss without dropout: {ours:.5f}, PEFT's {theirs:.5f}")
    if data["same_answers"] is not None:
        rows_answered = data["ptkit"]["answers"]["rows"]
        click.echo(f"the same answers: {data['same_answers']:,} of {rows_answered:,}")
    for note in result.notes:
        click.echo(note)


def _place(data: dict[str, Any]) -> str:
    found = data["environment"]
    packages = found["packages"]
    where = found.get("gpu") or f"{found['device']}, {found['threads']} threads"
    return f"{where} (torch {packages['torch']}, transformers {packages['transformers']})"


def table(data: dict[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table: what, ptkit's figure, PEFT's, and how much better ptkit's is."""
    lines: list[tuple[str, ...]] = []

    def line(
        what: str, part: str, key: str, form: str, *, scale: float = 1.0, less: bool = False
    ) -> None:
        found = [(data[side][part] or {}).get(key) for side in ("ptkit", "peft")]
        if found == [None, None]:
            return
        shown = [NOTHING if v is None else format(v * scale, form) for v in found]
        ours, theirs = found
        ratio = NOTHING
        if ours and theirs:
            ratio = f"{theirs / ours if less else ours / theirs:.2f}"
        lines.append((what, *shown, ratio))

    line("a step, median, s", "steps", "median_seconds", ".4f", less=True)
    line("the first step, s", "steps", "first_seconds", ".2f", less=True)
    line("tokens/s", "steps", "tokens_per_second", ",.0f")
    if data["work"]["targets"]:
        line("target tokens/s", "steps", "targets_per_second", ",.0f")
    line("share of the matmul rate, %", "steps", "share_of_matmul_rate", ".1f", scale=100)
    peak = "peak memory" if data["device"].startswith("cuda") else "growth of memory"
    line(f"{peak}, GiB", "steps", "peak_bytes", ".2f", scale=2**-30, less=True)
    at_once = [(data[side]["steps"] or {}).get("at_once", NOTHING) for side in ("ptkit", "peft")]
    lines.append(("together in the model", *at_once, ""))
    line("answers, s", "answers", "seconds", ".2f", less=True)
    line("answered rows/s", "answers", "rows_per_second", ",.1f")
    line("new tokens/s", "answers", "tokens_per_second", ",.0f")
    line(f"{peak} of answering, GiB", "answers", "peak_bytes", ".2f", scale=2**-30, less=True)
    return lines
