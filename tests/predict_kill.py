"""Answer 10,000 rows, ten of them bad; kill it often; compare with a job that was never killed.

    python tests/predict_kill.py ADAPTER [--rows 10000] [--kills 5] [--signal KILL] [--set …]

Every job is a process of its own, as a user's is. Exits with 1 if a row is lost, repeated, out of
order or answered differently.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLOURS = ["红色", "蓝色", "白色", "黑色", "粉色", "绿色", "紫色"]
KINDS = ["裙", "裤", "上衣", "鞋", "包"]
BAD = ["not json", "[1, 2]", '{"content": 3}', '{"text": "x"}', '{"content": ""}']


def write_rows(path: Path, count: int, bad: set[int]) -> None:
    draw = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            if index in bad:
                file.write(BAD[index % len(BAD)] + "\n")
                continue
            parts = [f"类型#{draw.choice(KINDS)}", *draw.sample(COLOURS, 1 + index % 4)]
            row = {"content": "*颜色#".join(parts), "number": index}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--bad", type=int, default=10)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--signal", choices=["KILL", "INT", "TERM"], default="KILL")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--backbone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    root = Path(tempfile.mkdtemp(prefix="ptkit-predict-"))
    source = root / "in.json"
    bad = set(draw.sample(range(options.rows), options.bad))
    write_rows(source, options.rows, bad)
    base = [sys.executable, "-m", "ptkit", "predict", str(options.adapter), "--device", "cpu"]
    base += ["--input", str(source)]
    base += [word for setting in options.overrides for word in ("--set", setting)]
    if options.backbone:
        base += ["--backbone", options.backbone]

    def start(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*base, "--output", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(out: Path) -> str:
        process = start(out)
        said, _ = process.communicate()
        if process.returncode != 0:
            raise SystemExit(f"exit code {process.returncode}\n{said}")
        return said.splitlines()[-1]

    started = time.monotonic()
    closing = finish(root / "whole.jsonl")
    seconds = time.monotonic() - started
    print(f"never killed: {closing} ({seconds:.0f} s)", flush=True)
    killed = root / "killed.jsonl"
    growing = killed.with_name("killed.jsonl.part")
    for number in range(1, options.kills + 1):
        process = start(killed)
        try:
            process.wait(seconds * draw.uniform(0.3, 0.6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.Signals[f"SIG{options.signal}"])
        said, _ = process.communicate()
        if killed.exists():
            print(f"stop {number}: came too late, the job was done", flush=True)
            break
        kept = growing.read_bytes().count(b"\n") if growing.exists() else 0
        last = said.splitlines()[-1] if options.signal != "KILL" else ""
        print(f"stop {number}: {kept:,} lines are on the disk  {last}".rstrip(), flush=True)
    if not killed.exists():
        closing = finish(killed)
        print(f"continued: {closing}")

    lines = [json.loads(line) for line in killed.read_text(encoding="utf-8").splitlines()]
    origins = [line["origin"] for line in lines]
    checks = {
        "the same bytes": killed.read_bytes() == (root / "whole.jsonl").read_bytes(),
        "no row lost, repeated or moved": origins
        == [f"{source}:{number}" for number in range(1, options.rows + 1)],
        "bad rows are errors, and no other": {i for i, x in enumerate(lines) if "error" in x}
        == bad,
        "nothing left over": sorted(path.name for path in root.iterdir())
        == ["in.json", "killed.jsonl", "whole.jsonl"],
    }
    for what, good in checks.items():
        print(f"{'yes' if good else 'NO '}  {what}")
    if all(checks.values()):
        shutil.rmtree(root)
        return 0
    print(f"see {root}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
