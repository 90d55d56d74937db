"""Write the quickstart's rows: ``python scripts/make_data.py --out ptkit_nano/data``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal

from grammar import house_rows

SPLITS: tuple[tuple[Literal["train", "validation"], int], ...] = (
    ("train", 2000),
    ("validation", 200),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS:
        lines = [json.dumps(row, ensure_ascii=False) for row in house_rows(split, count)]
        (out / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {count} rows")


if __name__ == "__main__":
    main()
