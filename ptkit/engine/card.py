"""README.md of an adapter: a model card, made from the files of the run folder around it.

It has no date and no path, so that a run that was stopped and resumed writes the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ptkit.engine.files import write_text
from ptkit.engine.page import counted, number, span
from ptkit.engine.runfolder import FinishedRun, read_run
from ptkit.engine.usage import example_prompt, python_lines, shell_lines

CARD = "README.md"
TAGS = ("ptkit", "p-tuning-v2", "prefix-tuning")
EXPLAINED = {
    "before": "the frozen model without the adapter",
    "constant": "the best of the training answers tried, given to every row",
    "after": "with the adapter",
}
# what YAML 1.2 doesn't take in a double-quoted string as it is, though JSON does
UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def write_card(folder: Path) -> None:
    """Write ``adapter/README.md`` of a run. Raises `PtkitError` if the run is not finished."""
    write_text(folder / "adapter" / CARD, render(read_run(folder)))


def render(run: FinishedRun) -> str:
    sections = [_what(run), _data(run), _training(run), _scores(run), _use(run)]
    return f"{_front_matter(run)}\n# {_title(run)}\n\n" + "\n".join(sections)


def _title(run: FinishedRun) -> str:
    return f"{_plain(run.manifest['task']['kind'])} adapter for {_plain(_base(run))}"


def _base(run: FinishedRun) -> str:
    return str(run.manifest["backbone"]["name"])


def _front_matter(run: FinishedRun) -> str:
    lines = ["---", "library_name: ptkit", f"base_model: {_yaml(_base(run))}"]
    lines += _yaml_list("tags", [*TAGS, str(run.manifest["task"]["kind"])])
    if run.metrics:
        lines += _yaml_list("metrics", run.metrics)
    return "\n".join([*lines, "---"]) + "\n"


def _what(run: FinishedRun) -> str:
    prefix, backbone = run.manifest["prefix"], run.manifest["backbone"]
    shape = backbone["geometry"]
    hidden = prefix.get("projection_hidden_size")
    projection = f", made by an MLP of width {hidden:,}" if hidden else ""
    lines = [
        f"A P-Tuning v2 adapter: {counted(prefix['length'], 'virtual token')} in front of each "
        f"of the {shape['layers']} layers{projection}, "
        f"{run.environment['trainable_parameters']:,} trained parameters in all. The base model "
        "stays as it is.",
        "",
        f"- base: {_code(_base(run))}, backbone kind {_code(backbone['kind'])}",
        f"- fingerprint of the base: {_code(backbone['fingerprint'])}",
        f"- fingerprint of its tokenizer: {_code(backbone['tokenizer'])}",
        f"- task: {_code(run.manifest['task']['kind'])}{_labels(run)}",
    ]
    return "\n".join(lines) + "\n"


def _labels(run: FinishedRun) -> str:
    labels = run.manifest["task"].get("labels") or []
    shown = ", ".join(_code(label) for label in labels[:20])
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    return f", labels {shown}{more}" if labels else ""


def _data(run: FinishedRun) -> str:
    rows = [
        (
            name,
            _code(Path(str(part.get("source"))).name),
            f"{part.get('rows', 0):,}",
            _code(str(part.get("sha256"))),
        )
        for name, part in run.environment["data"].items()
    ]
    return "## Data\n\n" + _table(("part", "file", "rows", "sha256"), rows, numbers={2})


def _training(run: FinishedRun) -> str:
    prefix, train = run.recipe["prefix"], run.recipe["train"]
    settings = {f"prefix.{key}": value for key, value in prefix.items()}
    if "start" in prefix:
        settings["prefix.start"] = Path(prefix["start"]).name
    settings |= {f"train.{key}": value for key, value in train.items()}
    rows = [(_code(key), _code(json.dumps(v, ensure_ascii=False))) for key, v in settings.items()]
    best = run.best_validation
    text = f"Trained for {counted(run.steps, 'optimiser step')}"
    if best is not None:
        text += f"; the weights of step {best[0]:,} were kept, validation loss {best[1]:.4f} nats"
    return f"## Training\n\n{text}.\n\n" + _table(("setting", "value"), rows)


def _scores(run: FinishedRun) -> str:
    if not run.metrics:
        return "## Scores\n\nNothing was scored.\n"
    rows = []
    for metric in run.metrics:
        cells = [_plain(metric)]
        for column in run.columns:
            interval = run.interval(column, metric)
            around = "" if interval is None else f" ({span(interval)})"
            cells.append(f"{number(run.scores[column].get(metric))}{around}")
        rows.append(cells)
    places = set(range(1, len(run.columns) + 1))
    units = ", ".join(sorted(set(run.scoring.get("units", {}).values())))
    intro = f"On {counted(len(run.predictions), f'{run.scored_part} row')}"
    if units:
        intro += f"; {units}"
    notes = [f"- {column}: {EXPLAINED[column]}" for column in run.columns]
    if run.bootstrap.mean("after", run.metrics[0]) is not None:
        notes.append(
            "- in brackets: 95 % bootstrap interval over rows (percentiles, 2,000 resamples)"
        )
    return (
        f"## Scores\n\n{intro}.\n\n"
        + _table(("score", *run.columns), rows, numbers=places)
        + "\n"
        + "\n".join(notes)
        + "\n"
    )


def _use(run: FinishedRun) -> str:
    # a row of the data may be nobody else's business: a card is made to be passed on
    prompt = None if example_prompt(run) is None else "your prompt"
    source = str(run.recipe["backbone"].get("source", ""))
    named = not Path(source).is_absolute()
    # of a path only the name is kept, in a place that no reader takes for their own
    source = source if named else f"/path/to/{Path(source).name}"
    base = "" if named else ", the base model's folder in place of the path below"
    return (
        f"## Use\n\nWith ptkit installed{base} and this folder named `adapter`:\n\n"
        f"```python\n{python_lines(source, 'adapter', prompt)}```\n\n"
        f"```sh\n{shell_lines(source, 'adapter', chat=prompt is not None)}```\n"
    )


# ------------------------------------------------------------------------------------------ text


def _yaml(text: str) -> str:
    """A YAML double-quoted string: JSON's, with what YAML calls unprintable escaped."""
    written = json.dumps(text, ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", written)


def _yaml_list(key: str, entries: Iterable[str]) -> list[str]:
    return [f"{key}:", *(f"  - {_yaml(entry)}" for entry in entries)]


def _plain(text: str) -> str:
    """Text in which Markdown and HTML find nothing of theirs, on one line."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|#&~!])", r"\\\1", flat)


def _code(text: str) -> str:
    """A code span; a bar in it would end a table's cell."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", flat)), default=0))
    padded = f" {flat} " if flat.startswith("`") or flat.endswith("`") else flat
    return f"{ticks}{padded}{ticks}"


def _table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, numbers: Iterable[int] = ()
) -> str:
    """A Markdown table; ``numbers``: the places of columns to align to the right."""
    right = set(numbers)
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    lines = [header, rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
