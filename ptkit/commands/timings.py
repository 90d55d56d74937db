"""What loading each plugin and command costs: alone, in an interpreter of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptkit.commands.tables import show_table
from ptkit.entrypoints import (
    COMMANDS,
    SLOW,
    Found,
    LoadError,
    Watch,
    find_entries,
    one_line,
    watched,
)

TIMEOUT = 60.0  # seconds
_CHILD = """
import json, sys
job = json.load(sys.stdin)
sys.path[:] = job["path"]
from ptkit.commands.timings import measure
measure(job)
"""


def time_entries(*, timeout: float = TIMEOUT) -> list[dict[str, Any]]:
    """One entry a plugin or command that isn't disabled, with JSON values.

    ``group``, ``name``, ``distribution``, ``version``; ``seconds`` of loading and registering it,
    beyond those of importing ptkit; ``imported``: the heavy modules that this imports;
    ``printed``: what it writes to stdout; ``problem``: why it can't be loaded, or None.
    """
    return [_timed(found, timeout) for found in find_entries().wanted]


def _timed(found: Found, timeout: float) -> dict[str, Any]:
    owner = found.owner
    entry: dict[str, Any] = {
        "group": found.entry_point.group,
        "name": owner.plugin,
        "distribution": owner.distribution,
        "version": owner.version,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "cost.json")
        job = json.dumps({**entry, "path": sys.path, "out": str(out)})
        problem = None
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD],
                input=job,
                text=True,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            problem = f"still loading after {timeout:g} s, stopped"
        else:
            if out.exists():
                return {**entry, **json.loads(out.read_text(encoding="utf-8"))}
            last = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr"]
            problem = f"ended its interpreter with code {done.returncode}: {last[0]}"
    return {**entry, "seconds": None, "imported": [], "printed": "", "problem": problem}


def measure(job: Mapping[str, Any]) -> None:
    """Load the entry point that ``job`` names, here, and write what it cost to ``job["out"]``."""
    from ptkit.registry import empty_registry

    registry = empty_registry()
    wanted = (job["group"], job["name"], job["distribution"])
    found = next(
        one
        for one in find_entries().wanted
        if (one.entry_point.group, one.owner.plugin, one.owner.distribution) == wanted
    )
    problem = None
    with watched() as watch:
        try:
            plugin = found.load()
            if found.entry_point.group != COMMANDS:
                registry.register(plugin, found.owner)
        except LoadError as error:
            problem = str(error)
        except Exception as error:
            problem = one_line(error)
    if registry.failures:
        problem = registry.failures[0].reason
    cost = {
        "seconds": round(watch.seconds, 4),
        "imported": list(watch.imported),
        "printed": watch.printed,
        "problem": problem,
    }
    Path(job["out"]).write_text(json.dumps(cost), encoding="utf-8")


def show_timings(timings: Sequence[Mapping[str, Any]]) -> None:
    """Print `time_entries` as a table, what is slow or wrong in its last column."""
    rows = [
        (
            entry["distribution"],
            f"command {entry['name']}" if entry["group"] == COMMANDS else entry["name"],
            "" if entry["seconds"] is None else f"{entry['seconds'] * 1000:.0f}",
            _remarks(entry),
        )
        for entry in timings
    ]
    show_table(("distribution", "loaded", "ms", "remarks"), rows, numbers=(2,))


def _remarks(entry: Mapping[str, Any]) -> str:
    remarks = []
    if entry["problem"]:
        remarks.append(entry["problem"])
    if entry["imported"]:
        remarks.append(f"imports {' and '.join(entry['imported'])}")
    if (entry["seconds"] or 0) > SLOW:
        remarks.append(f"slow: over {SLOW:g} s")
    if entry["printed"]:
        remarks += Watch(printed=entry["printed"]).warnings()
    return "; ".join(remarks)
