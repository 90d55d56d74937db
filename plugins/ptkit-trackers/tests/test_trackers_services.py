"""The trackers of services: what accelerate's trackers tell the service's module, which is fake."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ptkit_trackers import MLflow, SwanLab, WandB
from ptkit_trackers.numbers import numbers, settings

import ptkit
from ptkit.testing import check_tracker

RUN = {"ptkit": 1, "train": {"max_steps": 2, "betas": [0.9, 0.999]}, "metrics": [{"kind": "x"}]}
FLAT = {
    "ptkit": 1,
    "train.max_steps": 2,
    "train.betas": "[0.9, 0.999]",
    "metrics.0.kind": "x",
}


class Calls(list[tuple[str, Any]]):
    """What a fake module was called with, in order."""

    def keep(self, name: str, result: Any = None) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.append((name, (*args, kwargs) if args else kwargs))
            return result

        return call


def install(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.util.spec_from_loader(name, None)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def fake_run_service(monkeypatch: pytest.MonkeyPatch, name: str, calls: Calls) -> None:
    """wandb and swanlab look alike: init() gives a run that logs and finishes."""
    run = SimpleNamespace(log=calls.keep("log"), finish=calls.keep("finish"))
    config = type("Config", (dict,), {"update": staticmethod(calls.keep("config"))})()
    install(monkeypatch, name, init=calls.keep("init", run), config=config)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> Calls:
    fake_run_service(monkeypatch, "wandb", calls)
    return calls


@pytest.fixture
def swanlab(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> Calls:
    fake_run_service(monkeypatch, "swanlab", calls)
    return calls


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> Calls:
    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    install(
        monkeypatch,
        "mlflow",
        set_tracking_uri=calls.keep("set_tracking_uri"),
        search_experiments=calls.keep("search_experiments", []),
        create_experiment=calls.keep("create_experiment", "17"),
        start_run=calls.keep("start_run"),
        log_params=calls.keep("log_params"),
        log_metrics=calls.keep("log_metrics"),
        end_run=calls.keep("end_run"),
        utils=SimpleNamespace(validation=limits),
    )
    return calls


def track(tracker: ptkit.Tracker, folder: Path) -> None:
    tracker.start(ptkit.RunInfo(str(folder), RUN))
    tracker.event("train", {"step": 1, "loss": 2.5})
    tracker.event("note", {"step": 1, "text": "no number"})
    tracker.event("scores", {"step": 2, "after": {"bleu-4": 80.0}})
    tracker.finish()


def test_wandb(wandb: Calls, tmp_path: Path) -> None:
    chosen = WandB.Settings(
        project="dresses", entity="us", group="seeds", tags=("a",), mode="offline"
    )
    track(WandB(chosen), tmp_path / "first")
    assert list(wandb) == [
        (
            "init",
            {
                "project": "dresses",
                "entity": "us",
                "name": "first",
                "group": "seeds",
                "tags": ["a"],
                "mode": "offline",
                "dir": str(tmp_path / "first"),
            },
        ),
        ("config", (FLAT, {"allow_val_change": True})),
        ("log", ({"train/loss": 2.5}, {"step": 1})),
        ("log", ({"scores/after/bleu-4": 80.0}, {"step": 2})),
        ("finish", {}),
    ]


def test_swanlab(swanlab: Calls, tmp_path: Path) -> None:
    chosen = SwanLab.Settings(workspace="us", run_name="red", description="d", mode="local")
    track(SwanLab(chosen), tmp_path / "first")
    assert list(swanlab) == [
        (
            "init",
            {
                "project": "ptkit",
                "workspace": "us",
                "experiment_name": "red",
                "description": "d",
                "tags": [],
                "mode": "local",
                "logdir": str(tmp_path / "first" / "swanlog"),
            },
        ),
        ("config", (FLAT, {"allow_val_change": True})),
        ("log", ({"train/loss": 2.5}, {"step": 1})),
        ("log", ({"scores/after/bleu-4": 80.0}, {"step": 2})),
        ("finish", {}),
    ]


def test_mlflow(mlflow: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_TAGS", "MLFLOW_NESTED_RUN"):
        monkeypatch.delenv(name, raising=False)
    chosen = MLflow.Settings(tracking_uri="sqlite:///m.db", tags={"team": "us"})
    track(MLflow(chosen), tmp_path / "first")
    assert list(mlflow) == [
        ("set_tracking_uri", ("sqlite:///m.db", {})),
        ("search_experiments", {"filter_string": "name = 'ptkit'"}),
        (
            "create_experiment",
            {"name": "ptkit", "artifact_location": None, "tags": {"team": "us"}},
        ),
        (
            "start_run",
            {
                "run_id": None,
                "experiment_id": "17",
                "run_name": "first",
                "nested": False,
                "tags": {"team": "us"},
                "description": None,
            },
        ),
        ("log_params", (FLAT, {})),
        ("log_metrics", ({"train/loss": 2.5}, {"step": 1})),
        ("log_metrics", ({"scores/after/bleu-4": 80.0}, {"step": 2})),
        ("end_run", {}),
    ]


def test_mlflow_without_a_uri_takes_its_own(mlflow: Calls, tmp_path: Path) -> None:
    track(MLflow(MLflow.Settings()), tmp_path)
    assert "set_tracking_uri" not in dict(mlflow)


@pytest.mark.usefixtures("wandb", "mlflow")
@pytest.mark.parametrize("kind", [WandB, MLflow])
def test_they_keep_the_contract(kind: type[ptkit.Tracker], tmp_path: Path) -> None:
    check_tracker(kind(kind.Settings()), folder=tmp_path)


@pytest.mark.usefixtures("swanlab")
def test_swanlab_keeps_the_contract_though_it_draws_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init: Any = sys.modules["swanlab"].init

    def draws(**kwargs: Any) -> Any:
        random.random()
        return init(**kwargs)

    monkeypatch.setattr("swanlab.init", draws)
    check_tracker(SwanLab(SwanLab.Settings()), folder=tmp_path)


@pytest.mark.parametrize("kind", [WandB, MLflow, SwanLab])
@pytest.mark.parametrize(
    ("absent", "them"), [((), ""), (("accelerate",), "accelerate and "), (("accelerate", ""), "")]
)
def test_not_installed(
    kind: type[ptkit.Tracker],
    absent: tuple[str, ...],
    them: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, installed = kind.name, "accelerate" not in absent
    if "" in absent:  # the service is there, accelerate isn't
        install(monkeypatch, name)
        needs = "accelerate, which is"
    else:
        monkeypatch.delitem(sys.modules, name, raising=False)
        needs = f"{them}{name}, which {'are' if them else 'is'}"
    for module in [m for m in sys.modules if not installed and m.split(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, module)
    find = importlib.util.find_spec

    def find_spec(wanted: str) -> Any:
        return None if wanted == name or wanted in absent else find(wanted)

    monkeypatch.setattr("ptkit_trackers.numbers.find_spec", find_spec)
    with pytest.raises(ptkit.PluginError) as refused:
        kind(kind.Settings())
    assert str(refused.value) == (
        f'tracker {name!r} needs {needs} not installed; pip install "ptkit-trackers[{name}]"'
    )


def test_numbers_and_settings() -> None:
    values = {"step": 1, "loss": 2, "done": True, "text": "x", "deep": {"a": {"b": 0.5}}}
    assert numbers("train", values) == {"train/loss": 2.0, "train/deep/a/b": 0.5}
    assert settings(RUN) == FLAT
    assert settings({"a": None, "b": []}) == {"a": "None", "b": "[]"}


@pytest.mark.parametrize(
    ("method", "survives"), [("init", "start"), ("log", "event"), ("finish", "finish")]
)
def test_a_service_that_fails_ends_no_run(
    method: str,
    survives: str,
    calls: Calls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A whole run, by the command: one line, and all results."""
    from ptkit.cli import main

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("no network")

    fake_run_service(monkeypatch, "wandb", calls)
    if method == "init":
        monkeypatch.setattr("wandb.init", fails)
    else:
        run = SimpleNamespace(log=calls.keep("log"), finish=calls.keep("finish"))
        setattr(run, method, fails)
        monkeypatch.setattr("wandb.init", lambda **kwargs: run)
    folder = tmp_path / "run"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    assert main(["run", str(recipe), "--out", str(folder), "--device", "cpu"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("no network") == 1
    assert f"{survives}(" in shown
    assert "it is left out, and the run goes on" in shown
    assert (folder / "adapter").is_dir()
    assert (folder / "scores.json").is_file()


RECIPE = """
ptkit = 1

[backbone]
kind = "chatglm2"
source = "nano"

[prefix]
length = 2

[dataset]
kind = "adgen"
train = "nano:train"
validation = "nano:validation"
limit = {train = 8, validation = 2}

[task]
kind = "generation"
max_source_tokens = 24
max_target_tokens = 8

[train]
max_steps = 1
batch_size = 2

[[trackers]]
kind = "wandb"
mode = "disabled"
"""
