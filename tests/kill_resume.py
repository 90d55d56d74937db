"""Kill a run at random moments, resume it each time, and compare the adapter's bytes with a whole
run's.

    python tests/kill_resume.py [--kills 20] [--signal KILL|INT|TERM] [--recipe
    recipes/quickstart.toml]

Every run is a process of its own, as a user's is. Exits with 1 if one of them ends differently.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = (
    "train.max_steps=24",
    "train.eval_every=6",
    "train.save_every=4",
    "dataset.limit={ train = 200, validation = 24 }",
    "task.max_target_tokens=24",
)


def command(recipe: Path, out: Path, *, resume: bool = False) -> list[str]:
    changes = [word for setting in SETTINGS for word in ("--set", setting)]
    end = ["--resume"] if resume else []
    base = [sys.executable, "-m", "ptkit", "run", str(recipe), "--device", "cpu"]
    return [*base, "--out", str(out), *changes, *end]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def finish(recipe: Path, out: Path, *, resume: bool) -> None:
    done = subprocess.run(
        command(recipe, out, resume=resume), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{out}: exit code {done.returncode}\n{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=["KILL", "INT", "TERM"], default="KILL")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/quickstart.toml"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    number = signal.Signals[f"SIG{options.signal}"]
    draw = random.Random(options.seed)
    root = Path(tempfile.mkdtemp(prefix="ptkit-kill-"))
    whole = root / "whole"
    started = time.monotonic()
    finish(options.recipe, whole, resume=False)
    seconds = time.monotonic() - started
    wanted = contents(whole / "adapter")
    print(f"whole run: {seconds:.1f} s")
    different = 0
    for attempt in range(1, options.kills + 1):
        out = root / f"run-{attempt}"
        after = draw.uniform(0.1, 1.0) * seconds
        process = subprocess.Popen(
            command(options.recipe, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            process.wait()
        saved = sorted(path.name for path in out.glob("checkpoints/step-*"))
        finish(options.recipe, out, resume=out.exists())
        same = contents(out / "adapter") == wanted
        different += not same
        last = saved[-1] if saved else "nothing saved"
        verdict = "identical" if same else "DIFFERENT"
        print(
            f"{attempt:3}: SIG{options.signal} after {after:5.1f} s, {last}: {verdict}", flush=True
        )
        shutil.rmtree(out)
    shutil.rmtree(root)
    print(f"{options.kills - different} of {options.kills} byte-identical")
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
