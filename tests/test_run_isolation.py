"""What a run says when a plugin's component fails: one line, whose it is, which component and row.

Every component below is a good one with a single method changed; the good ones are run first.
"""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import field_validator

import ptkit
from ptkit.cli import main
from ptkit.engine.predicting import predict_file
from ptkit.engine.scoring import evaluate_file
from ptkit.engine.session import run
from ptkit.engine.stopping import Interrupted
from ptkit.recipe import Recipe
from ptkit.registry import Owner, Registry, empty_registry
from ptkit.reporter import Reporter
from ptkit.testing import TinyBackbone

REPORT = "; report it to the plugin's author with the traceback that PTKIT_DEBUG=1 shows"


class Told(Reporter):
    """Keeps what a run says of failures and warnings."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.warnings: list[str] = []

    def failure(self, text: str) -> None:
        self.failures.append(text)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Lines(ptkit.DatasetFormat):
    """``label text``, a line a record."""

    name = "lines"
    record = ptkit.LabelledRecord

    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            yield self.row(line, ptkit.Origin(name, number))

    def row(self, line: str, origin: ptkit.Origin) -> Any:
        label, _, text = line.partition(" ")
        return ptkit.LabelledRecord(origin=origin, text=text, label=label)


class Labels(ptkit.TaskHead):
    """A label a record, from the mean of its states."""

    name = "labels"
    accepts = ptkit.LabelledRecord
    predicts = "label"

    def collect_labels(self, records: Iterable[ptkit.Record]) -> Any:
        return sorted({str(r.label) for r in records if isinstance(r, ptkit.LabelledRecord)})

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> Any:
        assert isinstance(record, ptkit.LabelledRecord)
        tokens = (*tokenizer.start_ids, *tokenizer.encode(record.text))
        return [ptkit.Row(tokens, (self.labels.index(str(record.label)),))]

    def build(self, info: ptkit.HeadInfo) -> Any:
        import torch

        linear = torch.nn.Linear(info.hidden_size, len(self.labels))
        with torch.no_grad():
            linear.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(info.seed))
        return linear

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        import torch

        targets = torch.tensor([row.labels[0] for row in rows])
        losses = torch.nn.functional.cross_entropy(module(states.mean), targets, reduction="none")
        return ptkit.Loss(losses, torch.ones(len(rows)))

    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return module(states.mean).argmax(1).tolist()

    def decode(self, record: Any, rows: Any, outputs: Any, tokenizer: Any) -> Any:
        return self.labels[outputs[0]]

    def reference(self, record: ptkit.Record) -> Any:
        assert isinstance(record, ptkit.LabelledRecord)
        return record.label


class Right(ptkit.RowMetric):
    """Percent of the labels that are right."""

    name = "right"
    scores = "label"

    def score_row(self, pair: ptkit.Pair) -> Any:
        return {"right": 100.0 * (pair.prediction == pair.reference)}


class Kinds(ptkit.Metric):
    """How many labels are predicted at all."""

    name = "kinds"
    scores = "label"
    unit = "labels"

    def score(self, pairs: Sequence[ptkit.Pair]) -> Any:
        return {"kinds": float(len({pair.prediction for pair in pairs}))}


class Same(ptkit.Transform):
    name = "same"

    def apply(self, records: Any, *, seed: int) -> Any:
        return records


class Plugin:
    """One plugin with all that it is given, by the hook of its base class."""

    def __init__(self, *components: Any) -> None:
        self.components = components

    def _of(self, base: type) -> list[Any]:
        return [c for c in self.components if issubclass(c, base)]

    @ptkit.hookimpl
    def ptkit_resolve_source(self, source: str) -> Path | None:
        return Path(__file__) if source == "tiny" else None

    @ptkit.hookimpl
    def ptkit_register_backbones(self) -> list[Any]:
        return self._of(ptkit.Backbone)

    @ptkit.hookimpl
    def ptkit_register_dataset_formats(self) -> list[Any]:
        return self._of(ptkit.DatasetFormat)

    @ptkit.hookimpl
    def ptkit_register_task_heads(self) -> list[Any]:
        return self._of(ptkit.TaskHead)

    @ptkit.hookimpl
    def ptkit_register_transforms(self) -> list[Any]:
        return self._of(ptkit.Transform)

    @ptkit.hookimpl
    def ptkit_register_metrics(self) -> list[Any]:
        return self._of(ptkit.Metric)

    @ptkit.hookimpl
    def ptkit_register_trackers(self) -> list[Any]:
        return self._of(ptkit.Tracker)


def registry_of(*components: type[ptkit.Component]) -> Registry:
    """The good components by their names, each replaced by one of ``components`` of its name."""
    good: list[Any] = [TinyBackbone, Lines, Labels, Right, Kinds, Same]
    names = {c.name for c in components}
    registry = empty_registry()
    registry.register(
        Plugin(*(c for c in good if c.name not in names)), Owner("good", "ptkit-good", "1.0")
    )
    registry.register(Plugin(*components), Owner("bad", "ptkit-bad", "0.3"))
    assert not registry.failures
    return registry


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recipe]:
    rows = [
        f"{mood} a {word} day" for word in ("long", "short", "cold") for mood in ("good", "bad")
    ]
    (tmp_path / "train.txt").write_text("\n".join(rows))
    (tmp_path / "test.txt").write_text("\n".join(rows[:4]))

    def recipe(*components: type[ptkit.Component], **sections: Any) -> Recipe:
        data = {
            "ptkit": 1,
            "backbone": {"kind": "tiny"},
            "prefix": {"length": 2},
            "dataset": {"kind": "lines", "train": "train.txt", "test": "test.txt"},
            "task": {"kind": "labels"},
            "metrics": [{"kind": "right"}, {"kind": "kinds"}],
            "train": {"max_steps": 2, "batch_size": 3},
            **sections,
        }
        registry = registry_of(*components)
        return Recipe.from_dict(data, folder=tmp_path, name="r.toml", registry=registry)

    return recipe


def test_the_good_components_run(make: Callable[..., Recipe], tmp_path: Path) -> None:
    told = Told()
    recipe = make(transforms=[{"kind": "same"}])
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=told)
    assert list(result.scores) == ["before", "constant", "after"]
    assert all(set(column) == {"right", "kinds"} for column in result.scores.values())
    assert told.failures == told.warnings == []


# ------------------------------------------------------------------------------------ what ends it


def boom(*args: Any, **kwargs: Any) -> Any:
    raise KeyError("a\nb")


def returning(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def at(text: str, what: Callable[..., Any] = boom) -> Callable[..., Any]:
    """``what`` for the record or line with ``text``; the good method for all others."""

    def changed(self: Any, first: Any, *rest: Any) -> Any:
        good = Labels.encode if isinstance(self, Labels) else Lines.row
        found = first.text if isinstance(first, ptkit.LabelledRecord) else first
        return what() if text in found else good(self, first, *rest)

    return changed


def changed(base: type[Any], **methods: Any) -> type[Any]:
    return type(f"Bad{base.__name__}", (base,), methods)


def loss_of_bad(self: Any, module: Any, states: Any, rows: Any) -> Any:
    if any(row.labels == (0,) for row in rows):
        raise ZeroDivisionError("no labels")
    return Labels.loss(self, module, states, rows)


def outputs_of_first(self: Any, module: Any, states: Any, rows: Any) -> Any:
    if any(row.record == 2 for row in rows):
        raise IndexError("list index out of range")
    return Labels.outputs(self, module, states, rows)


FORMAT, HEAD = "dataset format 'lines' (ptkit-bad 0.3)", "task head 'labels' (ptkit-bad 0.3)"
KEY = repr("a\nb")
RAISED = f"raised KeyError: {KEY}"


@pytest.mark.parametrize(
    ("component", "line"),
    [
        (
            changed(Lines, row=at("cold")),
            f"train.txt:4: {FORMAT}: read() {RAISED}",
        ),
        (changed(Lines, read=boom), f"train.txt: {FORMAT}: read() {RAISED}"),
        (
            changed(Lines, read=returning(None)),
            f"train.txt: {FORMAT}: read() must return an iterator of LabelledRecord objects or "
            "ptkit.BadRow, got NoneType",
        ),
        (
            changed(Lines, row=at("cold", dict)),
            f"train.txt:4: {FORMAT}: read() must give LabelledRecord objects or ptkit.BadRow, got "
            "dict behind this row",
        ),
        (
            changed(Lines, row=lambda self, *a: dataclasses.replace(Lines.row(self, *a), origin=1)),
            f"train.txt: {FORMAT}: read() of a row must return a ptkit.Origin, got int",
        ),
        (changed(Labels, collect_labels=boom), f"{HEAD}: collect_labels() {RAISED}"),
        (
            changed(Labels, collect_labels=lambda self, records: [len(r.words) for r in records]),
            f"train.txt:1: {HEAD}: collect_labels() raised AttributeError: 'LabelledRecord' object "
            "has no attribute 'words'",
        ),
        (
            changed(Labels, collect_labels=returning([1, 2])),
            f"{HEAD}: collect_labels() must return a list of strings, got int",
        ),
        (changed(Labels, encode=at("short")), f"train.txt:3: {HEAD}: encode() {RAISED}"),
        (
            changed(Labels, encode=at("short", returning(None))),
            f"train.txt:3: {HEAD}: encode() must return a list of ptkit.Row, got NoneType",
        ),
        (
            changed(Labels, encode=at("short", returning(["row"]))),
            f"train.txt:3: {HEAD}: encode() must return a list of ptkit.Row, got str",
        ),
        (
            changed(Labels, encode=at("short", returning([ptkit.Row((1.5,))]))),  # type: ignore[arg-type]
            f"train.txt:3: {HEAD}: encode() must give tuples of whole numbers of 32 bits "
            "(TypeError: 'float' object cannot be interpreted as an integer)",
        ),
        (
            changed(Labels, encode_batch=boom),
            f"train.txt:1 and behind: {HEAD}: encode_batch() {RAISED}",
        ),
        (
            changed(Labels, encode_batch=returning([])),
            f"train.txt:1: {HEAD}: encode_batch() must return a list of rows for each of 6 "
            "records, got 0",
        ),
        (changed(Labels, build=boom), f"{HEAD}: build() {RAISED}"),
        (
            changed(Labels, build=returning(3)),
            f"{HEAD}: build() must return a torch module or None, got int",
        ),
        (
            changed(Labels, loss=loss_of_bad),
            "train.txt:4, train.txt:6: "  # those of the first step's three rows
            f"{HEAD}: loss() raised ZeroDivisionError: no labels",
        ),
        (
            changed(Labels, loss=returning(None)),
            f"{HEAD}: loss() must return ptkit.Loss(sums, weights), got NoneType",
        ),
        (
            changed(Labels, loss=returning((1.0, 2.0))),
            f"{HEAD}: loss() must return sums of shape [3], one entry a loss group, got float",
        ),
        (
            changed(Labels, outputs=outputs_of_first),
            f"test.txt:3: {HEAD}: predict() raised IndexError: list index out of range",
        ),
        (
            changed(Labels, predict=returning(None)),
            f"{HEAD}: predict() must return one output a row, got NoneType for 4 rows",
        ),
        (
            changed(Labels, outputs=returning([0])),
            f"{HEAD}: predict() must return one output a row, got 1 for 4 rows",
        ),
        (
            changed(Labels, outputs=lambda self, m, s, rows: [row.record for row in rows]),
            f"test.txt:3: {HEAD}: decode() raised IndexError: tuple index out of range",
        ),
        (changed(Labels, reference=boom), f"test.txt:1: {HEAD}: reference() {RAISED}"),
        (
            changed(Same, apply=boom),
            f"transform 'same' (ptkit-bad 0.3): apply() {RAISED}",
        ),
        (
            changed(Same, apply=returning([1])),
            "transform 'same' (ptkit-bad 0.3): apply() must return ptkit.Record objects, got int",
        ),
        (
            changed(TinyBackbone, load=boom),
            f"backbone 'tiny' (ptkit-bad 0.3): load() {RAISED}",
        ),
        (
            changed(TinyBackbone, load=returning(None)),
            "backbone 'tiny' (ptkit-bad 0.3): load() must return a ptkit.LoadedBackbone, got "
            "NoneType",
        ),
        (
            changed(TinyBackbone, geometry=property(boom)),
            f"backbone 'tiny' (ptkit-bad 0.3): its geometry {RAISED}",
        ),
        (
            changed(TinyBackbone, geometry=TinyBackbone().geometry, tokenizer=property(boom)),
            f"backbone 'tiny' (ptkit-bad 0.3): its tokenizer {RAISED}",
        ),
        (
            changed(Labels, encode=at("short", lambda: exec("raise SystemExit('bye')"))),
            f"train.txt:3: {HEAD}: encode() raised SystemExit: bye",
        ),
    ],
)
def test_a_component_that_fails_is_named(
    component: type[ptkit.Component], line: str, make: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make(component, transforms=[{"kind": "same"}])
    with pytest.raises(ptkit.PluginError) as refused:
        run(recipe, out=tmp_path / "run", device="cpu")
    assert refused.value.lines == (line + REPORT,)
    assert refused.value.exit_code == 2
    if "raised" in line:
        assert refused.value.__cause__ is not None
        assert refused.value.__cause__.__traceback__ is not None


def test_a_constructor_that_fails(make: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make(changed(Labels, __init__=boom))
    with pytest.raises(ptkit.PluginError) as refused:
        run(recipe, out=tmp_path / "run", device="cpu")
    assert str(refused.value) == (
        f"task.kind 'labels' (ptkit-bad 0.3): BadLabels() raised KeyError: {KEY}{REPORT}"
    )


class PickySettings(ptkit.Settings):
    mood: str = "fine"

    @field_validator("mood")
    @classmethod
    def _check(cls, value: str) -> str:
        raise KeyError(value)


def test_settings_that_fail(make: Callable[..., Recipe]) -> None:
    with pytest.raises(ptkit.RecipeError) as refused:
        make(changed(Labels, Settings=PickySettings))
    assert refused.value.lines == (
        "r.toml: task: kind 'labels' (ptkit-bad 0.3): checking the settings raised "
        f"KeyError: 'fine'{REPORT}",
    )


@pytest.mark.parametrize(
    "component",
    [
        changed(Lines, row=at("cold", lambda: exec("raise ptkit.DataError('a.txt:1: no')"))),
        changed(Labels, encode=at("cold", lambda: exec("raise ptkit.DataError('a.txt:1: no')"))),
    ],
)
def test_errors_that_are_meant_pass_through(
    component: type[ptkit.Component], make: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(ptkit.DataError) as refused:
        run(make(component), out=tmp_path / "run", device="cpu")
    assert refused.value.lines == ("a.txt:1: no",)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
def test_ctrl_c_and_full_memory_are_no_faults_of_a_plugin(
    raised: type[BaseException], make: Callable[..., Recipe], tmp_path: Path
) -> None:
    def stop(*args: Any) -> Any:
        raise raised

    with pytest.raises(raised):
        run(make(changed(Labels, encode=stop)), out=tmp_path / "run", device="cpu")


# ------------------------------------------------------------------------------------ what doesn't

RIGHT, KINDS = "metric 'right' (ptkit-bad 0.3)", "metric 'kinds' (ptkit-bad 0.3)"


def only_after(self: Any, pairs: Any) -> Any:
    """Fails for the second column that it is asked for."""
    self.calls = getattr(self, "calls", 0) + 1
    if self.calls > 2:
        raise ValueError("too many")
    return Kinds.score(self, pairs)


@pytest.mark.parametrize(
    ("component", "line", "left"),
    [
        (
            changed(
                Right, score_row=lambda self, pair: boom() if "short" in pair.record.text else {}
            ),
            f"test.txt:3: {RIGHT}: score_row() {RAISED}",
            {"kinds"},
        ),
        (
            changed(Right, score_row=returning(12.5)),
            f"test.txt:1: {RIGHT}: score_row() must return a dict of name to score, got float",
            {"kinds"},
        ),
        (changed(Kinds, score=boom), f"{KINDS}: score() {RAISED}", {"right"}),
        (
            changed(Kinds, score=returning(None)),
            f"{KINDS}: score() must return a dict of name to score, got NoneType",
            {"right"},
        ),
        (
            changed(Kinds, score=returning({"kinds": "three"})),
            f"{KINDS}: score() must return numbers, got {{'kinds': 'three'}}",
            {"right"},
        ),
        (
            changed(Kinds, score=only_after),
            f"{KINDS}: score() raised ValueError: too many",
            {"right"},
        ),
    ],
)
def test_a_failing_metric_costs_its_own_scores_only(
    component: type[ptkit.Metric],
    line: str,
    left: set[str],
    make: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    told = Told()
    result = run(make(component), out=tmp_path / "run", device="cpu", reporter=told)
    text = f"{line}{REPORT}; its scores are left out"
    assert told.failures == [text]
    assert all(set(column) == left for column in result.scores.values())
    assert ptkit.load_adapter(result.adapter).length == 2
    rows = [json.loads(x) for x in (result.folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["after"] in ("good", "bad") for row in rows] == [True] * 4
    assert all(set(row["scores"]["after"]) <= left for row in rows)
    assert text in json.loads((result.folder / "scoring.json").read_text())["warnings"]
    assert "its scores are left out" in (result.folder / "report.html").read_text("utf-8")


def test_all_metrics_may_fail(make: Callable[..., Recipe], tmp_path: Path) -> None:
    told = Told()
    recipe = make(changed(Right, score_row=boom), changed(Kinds, score=boom))
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=told)
    assert len(told.failures) == 2
    assert not any(result.scores.values())
    assert (result.folder / "predictions.jsonl").exists()
    assert (result.folder / "report.html").exists()


def test_warnings_that_fail(make: Callable[..., Recipe], tmp_path: Path) -> None:
    told = Told()
    result = run(
        make(changed(Kinds, warnings=boom)), out=tmp_path / "run", device="cpu", reporter=told
    )
    assert told.warnings == [f"{KINDS}: warnings() raised KeyError: {KEY}{REPORT}"]
    assert set(result.scores["after"]) == {"right", "kinds"}


@pytest.mark.parametrize("method", [boom, returning(None)])
def test_failing_constants_cost_their_column_only(
    method: Any, make: Callable[..., Recipe], tmp_path: Path
) -> None:
    told = Told()
    recipe = make(changed(Labels, constants=method))
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=told)
    (text,) = told.failures
    assert text.startswith(f"{HEAD}: constants() ")
    assert text.endswith(f"{REPORT}; there are no scores of a constant")
    assert list(result.scores) == ["before", "after"]
    assert set(result.scores["after"]) == {"right", "kinds"}


class Broken(ptkit.Tracker):
    """Fails where its settings say."""

    name = "broken"
    calls: list[str] = []

    class Settings(ptkit.Settings):
        at: str

    settings: Settings

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if self.settings.at == what:
            raise OSError(28, "No space left on device")

    def start(self, run: ptkit.RunInfo) -> None:
        self._call("start")

    def event(self, kind: str, values: Any) -> None:
        values.clear()
        self._call(kind)

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize(
    ("place", "what"),
    [("start", "start()"), ("train", "event('train')"), ("finish", "finish()")],
)
def test_a_failing_tracker_is_told_once(
    place: str, what: str, make: Callable[..., Recipe], tmp_path: Path
) -> None:
    Broken.calls.clear()
    told = Told()
    recipe = make(Broken, trackers=[{"kind": "broken", "at": place}, {"kind": "broken", "at": ""}])
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=told)
    assert told.failures == [
        f"tracker 'broken' (ptkit-bad 0.3): {what} raised OSError: [Errno 28] No space left on "
        "device; it is left out, and the run goes on"
    ]
    assert Broken.calls.count("finish") == (2 if place == "finish" else 1)
    assert set(result.scores["after"]) == {"right", "kinds"}
    events = [json.loads(x) for x in (result.folder / "events.jsonl").read_text().splitlines()]
    assert [event["loss"] > 0 for event in events if event["event"] == "train"] == [True] * 2


def test_trackers_are_finished_when_a_run_fails(
    make: Callable[..., Recipe], tmp_path: Path
) -> None:
    Broken.calls.clear()
    recipe = make(Broken, changed(Labels, loss=boom), trackers=[{"kind": "broken", "at": ""}])
    with pytest.raises(ptkit.PluginError, match="loss"):
        run(recipe, out=tmp_path / "run", device="cpu")
    assert Broken.calls == ["start", "finish"]


# ------------------------------------------------------------------------------ hooks that watch


class Watcher:
    """Notes which hooks are called and with what, and fails in ``failing``."""

    def __init__(self, failing: str = "", error: type[BaseException] = KeyError) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failing, self.error = failing, error

    def _call(self, hook: str, value: Any) -> None:
        self.calls.append((hook, value))
        if hook == self.failing:
            raise self.error("a\nb")

    @ptkit.hookimpl
    def ptkit_before_run(self, run: ptkit.RunInfo) -> None:
        self._call("ptkit_before_run", run.environment["device"])
        run.recipe.clear()
        run.environment.clear()

    @ptkit.hookimpl
    def ptkit_after_run(self, run: ptkit.RunInfo, scores: Any) -> None:
        self._call("ptkit_after_run", sorted(scores))
        scores.clear()

    @ptkit.hookimpl
    def ptkit_on_run_error(self, run: ptkit.RunInfo, error: BaseException) -> None:
        self._call("ptkit_on_run_error", type(error).__name__)


def watched_by(recipe: Recipe, *watchers: Watcher) -> Recipe:
    for number, watcher in enumerate(watchers, start=1):
        owner = Owner(f"watch-{number}", f"ptkit-watch-{number}", "2.0")
        recipe.registry.register(watcher, owner)
    assert not recipe.registry.failures
    return recipe


@pytest.mark.parametrize("hook", ["ptkit_before_run", "ptkit_after_run"])
@pytest.mark.parametrize("error", [KeyError, ptkit.DataError, SystemExit, MemoryError])
def test_a_failing_hook_is_told_once_and_the_others_are_called(
    hook: str, error: type[BaseException], make: Callable[..., Recipe], tmp_path: Path
) -> None:
    told, first, failing = Told(), Watcher(), Watcher(hook, error)
    recipe = watched_by(make(), first, failing)
    result = run(recipe, out=tmp_path / "run", device="cpu", reporter=told)
    text = KEY if error is KeyError else "a b"
    assert told.failures == [
        f"plugin 'watch-2' (ptkit-watch-2 2.0): {hook}() raised {error.__name__}: {text}; the run "
        f"is not affected{REPORT}"
    ]
    seen = [
        ("ptkit_before_run", "cpu"),
        ("ptkit_after_run", ["after", "before", "constant"]),
    ]
    assert first.calls == failing.calls == seen
    assert set(result.scores["after"]) == {"right", "kinds"}


def test_hooks_change_nothing_in_a_run(make: Callable[..., Recipe], tmp_path: Path) -> None:
    alone = run(make(), out=tmp_path / "alone", device="cpu")
    watched = run(watched_by(make(), Watcher()), out=tmp_path / "watched", device="cpu")
    assert alone.scores == watched.scores
    for name in ("recipe.toml", "adapter/prefix.safetensors", "predictions.jsonl"):
        pair = [(result.folder / name).read_bytes() for result in (alone, watched)]
        assert pair[0] == pair[1], name


def test_a_hook_that_fails_on_an_error_leaves_the_error(
    make: Callable[..., Recipe], tmp_path: Path
) -> None:
    told, first, failing = Told(), Watcher(), Watcher("ptkit_on_run_error")
    recipe = watched_by(make(changed(Labels, encode=boom)), first, failing)
    with pytest.raises(ptkit.PluginError, match="encode"):
        run(recipe, out=tmp_path / "run", device="cpu", reporter=told)
    assert [failure.split(" raised ")[0] for failure in told.failures] == [
        "plugin 'watch-2' (ptkit-watch-2 2.0): ptkit_on_run_error()"
    ]
    assert first.calls == failing.calls == [("ptkit_on_run_error", "PluginError")]


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (KeyboardInterrupt, "KeyboardInterrupt"),
        (lambda: signal.raise_signal(signal.SIGTERM), "Interrupted"),
        (ZeroDivisionError, "PluginError"),
    ],
)
def test_errors_and_interrupts_are_told_to_hooks(
    stop: Callable[[], Any], error: str, make: Callable[..., Recipe], tmp_path: Path
) -> None:
    def loss(self: Any, *args: Any) -> Any:
        raised = stop()
        if raised is not None:
            raise raised
        return Labels.loss(self, *args)

    watcher = Watcher()
    recipe = watched_by(make(changed(Labels, loss=loss)), watcher)
    with pytest.raises(BaseException) as ended:  # noqa: PT011 - which one is what is tested
        run(recipe, out=tmp_path / "run", device="cpu")
    assert type(ended.value).__name__ == error
    assert watcher.calls == [("ptkit_before_run", "cpu"), ("ptkit_on_run_error", error)]


def test_ctrl_c_inside_a_hook_ends_the_run(make: Callable[..., Recipe], tmp_path: Path) -> None:
    class Stops(Watcher):
        @ptkit.hookimpl
        def ptkit_before_run(self, run: ptkit.RunInfo) -> None:
            signal.raise_signal(signal.SIGINT)

    told, watcher = Told(), Stops()
    with pytest.raises(Interrupted):
        run(watched_by(make(), watcher), out=tmp_path / "run", device="cpu", reporter=told)
    assert watcher.calls == [("ptkit_on_run_error", "Interrupted")]
    assert told.failures == []


@pytest.mark.parametrize("debug", [False, True])
def test_what_ends_nothing_shows_its_traceback_on_request(
    debug: bool,
    make: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PTKIT_DEBUG", "1" if debug else "")
    recipe = make(
        Broken,
        changed(Kinds, score=boom, warnings=boom),
        changed(Labels, constants=boom),
        trackers=[{"kind": "broken", "at": "train"}],
    )
    run(watched_by(recipe, Watcher("ptkit_after_run")), out=tmp_path / "run", device="cpu")
    traced = capsys.readouterr().err
    expected = {"in boom": 3, "in _call": 2, "OSError: [Errno 28]": 1} if debug else {}
    assert (traced != "") == debug
    for text, count in expected.items():
        assert traced.count(text) >= count, text


# ------------------------------------------------------------------------------------ afterwards


def test_predicting_and_evaluating_name_the_component_too(
    make: Callable[..., Recipe], tmp_path: Path
) -> None:
    adapter = run(make(), out=tmp_path / "run", device="cpu").adapter
    data = tmp_path / "test.txt"

    told = Told()
    found = evaluate_file(
        adapter,
        data,
        backbone="tiny",
        device="cpu",
        registry=registry_of(changed(Kinds, score=boom)),
        reporter=told,
    )
    assert set(found.scores["after"]) == {"right"}
    assert told.failures[0].startswith(f"{KINDS}: score() raised")
    for component, line in (
        (changed(Labels, encode=at("short")), f"{data}:3: {HEAD}: encode() raised"),
        (changed(Labels, decode=boom), f"{data}:1: {HEAD}: decode() raised"),
        (changed(Labels, outputs=outputs_of_first), f"{data}:3: {HEAD}: predict() raised"),
        (changed(Lines, row=at("short")), f"{data}:2: {FORMAT}: read_unanswered() raised"),
    ):
        with pytest.raises(ptkit.PluginError) as refused:
            predict_file(
                adapter,
                data,
                tmp_path / f"{component.__name__}{len(line)}.jsonl",
                backbone="tiny",
                device="cpu",
                registry=registry_of(component),
            )
        assert str(refused.value).startswith(line)


def test_the_command_shows_a_line_and_on_request_the_traceback(
    make: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = make(changed(Labels, encode=at("short")))
    monkeypatch.setattr(Recipe, "load", lambda path, overrides: recipe)
    command = ["run", "r.toml", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert shown.splitlines() == [f"train.txt:3: {HEAD}: encode() raised KeyError: {KEY}{REPORT}"]
    monkeypatch.setenv("PTKIT_DEBUG", "1")
    assert main(command) == 2
    traced = capsys.readouterr().err
    assert "in boom" in traced
    assert traced.endswith(shown)
