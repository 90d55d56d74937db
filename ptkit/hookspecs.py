"""Every hook of ptkit: registration hooks, two questions, and three that only watch.

Registration hooks take nothing and return a list of classes; they are called once, when plugins are
loaded. An implementation may leave out arguments. The author's guide has an example of each; a hook
that is to go is marked with ``warn_on_impl`` for one minor version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ptkit.components import DatasetFormat, Metric, TaskHead, Tracker, Transform
    from ptkit.interchange import AdapterFormat
    from ptkit.models import Backbone
    from ptkit.records import RunInfo

PROJECT = "ptkit"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def ptkit_register_backbones() -> Sequence[type[Backbone]]:  # type: ignore[empty-body]
    """Frozen models: `Backbone` classes, named in ``[backbone] kind``."""


@hookspec
def ptkit_register_dataset_formats() -> Sequence[type[DatasetFormat]]:  # type: ignore[empty-body]
    """File formats: `DatasetFormat` classes, named in ``[dataset] kind``."""


@hookspec
def ptkit_register_transforms() -> Sequence[type[Transform]]:  # type: ignore[empty-body]
    """Steps between reading and encoding: `Transform` classes, named in ``[[transforms]] kind``."""


@hookspec
def ptkit_register_task_heads() -> Sequence[type[TaskHead]]:  # type: ignore[empty-body]
    """Tasks: `TaskHead` classes, named in ``[task] kind``."""


@hookspec
def ptkit_register_metrics() -> Sequence[type[Metric]]:  # type: ignore[empty-body]
    """Scores: `Metric` classes, named in ``[[metrics]] kind``."""


@hookspec
def ptkit_register_trackers() -> Sequence[type[Tracker]]:  # type: ignore[empty-body]
    """Where the events of a run go: `Tracker` classes, named in ``[[trackers]] kind``."""


@hookspec
def ptkit_register_adapter_formats() -> Sequence[type[AdapterFormat]]:  # type: ignore[empty-body]
    """Adapters of other programs: `AdapterFormat` classes, named by ``ptkit convert --to``."""


@hookspec(firstresult=True)
def ptkit_resolve_source(source: str) -> Path | None:
    """The folder or file behind a name such as ``nano`` or ``nano:train``; None if it isn't yours.

    Raise `PtkitError` for a name that is yours but that you don't have. Called for every model
    source and data file of a recipe before it is taken for a path, so it must be quick and import
    nothing heavy.
    """


@hookspec(firstresult=True)
def ptkit_recipe_from_script(text: str, name: str) -> str | None:
    """The recipe, as TOML with comments, that does what the training script ``text`` does.

    Called by ``ptkit new recipe --from-script``; ``name`` is the file's, for messages. None for a
    script that isn't yours; raise `PtkitError` for one that is and can't be read. Execute nothing.
    """


@hookspec
def ptkit_before_run(run: RunInfo) -> None:
    """The data is read, the model loaded and the run folder made; training is about to start.

    ``run.environment`` is the content of environment.json. What it raises is a line, no more.
    """


@hookspec
def ptkit_after_run(run: RunInfo, scores: Mapping[str, Mapping[str, float]]) -> None:
    """The run folder is complete. ``scores`` is the content of scores.json.

    What it raises is a line, no more.
    """


@hookspec
def ptkit_on_run_error(run: RunInfo, error: BaseException) -> None:
    """The run ended with ``error``, Ctrl-C and SIGTERM included; it is raised again afterwards.

    ``run.environment`` is empty, and the run folder may not exist. Not called where a run is
    refused because its folder is in use. What it raises is a line, no more.
    """
