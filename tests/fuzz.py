"""Mutated recipes and data files: each is used, or refused with lines; nothing else may happen.

    python tests/fuzz.py [--cases 10000] [--seed 0]

Every case is one recipe and one data file, one or both of them damaged: bytes flipped, cut, repeated or
moved, and values replaced by awkward ones. It is loaded, its data is read and encoded, and one in ten
that is accepted trains for a step. A case fails if anything but a `PtkitError` with printable lines
comes out, if it takes more than ten seconds, or if a refused one leaves a folder behind.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType

import ptkit_adgen
import ptkit_metrics_zh
import ptkit_tasks

import ptkit
from ptkit.engine.session import run
from ptkit.errors import PtkitError
from ptkit.preparation import prepare
from ptkit.recipe import Recipe
from ptkit.registry import Owner, Registry, empty_registry
from ptkit.reporter import Reporter
from ptkit.testing import TinyBackbone

SECONDS = 10
RECIPE = """\
ptkit = 1

[backbone]
kind = "tiny"
source = "tiny"

[prefix]
length = 3
init = "normal"
init_std = 0.5

[dataset]
kind = "adgen"
train = "train.json"
validation = "validation.json"
limit = { train = 6, validation = 2 }
on_bad_row = "error"

[[transforms]]
kind = "shuffle-responses"

[task]
kind = "generation"
max_source_tokens = 32
max_target_tokens = 8

[task.sampling]
temperature = 0.5

[[metrics]]
kind = "bleu-char"

[train]
max_steps = 1
batch_size = 2
learning_rate = 0.1
betas = [0.9, 0.99]
"""
ROWS = [{"content": f"类型#裙*颜色#红{i}", "summary": f"这 条 裙 {i}"} for i in range(8)]
AWKWARD = [
    *[
        "-1",
        "0",
        "1e400",
        "nan",
        "-inf",
        "99999999999999999999999",
        "true",
        '""',
        '"\\u0000"',
        "[]",
    ],
    *[
        "{}",
        '"../../etc"',
        "1979-05-27",
        '"' + "x" * 3000 + '"',
        "[[[[]]]]",
        "'''",
        "{ a = 1 }",
        "null",
    ],
    *['"\\ud800"', '"类型"', "0x10", "1_000", "[1, 'a']", '"nano:"', '"~nobody/x"', '"/dev/null"'],
]


class Tiny:
    """The tiny backbone as a plugin."""

    @ptkit.hookimpl
    def ptkit_register_backbones(self) -> list[type[ptkit.Backbone]]:
        return [TinyBackbone]

    @ptkit.hookimpl
    def ptkit_resolve_source(self, source: str) -> Path | None:
        return Path(__file__).parent if source == "tiny" else None


def make_registry() -> Registry:
    registry = empty_registry()
    for name, plugin in (
        ("tiny", Tiny()),
        ("adgen", ptkit_adgen),
        ("metrics", ptkit_metrics_zh),
        ("tasks", ptkit_tasks),
    ):
        registry.register(plugin, Owner(name, f"ptkit-{name}", "1"))
    return registry


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four byte-level accidents."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not changed:
            break
        place = draw.randrange(len(changed))
        other = draw.randrange(len(changed))
        match draw.randrange(6):
            case 0:
                changed[place] = draw.randrange(256)
            case 1:
                del changed[place : place + draw.randint(1, 20)]
            case 2:
                changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 5)))
            case 3:
                changed[place:place] = changed[other : other + 40]
            case 4:
                del changed[place:]
            case 5:
                changed[place:place] = draw.choice(
                    [b"\xef\xbb\xbf", b"\x00", b"\r", b"\xff\xfe", b'"', b"{", b"["]
                )
    return bytes(changed)


def mutate_recipe(draw: random.Random) -> bytes:
    """A value, a key or a line changed; sometimes bytes."""
    lines = RECIPE.splitlines()
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(lines))
        key, equals, _ = lines[place].partition("=")
        match draw.randrange(5):
            case 0 | 1 if equals:
                lines[place] = f"{key}= {draw.choice(AWKWARD)}"
            case 2 if equals:
                letters = list(key.strip())
                letters[draw.randrange(len(letters))] = draw.choice("abxyz_-")
                lines[place] = f"{''.join(letters)} {lines[place][len(key) :]}"
            case 3:
                del lines[place]
            case 4:
                lines.insert(place, lines[draw.randrange(len(lines))])
    data = "\n".join(lines).encode(errors="surrogatepass")
    return mutate_bytes(data, draw) if draw.random() < 0.2 else data


def mutate_data(draw: random.Random) -> bytes:
    """Rows with awkward values, as lines or as an array; sometimes bytes."""
    rows: list[object] = [dict(row) for row in ROWS]
    for _ in range(draw.randint(0, 3)):
        row = draw.choice(rows)
        if isinstance(row, dict) and row:
            row[draw.choice([*row, "extra"])] = draw.choice(
                [None, 3, "", " ", "\u2028\x00", "x" * 5000, [], {}, True, "🎉" * 50]
            )
    if draw.random() < 0.2:
        rows[draw.randrange(len(rows))] = draw.choice([1, "text", [], None, {}])
    text = json.dumps(rows) if draw.random() < 0.3 else "\n".join(map(json.dumps, rows))
    data = text.encode()
    return mutate_bytes(data, draw) if draw.random() < 0.6 else data


class TooLongError(BaseException):
    """The case hangs."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TooLongError


def try_case(seed: int, folder: Path, registry: Registry) -> str:
    """Run one case: "used", "trained" or "refused". Raises whatever else comes out."""
    draw = random.Random(seed)
    recipe_bad, data_bad = draw.choice([(True, False), (False, True), (True, True)])
    path = folder / "recipe.toml"
    path.write_bytes(mutate_recipe(draw) if recipe_bad else RECIPE.encode())
    good = "\n".join(map(json.dumps, ROWS)).encode()
    (folder / "validation.json").write_bytes(good)
    (folder / "train.json").write_bytes(mutate_data(draw) if data_bad else good)
    out = folder / f"run-{seed}"
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    try:
        recipe = Recipe.load(path, registry=registry)
        if draw.random() < 0.1 and (recipe.train.max_steps or 9) <= 3:
            run(recipe, out=out, device="cpu")
            assert (out / "adapter" / "adapter.json").exists()
            return "trained"
        prepare(recipe, Reporter())
        return "used"
    except PtkitError as error:
        refused = error
    finally:
        signal.alarm(0)
    assert refused.lines, "an error without a line"
    for line in refused.lines:
        assert "\n" not in line, f"an error line with a line break: {line!r}"
        line.encode()
    assert not list(folder.rglob("*.partial")), "a half-written file"
    return "refused"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    registry, ended, failed = make_registry(), Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="ptkit-fuzz-") as name:
        for seed in range(options.seed, options.seed + options.cases):
            try:
                ended[try_case(seed, Path(name), registry)] += 1
            except (Exception, TooLongError):
                failed += 1
                print(f"case {seed}:", file=sys.stderr)
                traceback.print_exc(limit=-3)
    print(f"{options.cases:,} cases: {dict(ended)}, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
