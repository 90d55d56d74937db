"""How to use an adapter, as lines to copy."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ptkit.engine.page import Html, element, joined
from ptkit.engine.runfolder import FinishedRun

LONGEST_EXAMPLE = 80  # characters


def example_prompt(run: FinishedRun) -> str | None:
    """The first prompt of the data that is short enough; None for tasks without prompts."""
    prompts: list[str] = [p for row in run.predictions if isinstance(p := row.get("prompt"), str)]
    if not prompts:
        return None
    return next((p for p in prompts if len(p) <= LONGEST_EXAMPLE), prompts[0][:LONGEST_EXAMPLE])


def python_lines(source: str, adapter: str, prompt: str | None) -> str:
    """Python that loads an adapter and, for tasks with prompts, answers one."""
    lines = [
        "import ptkit",
        "",
        f"tuned = ptkit.load({_quoted(source)}, {_quoted(adapter)})",
    ]
    if prompt is not None:
        lines += [
            f"print(tuned.generate([{_quoted(prompt)}]))",
            "",
            "with tuned.adapter_off():  # the same model without the adapter",
            f"    print(tuned.generate([{_quoted(prompt)}]))",
        ]
    return "\n".join(lines) + "\n"


def shell_lines(source: str, adapter: str, *, chat: bool) -> str:
    """Commands that use an adapter; a base model that has a name is found by the adapter itself."""
    path = shlex.quote(adapter)
    base = f" --backbone {shlex.quote(source)}" if Path(source).is_absolute() else ""
    lines = [
        f"ptkit predict {path} --input FILE --output FILE{base}",
        f"ptkit evaluate {path} --data FILE{base}",
    ]
    if chat:
        lines.insert(0, f"ptkit chat {path}{base}")
    return "\n".join(lines) + "\n"


def usage(run: FinishedRun) -> Html:
    adapter = (run.folder / "adapter").as_posix()
    prompt = example_prompt(run)
    source = str(run.recipe["backbone"].get("source", ""))
    return joined(
        element("h3", "In the terminal"),
        element("pre", shell_lines(source, adapter, chat=prompt is not None)),
        element("h3", "In Python"),
        element("pre", python_lines(source, adapter, prompt)),
        element("p.note", "Paths are as they were when this page was made. ", _fits(run)),
    )


def _fits(run: FinishedRun) -> str:
    backbone = run.manifest["backbone"]
    return (
        f"The adapter fits {backbone['kind']} {backbone['name']} with the fingerprints below, and "
        "is refused elsewhere."
    )


def _quoted(text: str) -> str:
    """As a Python literal in double quotes; JSON's strings are that."""
    return json.dumps(text, ensure_ascii=False)
