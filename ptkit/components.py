"""What a plugin can add: the abstract classes behind every ``kind`` of a recipe.

A component nests ``class Settings``, which is its recipe section, and has a kebab-case ``name``,
which is its ``kind``. Nothing here imports torch; components import it inside the methods that need
it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from ptkit.models import Backbone, Tokenizer
from ptkit.records import (
    BadRow,
    EncodedRow,
    HeadInfo,
    HeadLimits,
    Pair,
    Record,
    Row,
    RunInfo,
)
from ptkit.settings import Component, Source
from ptkit.settings import Settings as BaseSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ptkit.engine.model import Model
    from ptkit.engine.states import States


# ------------------------------------------------------------------------------------------ data


class Limit(BaseSettings):
    """At most so many records of each part, taken from the start of the file."""

    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class DatasetFormat(Component):
    """Reads a data file into records, without tokenizer or torch."""

    record: ClassVar[type[Record]]
    """The type of the records; a task head accepts it or the recipe is refused."""

    controls: ClassVar[tuple[type[Metric], ...]] = ()
    """Metrics that stand beside every score of this format's data, whatever the recipe names."""

    class Settings(BaseSettings):
        train: Source
        """Training rows."""
        validation: Source | None = None
        """Rows for the validation loss, the best checkpoint and (without `test`) the scores."""
        test: Source | None = None
        """Rows for the scores; they are looked at once, at the end."""
        split: float | None = Field(None, gt=0, lt=1)
        """Without `validation`: the share of `train` held out for it, picked by the seed."""
        limit: Limit | Annotated[int, Field(ge=1)] | None = None
        """At most so many records: a number, or a table with train, validation, test."""
        on_bad_row: Literal["error", "skip"] = "error"
        """What to do with a row that can't be read: stop, or go on, count and report it."""

    settings: Settings

    @abstractmethod
    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        """The rows of ``path``, in order, streamed; ``name`` is how origins name the file.

        Yields a `BadRow` for each row that can't be used and goes on behind it. Raises `DataError`
        if the file as a whole can't be read. It may be called again for the same file.
        """

    def read_unanswered(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        """As `read`, for rows that are only to be predicted: what would be the answer may be
        missing."""
        return self.read(path, name)


class Transform(Component):
    """Turns a record into any number of records: selection, augmentation, reweighting."""

    on: ClassVar[tuple[str, ...]] = ("train",)
    """The parts of the data that it applies to: "train", "validation", "test"."""

    @abstractmethod
    def apply(self, records: Sequence[Record], *, seed: int) -> Iterable[Record]:
        """The records to use instead, made from all records of a part; deterministic for a
        ``seed``.

        Change fields with `dataclasses.replace`; ``record.weight`` scales a record's share of the
        loss.
        """


# ------------------------------------------------------------------------------------------ tasks


class Loss(NamedTuple):
    """What a head returns for a micro-batch, one entry a loss group.

    A group is what shares a loss: a row, or all rows of a record where `TaskHead.rows_share_loss`.
    ``sums``: [n] the summed, never averaged, loss of each group. ``weights``: [n] what it is to be
    divided by (tokens, rows, class weights, …). The engine divides over the whole step: sum(sums) /
    sum(weights) for ``loss_average = "token"``, the mean of sums / weights for ``"row"``.
    """

    sums: Tensor
    weights: Tensor


class TaskHead(Component):
    """A task: how records become rows, rows a loss, and hidden states predictions.

    A head keeps no state between rows; what it learns from the data is ``labels``, and its
    trainable part is the module that `build` returns, which the engine owns, places, trains and
    saves.
    """

    accepts: ClassVar[type[Record]]
    predicts: ClassVar[str]
    """The kind of its predictions ("text", "label", …); a metric must score that kind."""
    needs_lm_head: ClassVar[bool] = False
    """Whether it works through the backbone's LM head, which encoders lack."""
    rows_share_loss: ClassVar[bool] = False
    """Whether all rows of a record form one loss (choices) and stay in one micro-batch."""

    def __init__(self, settings: BaseSettings, labels: Sequence[str] = ()) -> None:
        super().__init__(settings)
        self.labels: tuple[str, ...] = tuple(labels)

    def collect_labels(self, records: Iterable[Record]) -> Sequence[str]:
        """The label names of the training records, in the order of their ids; stored in the
        adapter."""
        return ()

    def label_text(self, label: int) -> str:
        """What a number among a row's labels says, as ``ptkit check`` shows it.

        Default: the name of that index in ``labels``, and the number itself for any other.
        """
        return self.labels[label] if 0 <= label < len(self.labels) else str(label)

    @abstractmethod
    def encode(self, record: Record, tokenizer: Tokenizer) -> list[Row]:
        """The rows of a record: one, or one a window, or one a choice.

        A record whose answer is unknown gives rows to predict from, with empty or ignored labels.
        """

    def encode_batch(self, records: Sequence[Record], tokenizer: Tokenizer) -> list[list[Row]]:
        """`encode` of every record; override it where many at once are faster."""
        return [self.encode(record, tokenizer) for record in records]

    def limits(self) -> HeadLimits:
        """Which settings limit a row's tokens, and how long an answer can get; for ``ptkit
        check``."""
        return HeadLimits()

    def build(self, info: HeadInfo) -> nn.Module | None:
        """The trainable module, initialised from ``info.seed``; None if the backbone's LM head
        does."""
        return None

    @abstractmethod
    def loss(self, module: nn.Module | None, states: States, rows: Sequence[EncodedRow]) -> Loss:
        """The loss of rows whose hidden states are ``states`` (in the same order), one entry a
        group.

        Where rows share a loss, a group begins at each row with ``part == 0``: one record may come
        twice in a step. ``module`` is in training mode.
        """

    def outputs(
        self, module: nn.Module | None, states: States, rows: Sequence[EncodedRow]
    ) -> Sequence[Any]:
        """One output a row, in order, on the CPU: what `decode` needs and no more.

        The rows of a record may come in different calls, so what compares them belongs in `decode`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has neither outputs() nor its own predict()"
        )

    def predict(
        self, model: Model, module: nn.Module | None, rows: Sequence[EncodedRow]
    ) -> Sequence[Any]:
        """One output a row. Heads that generate override it; hidden states can't decode."""
        return self.outputs(module, model.states(rows), rows)

    @abstractmethod
    def decode(
        self, record: Record, rows: Sequence[Row], outputs: Sequence[Any], tokenizer: Tokenizer
    ) -> Any:
        """The prediction for a record from the outputs of all its rows."""

    @abstractmethod
    def reference(self, record: Record) -> Any:
        """What the prediction is compared with; None if the record has none."""

    def constants(self, records: Sequence[Record], *, seed: int) -> Sequence[Any]:
        """Predictions worth giving to every row as a control; the best of them is reported.

        One of them may be a function that gives a record's, for predictions that no two texts can
        share, such as a tag a word; ``str()`` of it is shown. Default: the most frequent reference
        of the training records.
        """
        references = [r for record in records if (r := self.reference(record)) is not None]
        if not references:
            return []
        common = Counter(map(repr, references)).most_common(1)[0][0]  # lists can't be hashed
        return [next(r for r in references if repr(r) == common)]


# ------------------------------------------------------------------------------------------ scores


class Metric(Component):
    """Scores predictions. The result must not depend on the order of the pairs."""

    scores: ClassVar[str]
    """The kind of prediction that it scores, see `TaskHead.predicts`."""
    unit: ClassVar[str] = "percent, 0–100"
    lower_is_better: ClassVar[bool] = False
    """Whether a smaller score is the better one, such as that of an error."""

    @abstractmethod
    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """Name to score over all pairs; an empty dict if the metric doesn't apply to them."""

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        """What a reader of the scores must know, such as a count of empty predictions."""
        return []


class RowMetric(Metric):
    """A metric that is the mean of a score a row."""

    @abstractmethod
    def score_row(self, pair: Pair) -> dict[str, float] | None:
        """The scores of one pair; None for a pair that the metric doesn't apply to."""

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        rows = [row for pair in pairs if (row := self.score_row(pair)) is not None]
        return (
            {name: fsum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}
        )


class Tracker(Component):
    """Where the events of a run go besides the terminal."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """The run folder is there, and the first event is about to come; a run that is resumed
        starts its trackers again."""

    @abstractmethod
    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """One event: ``kind`` is "train", "validation", "scores" …; ``values`` holds plain JSON
        values."""

    @abstractmethod
    def finish(self) -> None:
        """No event comes any more: the run is complete, has failed or was stopped. Called once."""


@dataclass(frozen=True)
class Section:
    """How a recipe section maps to components: its key, the hook, the base class, and whether it is
    a list."""

    key: str
    hook: str
    base: type[Component]
    many: bool = False
    required: bool = True
    title: str = field(default="")


SECTIONS: tuple[Section, ...] = (
    Section("backbone", "ptkit_register_backbones", Backbone, title="backbones"),
    Section("dataset", "ptkit_register_dataset_formats", DatasetFormat, title="dataset formats"),
    Section(
        "transforms",
        "ptkit_register_transforms",
        Transform,
        many=True,
        required=False,
        title="transforms",
    ),
    Section("task", "ptkit_register_task_heads", TaskHead, title="task heads"),
    Section(
        "metrics", "ptkit_register_metrics", Metric, many=True, required=False, title="metrics"
    ),
    Section(
        "trackers", "ptkit_register_trackers", Tracker, many=True, required=False, title="trackers"
    ),
)
