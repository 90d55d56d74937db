"""Training and answering at ChatGLM2-6B's shape with random weights, and PEFT: a JSON line a case.

    python tests/benchmarks/gpu.py [--cases bf16-speed,peft] [--budget 1500] [--out results.jsonl]
    python tests/benchmarks/gpu.py --source random:chatglm2-tiny --device cpu --steps 2 --rows 6

Rows have lengths like ADGEN's: prompts of 45 ± 10 tokens (15–64), answers of 75 ± 20 (20–128), 16
rows a step, a prefix of 128. The answering cases take 1,070 rows: 96 new tokens each, or as many as
such answers have (mixed). The case run takes all 3,000 steps, with events and two checkpoints.
Every case is a process of its own, so that one that fails ends no other;
it gets what is left of the budget. A line holds the case, the seconds it took, and all that
``ptkit bench --json`` writes, or an error.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROWS_A_STEP = 16
PREFIX = 128
ANSWERED = 1070  # rows, as many as ADGEN's dev.json has
NEW_TOKENS = 96
STEPS = 3000
FIRST, LAST = 0x4E00, 0x9F00  # characters that are a token each


@dataclass(frozen=True)
class Case:
    """``overrides`` of the recipe, and what is measured: ptkit or PEFT (``peft``: its rows at
    once, 0 for all of a step), steps or answers."""

    overrides: tuple[str, ...] = ()
    peft: int | None = None
    answers: bool = False
    whole: bool = False
    """The whole run, from the recipe to its folder."""
    data: str = "train.json"


def settings(
    quantization: str = "none", memory: str = "speed", embeddings: str = "device"
) -> tuple[str, ...]:
    return (
        f'backbone.quantization="{quantization}"',
        f'backbone.embeddings="{embeddings}"',
        f'train.memory="{memory}"',
    )


CASES = {
    "bf16-speed": Case(settings()),
    "bf16-host": Case(settings(embeddings="host")),
    "peft": Case(settings(), peft=0),
    "bf16-small": Case(settings(memory="small")),
    "bf16-13GiB": Case(settings(memory="13.65GB", embeddings="host")),  # GB are 10^9 there
    "int4-small": Case(settings("int4", "small", "host")),
    "fp8": Case(settings("fp8")),
    "answers": Case(settings(), answers=True, data="answers.json"),
    "answers-mixed": Case(settings(), answers=True, data="mixed.json"),
    "peft-answers": Case(settings(), peft=0, answers=True, data="answers.json"),
    "peft-answers-mixed": Case(settings(), peft=0, answers=True, data="mixed.json"),
    "int4-speed": Case(settings("int4")),
    "int8-speed": Case(settings("int8")),
    "bf16-auto": Case(settings(memory="auto")),
    "peft-one-row": Case(settings(), peft=1),
    "run": Case((*settings(), f"train.save_every={STEPS // 2}"), whole=True),
}
"""In the order in which they are worth the most."""


# ------------------------------------------------------------------------------------ data


def drawn(draw: random.Random, mean: float, deviation: float, least: int, most: int) -> int:
    return max(least, min(most, round(draw.gauss(mean, deviation))))


def text(draw: random.Random, characters: int, vocabulary: int) -> str:
    last = min(LAST, FIRST + vocabulary)
    return "".join(chr(draw.randrange(FIRST, last)) for _ in range(characters))


@dataclass
class Data:
    """Files of rows whose tokens are as many as wanted, by the backbone's own tokenizer."""

    folder: Path
    tokenizer: Any
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def write(self, name: str, rows: int, answers: Iterator[int]) -> None:
        around = len(self.tokenizer.encode_prompts([self.tokenizer.prompt("")])[0])
        # a vocabulary without room for all characters writes the others in bytes
        known = sum(len(self.tokenizer.encode(chr(c))) == 1 for c in range(FIRST, LAST))
        lines = []
        for _, answer in zip(range(rows), answers, strict=False):
            prompt = max(1, drawn(self.draw, 45, 10, 15, 64) - around)
            row = {
                "content": text(self.draw, prompt, known),
                "summary": text(self.draw, answer - 1, known),  # and eos
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        (self.folder / name).write_text("".join(lines), "utf-8")

    def lengths(self) -> Iterator[int]:
        """Tokens of answers, eos included."""
        while True:
            yield drawn(self.draw, 75, 20, 20, 128)

    def constant(self) -> Iterator[int]:
        while True:
            yield NEW_TOKENS


def recipe(source: str, data: str) -> dict[str, Any]:
    """As the published script trains, 16 rows a step at once."""
    answered = data != "train.json"
    return {
        "ptkit": 1,
        "backbone": {"kind": "chatglm2", "source": source},
        "prefix": {"length": PREFIX},
        "dataset": {
            "kind": "adgen",
            "train": "train.json",
            **({"validation": data} if answered else {}),
        },
        "task": {"kind": "generation", "max_source_tokens": 64, "max_target_tokens": 128},
        "metrics": [{"kind": "bleu-char"}],
        "train": {
            "max_steps": STEPS,
            "batch_size": ROWS_A_STEP,
            "learning_rate": 2e-2,
        },
    }


# ------------------------------------------------------------------------------------ one case


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: the case's figures."""
    import tomli_w

    import ptkit
    from ptkit.engine.bench import Bench, bench

    case = CASES[options.case]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = recipe(options.source, case.data)
        for name in ("train.json", "answers.json", "mixed.json"):
            (folder / name).write_text('{"content": "一", "summary": "一"}\n', "utf-8")
        path = folder / "gpu.toml"
        path.write_text(tomli_w.dumps(made), "utf-8")
        loaded = ptkit.Recipe.load(path, overrides=case.overrides)
        data = Data(folder, loaded.backbone.create().tokenizer)
        data.write("train.json", 64 * ROWS_A_STEP, data.lengths())
        data.write("answers.json", options.rows, data.constant())
        data.write("mixed.json", options.rows, data.lengths())
        steps = 1 if case.answers else options.steps
        warmup = 1 if case.answers else options.warmup
        if case.whole:
            return measure_run(loaded, folder / "run", options.device)
        if case.peft is None:
            result = bench(
                loaded,
                device=options.device,
                steps=steps,
                warmup=warmup,
                answers=case.answers,
            )
            return result.as_dict()
        one = Bench(loaded, device=options.device, steps=steps, warmup=warmup)
        return measure_peft(one, case)


def measure_run(loaded: Any, folder: Path, device: str) -> dict[str, Any]:
    """All steps of the recipe, with events and checkpoints."""
    import statistics

    import ptkit

    started = time.perf_counter()
    ptkit.run(loaded, out=folder, device=device)
    seconds = time.perf_counter() - started
    lines = (folder / "events.jsonl").read_text("utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "train"]
    return {
        "run": {
            "seconds": seconds,
            "steps": len(steps),
            "seconds_of_steps": sum(step["seconds"] for step in steps),
            "median_seconds": statistics.median(step["seconds"] for step in steps),
            "longest_wait_seconds": max(step["wait_seconds"] for step in steps[1:]),
            "losses": [steps[0]["loss"], steps[-1]["loss"]],
            "checkpoints": sorted(path.name for path in (folder / "checkpoints").iterdir()),
        }
    }


def measure_peft(one: Any, case: Case) -> dict[str, Any]:
    """PEFT alone, with the same rows and the same prefix to start from."""
    from dataclasses import asdict

    rate = one.measure_matmuls()
    questions = one.questions() if case.answers else None
    one.load()  # for the prefix, which may depend on the model; it is gone before PEFT's is there
    one.unload()
    peer = one.peer(case.peft or None)
    found: dict[str, Any] = {"work": asdict(one.work), "matmuls": rate.as_dict()}
    if questions is not None:
        return {**found, "answers": one.answer_peer(peer, questions).as_dict()}
    return {**found, "steps": one.train_peer(peer).as_dict(one.work, rate)}


# ------------------------------------------------------------------------------------ all cases


def run(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--case", name, "--source", options.source]
    command += ["--device", options.device, "--steps", str(options.steps)]
    command += ["--rows", str(options.rows)]
    command += [] if options.warmup is None else ["--warmup", str(options.warmup)]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(1.0, seconds), check=False
        )
    except subprocess.TimeoutExpired as error:
        found: dict[str, Any] = {"error": f"stopped after {error.timeout:.0f} s"}
    else:
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            found = json.loads(lines[-1])
        else:
            found = {"error": " | ".join(done.stderr.strip().splitlines()[-6:])}
    return {"case": name, "wall_seconds": round(time.perf_counter() - started, 1), **found}


def short(line: dict[str, Any]) -> str:
    """The figures of a case for a person to read."""
    if "error" in line:
        return f"{line['case']:20} {line['error']}"
    if "run" in line:
        found = line["run"]
        return f"{line['case']:20} {found['steps']} steps in {found['seconds']:.0f} s"
    sides = [line.get("ptkit") or {}, line]
    words = []
    for part in ("steps", "answers"):
        found = next((side[part] for side in sides if side.get(part)), None)
        if not found:
            continue
        seconds = found["median_seconds"] if part == "steps" else found["seconds"]
        peak = found["peak_bytes"]
        memory = "not measured" if peak is None else f"{peak / 2**30:.2f} GiB"
        words.append(f"{part} {seconds:.4f} s, {memory}")
        if part == "steps":
            words.append(f"{found['share_of_matmul_rate']:.0%} of the matmul rate")
    return f"{line['case']:20} {', '.join(words)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--source", default="random:chatglm2-6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, help="steps; ptkit bench's own if not given")
    parser.add_argument("--rows", type=int, default=ANSWERED, help="rows to answer")
    parser.add_argument("--cases", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--budget", type=float, default=1500.0, help="seconds for all cases")
    parser.add_argument("--out", type=Path, help="append the lines to a file, too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options), default=str))
        return
    names = options.cases.split(",") if options.cases else list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    end = time.perf_counter() + options.budget
    for name in names:
        left = end - time.perf_counter()
        line = run(name, options, left) if left > 1 else {"case": name, "error": "no time left"}
        text_line = json.dumps(line, ensure_ascii=False)
        print(text_line, flush=True)
        print(short(line), file=sys.stderr, flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(text_line + "\n")


if __name__ == "__main__":
    main()
