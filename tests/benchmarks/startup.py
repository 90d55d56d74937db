"""How long the light commands take, as whole processes: median of some runs beside a bare
interpreter's.

python tests/benchmarks/startup.py [--runs 10]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import click'": ["-c", "import click"],
    "ptkit --help": ["-m", "ptkit", "--help"],
    "ptkit run --help": ["-m", "ptkit", "run", "--help"],
    "ptkit plugins": ["-m", "ptkit", "plugins"],
    "ptkit schema": ["-m", "ptkit", "schema"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    for name, arguments in COMMANDS.items():
        seconds(arguments)  # warm-up: files into the cache
        times = [seconds(arguments) for _ in range(runs)]
        print(f"{name:26} {statistics.median(times) * 1000:6.0f} ms  (min {min(times) * 1000:.0f})")


if __name__ == "__main__":
    main()
