"""A few hundred of the fuzzer's cases; `tests/fuzz.py` runs as many as you like."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).with_name("fuzz.py"))
assert _spec is not None
assert _spec.loader is not None
fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fuzz)


@pytest.mark.parametrize("first", range(1_000_000, 1_000_400, 100))
def test_a_damaged_case_is_used_or_refused(first: int, tmp_path: Path) -> None:
    registry, ended = fuzz.make_registry(), Counter()
    for seed in range(first, first + 100):
        try:
            ended[fuzz.try_case(seed, tmp_path, registry)] += 1
        except fuzz.TooLongError:
            pytest.fail(f"case {seed} hangs")
        except Exception as error:
            raise AssertionError(f"case {seed}") from error
    assert ended["refused"] > 40
    assert ended["used"] > 3
