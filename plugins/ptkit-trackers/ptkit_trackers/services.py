"""The trackers ``wandb``, ``mlflow`` and ``swanlab``, through those of accelerate."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import ptkit
from ptkit_trackers.numbers import numbers, require
from ptkit_trackers.numbers import settings as flat_settings


def _accelerated() -> Any:
    """The module of accelerate's trackers, which brings no types."""
    return import_module("accelerate.tracking")


class Service(ptkit.Tracker):
    """Hands numbers to one of accelerate's trackers; ``name`` is the module of the service."""

    def __init__(self, settings: ptkit.Settings) -> None:
        super().__init__(settings)
        require(self.name, "accelerate", self.name)

    @abstractmethod
    def make(self, folder: Path) -> Any:
        """accelerate's tracker, not started yet. ``folder``: that of the run."""

    def start(self, run: ptkit.RunInfo) -> None:
        # accelerate's trackers and its logging ask this state for the main process
        import_module("accelerate.state").PartialState()
        drawn = random.getstate()
        try:
            self._tracker = self.make(Path(run.folder))
            self._tracker.start()
            self._tracker.store_init_configuration(flat_settings(run.recipe))
        finally:
            random.setstate(drawn)  # SwanLab draws a name for the run

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        found = numbers(kind, values)
        if found:
            self._tracker.log(found, step=values.get("step"))

    def finish(self) -> None:
        self._tracker.finish()


class WandB(Service):
    """Weights & Biases."""

    name = "wandb"

    class Settings(ptkit.Settings):
        project: str = Field("ptkit", min_length=1)
        """The project that the run belongs to."""
        entity: str | None = None
        """The user or team; that of the login if not given."""
        run_name: str | None = None
        """What the run is called; the name of its folder if not given."""
        group: str | None = None
        """A name that runs share which belong together, such as seeds."""
        tags: tuple[str, ...] = ()
        """Words to find the run by."""
        mode: Literal["online", "offline", "disabled"] = "online"
        """offline: files in the run folder, for `wandb sync`; disabled: nothing at all."""

    settings: Settings

    def make(self, folder: Path) -> Any:
        chosen = self.settings
        return _accelerated().WandBTracker(
            chosen.project,
            entity=chosen.entity,
            name=chosen.run_name or folder.name,
            group=chosen.group,
            tags=list(chosen.tags),
            mode=chosen.mode,
            dir=str(folder),
        )


class MLflow(Service):
    """MLflow."""

    name = "mlflow"

    class Settings(ptkit.Settings):
        experiment: str = Field("ptkit", min_length=1)
        """The experiment that the run belongs to; made if there is none of that name."""
        run_name: str | None = None
        """What the run is called; the name of its folder if not given."""
        tracking_uri: str | None = None
        """The server or store, such as `http://host:5000` or `sqlite:///mlflow.db`; MLflow's own
        if not given, which MLFLOW_TRACKING_URI sets."""
        tags: dict[str, str] = Field(default_factory=dict)
        """Names and values to find the run by."""

    settings: Settings

    def make(self, folder: Path) -> Any:
        chosen = self.settings
        if chosen.tracking_uri is not None:
            import_module("mlflow").set_tracking_uri(chosen.tracking_uri)
        return _accelerated().MLflowTracker(
            chosen.experiment, tags=dict(chosen.tags), run_name=chosen.run_name or folder.name
        )


class SwanLab(Service):
    """SwanLab."""

    name = "swanlab"

    class Settings(ptkit.Settings):
        project: str = Field("ptkit", min_length=1)
        """The project that the run belongs to."""
        workspace: str | None = None
        """The user or organisation; that of the login if not given."""
        run_name: str | None = None
        """What the run is called; the name of its folder if not given."""
        description: str | None = None
        """A few words on the run."""
        tags: tuple[str, ...] = ()
        """Words to find the run by."""
        mode: Literal["cloud", "local", "offline", "disabled"] = "cloud"
        """local and offline: files in the run folder, to be looked at or sent later; disabled:
        nothing at all."""

    settings: Settings

    def make(self, folder: Path) -> Any:
        chosen = self.settings
        return _accelerated().SwanLabTracker(
            chosen.project,
            workspace=chosen.workspace,
            experiment_name=chosen.run_name or folder.name,
            description=chosen.description,
            tags=list(chosen.tags),
            mode=chosen.mode,
            logdir=str(folder / "swanlog"),
        )
