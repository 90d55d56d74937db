"""What messages suggest."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptkit.errors import names_in, suggestion

TASKS = ["multi-label-classification", "sequence-classification", "tagging", "token-classification"]


@pytest.mark.parametrize(
    ("got", "known", "said"),
    [
        ("acc", ["accuracy", "f1"], "'accuracy'"),
        ("Classification", TASKS[1:], "'sequence-classification' or 'token-classification'"),
        (
            "classification",
            TASKS,
            "'multi-label-classification', 'sequence-classification' or 'token-classification'",
        ),
        ("lenght", ["dropout", "length"], "'length'"),
        ("tyni", ["nano", "tiny"], "'tiny'"),
        ("row", ["row-1", "row-2", "row-3", "row-4", "rows"], "'rows'"),  # a part of too many
    ],
)
def test_what_was_probably_meant(got: str, known: list[str], said: str) -> None:
    assert suggestion(got, known) == f" (did you mean {said}?)"
    assert suggestion(got, [*known, *known]) == f" (did you mean {said}?)"


def test_nothing_is_close() -> None:
    assert suggestion("ab", ["abacus"]) == ""  # two letters are a part of too much
    assert suggestion("x", []) == ""


def test_names_of_a_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).touch()
    assert sorted(names_in(tmp_path)) == ["one", "two"]
    assert names_in(tmp_path / "no") == []
