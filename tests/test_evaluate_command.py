"""``ptkit evaluate``: the scores of a run, again, on any file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import ptkit
from ptkit import cli
from ptkit.engine import scoring
from ptkit.engine.adapter import load_adapter
from ptkit.engine.scoring import evaluate_file
from ptkit.engine.session import run
from ptkit.errors import DataError, PtkitError
from ptkit.registry import Owner, Registry
from ptkit.reporter import Reporter

MakeAdapter = Callable[..., Path]


class Said(Reporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.table: tuple[Any, ...] = ()

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def scores(
        self, scores: Mapping[str, Mapping[str, float]], constant: str | None, part: str, rows: int
    ) -> None:
        self.table = ({name: dict(found) for name, found in scores.items()}, constant, part, rows)


def test_the_scores_are_those_of_the_run(
    make_recipe: Callable[..., Any], tmp_path: Path, registry: Registry
) -> None:
    result = run(make_recipe(), out=tmp_path / "run", device="cpu")
    said = Said()
    found = evaluate_file(
        tmp_path / "run",
        tmp_path / "validation.json",
        device="cpu",
        out=tmp_path / "scores.json",
        registry=registry,
        reporter=said,
    )
    wanted = {name: result.scores[name] for name in ("before", "after")}
    assert found.scores == wanted
    assert said.table == (wanted, None, "validation.json", 6)
    written = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert written["scores"] == wanted
    assert written["data"]["rows"] == 6
    assert written["data"]["skipped"] == 0
    assert len(written["data"]["sha256"]) == 64
    assert written["units"] == dict.fromkeys(wanted["after"], "percent, 0–100")
    checksum = load_adapter(result.adapter).checksum
    assert written["adapter"] == {"name": "adapter", "checksum": checksum}


@pytest.fixture
def evaluate(make_adapter: MakeAdapter, tmp_path: Path, registry: Registry) -> Callable[..., Any]:
    adapter = make_adapter()

    def call(**changes: Any) -> scoring.Evaluation:
        settings: dict[str, Any] = {
            "adapter": adapter,
            "source": tmp_path / "validation.json",
            "device": "cpu",
            "registry": registry,
            **changes,
        }
        return evaluate_file(**settings)

    return call


def test_limit_and_no_adapter(evaluate: Callable[..., Any]) -> None:
    whole = evaluate()
    assert list(whole.scores) == ["before", "after"]
    base = evaluate(enabled=False)
    assert base.scores == {"before": whole.scores["before"]}
    few = evaluate(limit=2)
    assert (few.rows, whole.rows) == (2, 6)
    assert few.scores != whole.scores


def test_bad_rows_are_errors_unless_they_are_skipped(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "validation.json"
    with path.open("a", encoding="utf-8") as file:
        file.write('not json\n{"content": "unanswered"}\n')
    with pytest.raises(DataError) as refused:
        evaluate()
    first, second = refused.value.lines
    assert first.startswith(f"{path}:7: not JSON")
    assert second.startswith(f"{path}:8: key 'summary' is missing")
    said = Said()
    found = evaluate(overrides=['dataset.on_bad_row="skip"'], reporter=said)
    assert (found.rows, found.skipped) == (6, 2)
    assert said.warnings == [f"2 bad rows of {path} were skipped"]
    path.write_text("")
    with pytest.raises(DataError, match=r"has no rows; --data needs at least one"):
        evaluate()


class Unanswered(ptkit.DatasetFormat):
    """A format whose rows may lack an answer."""

    name = "unanswered"
    record = ptkit.GenerationRecord

    def read(self, path: Path, name: str) -> Any:
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            answer = json.loads(text).get("summary")
            yield ptkit.GenerationRecord(
                origin=ptkit.Origin(name, line), prompt="红色", response=answer
            )


class First(ptkit.Transform):
    """Keeps the first row; says which seed it got."""

    name = "first"
    on = ("test",)
    seeds: list[int] = []

    def apply(self, records: Any, *, seed: int) -> Any:
        self.seeds.append(seed)
        return records[:1]


class Warned(ptkit.Metric):
    name = "warned"
    scores = "text"

    def score(self, pairs: Any) -> dict[str, float]:
        return {"warned": float(len(pairs))}

    def warnings(self, pairs: Any) -> list[str]:
        return ["look at the answers"]


@pytest.fixture
def extras(registry: Registry) -> None:
    class Plugin:
        @ptkit.hookimpl
        def ptkit_register_dataset_formats(self) -> list[type[ptkit.DatasetFormat]]:
            return [Unanswered]

        @ptkit.hookimpl
        def ptkit_register_transforms(self) -> list[type[ptkit.Transform]]:
            return [First]

        @ptkit.hookimpl
        def ptkit_register_metrics(self) -> list[type[ptkit.Metric]]:
            return [Warned]

    registry.register(Plugin(), Owner("extras", "ptkit-extras", "1.0"))
    assert not registry.failures


@pytest.mark.usefixtures("extras")
def test_a_row_without_an_answer_is_named(
    evaluate: Callable[..., Any], make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    adapter = make_adapter("other", dataset={"kind": "unanswered"})
    path = tmp_path / "validation.json"
    with path.open("a", encoding="utf-8") as file:
        file.write("{}\n")
    with pytest.raises(DataError) as refused:
        evaluate(adapter=adapter)
    assert refused.value.lines == (
        f"{path}:7: has no answer to compare with",
        "1 row has no answer; `ptkit predict` gives such rows one",
    )
    with path.open("a", encoding="utf-8") as file:
        file.write("{}\n" * 30)
    with pytest.raises(DataError) as refused:
        evaluate(adapter=adapter)
    assert len(refused.value.lines) == 21
    assert refused.value.lines[-1].startswith("31 rows have no answer; ")


@pytest.mark.usefixtures("extras")
def test_without_a_metric_there_is_nothing_to_say(
    evaluate: Callable[..., Any], make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter("other", dataset={"kind": "unanswered"}, metrics=[])
    with pytest.raises(
        PtkitError, match=r"names no metric .* --set 'metrics.0.kind=\"accuracy\"'$"
    ):
        evaluate(adapter=adapter)
    said = Said()
    found = evaluate(adapter=adapter, overrides=['metrics.0.kind="warned"'], reporter=said)
    assert found.scores["after"] == {"warned": 6.0}
    assert found.warnings == said.warnings == ["look at the answers"]


@pytest.mark.usefixtures("extras")
def test_transforms_of_the_test_rows_are_applied(
    evaluate: Callable[..., Any], make_adapter: MakeAdapter
) -> None:
    transforms = [{"kind": "first"}, {"kind": "shuffle-responses"}]
    adapter = make_adapter("other", transforms=transforms, train={"seed": 5})
    First.seeds.clear()
    assert evaluate(adapter=adapter).rows == 1
    assert First.seeds == [5]


def test_a_place_that_cannot_be_written_is_said_before_the_work(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(PtkitError, match=r"there is no folder .*/no$"):
        evaluate(out=tmp_path / "no" / "scores.json")


def test_the_command(
    make_adapter: MakeAdapter,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ptkit.registry.load_plugins", lambda: registry)
    make_adapter()
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "adapter", "--data", "validation.json", "--device", "cpu"]
    assert cli.main([*command, "--out", "scores.json"]) == 0
    shown = capsys.readouterr().out
    assert "scores on 6 validation.json rows" in shown
    assert "before  after" in shown
    assert "bleu-4" in shown
    assert shown.splitlines()[-1] == "wrote scores.json"
    assert cli.main([*command, "--no-adapter", "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "scores on 1 validation.json row\n" in shown
    assert "after" not in shown
    assert cli.main([*command, "--limit", "0"]) == 2
    capsys.readouterr()
    assert cli.main(["evaluate", "adapter", "--data", "zzz"]) == 2
    assert capsys.readouterr().err == (
        f"--data zzz: no such file, folder or named source; looked for {tmp_path / 'zzz'}\n"
    )


def test_a_wrong_place_is_told_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from ptkit import cli; "
        "code = cli.main(['evaluate', 'no', '--data', 'x']); "
        "sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "no: no such adapter folder\n")
