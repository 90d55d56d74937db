"""Seconds, rows a second and peak memory of ``ptkit check`` on a million rows; fails from 1 GB on.

    python tests/benchmarks/million_rows.py [--rows 1000000] [--set KEY=VALUE …]

The rows are recombined from those of ptkit-nano, with answers of about 85 tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ptkit_nano

ROOT = Path(__file__).parents[2]
LIMIT = 1e9  # bytes


def write(path: Path, count: int) -> None:
    source = Path(ptkit_nano.__file__).parent / "data" / "train.json"
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines()]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            first, second = draw.choice(rows), draw.choice(rows)
            row = {**first, "summary": first["summary"] + second["summary"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        write(path, options.rows)
        overrides = [f'dataset.train="{path}"', *options.overrides]
        arguments = [part for override in overrides for part in ("--set", override)]
        recipe = str(ROOT / "recipes" / "quickstart.toml")
        command = [sys.executable, "-m", "ptkit", "check", recipe, "--json", *arguments]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(
        f"ptkit check, {options.rows:,} rows: {seconds:.1f} s, "
        f"{options.rows / seconds:,.0f} rows/s, peak {peak / 1e6:.0f} MB"
    )
    if peak >= LIMIT:
        sys.exit(f"the peak must stay under {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
