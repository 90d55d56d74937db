"""What a benchmark measured, as JSON values too."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from ptkit.engine.matmuls import MatmulRate


@dataclass(frozen=True)
class Work:
    """A step of the recipe: means over the steps that are measured.

    ``tokens``: real ones, without prefix and padding; ``targets``: those with a loss through the LM
    head; ``flops``: see `ptkit.engine.matmuls.step_flops`, as if every row was computed whole.
    """

    rows: float
    tokens: float
    targets: float
    flops: float


@dataclass(frozen=True)
class Steps:
    """How one side did the steps.

    ``first_seconds``: the first, with what is compiled or set up in it; ``seconds``: those behind
    the warm-up, each up to the moment that its loss is known. ``losses``: of all. ``peak_bytes``:
    on a GPU the most that was allocated, weights included; on a CPU the growth of resident memory;
    None where it can't be measured. ``at_once``: tokens or rows that went through the model
    together.
    """

    first_seconds: float
    seconds: list[float]
    losses: list[float]
    peak_bytes: int | None
    at_once: str

    @property
    def median_seconds(self) -> float:
        return median(self.seconds)

    def as_dict(self, work: Work, rate: MatmulRate) -> dict[str, Any]:
        seconds = self.median_seconds
        return {
            **asdict(self),
            "median_seconds": seconds,
            "tokens_per_second": work.tokens / seconds,
            "targets_per_second": work.targets / seconds,
            "share_of_matmul_rate": work.flops / seconds / rate.flops_per_second,
        }


@dataclass(frozen=True)
class Answers:
    """How one side answered ``rows`` prompts with ``new_tokens`` in all."""

    rows: int
    new_tokens: int
    seconds: float
    peak_bytes: int | None
    ids: list[list[int]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "new_tokens": self.new_tokens,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
            "rows_per_second": self.rows / self.seconds,
            "tokens_per_second": self.new_tokens / self.seconds,
        }


@dataclass
class Side:
    """What was measured of ptkit or of PEFT.

    ``loss``: of the first step's rows before training, without dropout, each token counting the
    same; equal on both sides where both start from the same prefix.
    """

    steps: Steps | None = None
    loss: float | None = None
    answers: Answers | None = None


@dataclass
class Result:
    """All that a benchmark measured.

    ``estimated_bytes``: what `ptkit check` says that ptkit's training takes, to be held against
    the peak; ``layers_recomputed``: how many layers' activations train.memory has computed again.
    ``notes``: what a reader must know, a line each.
    """

    recipe: str
    command: str
    device: str
    dtype: str
    quantization: str
    parameters: int
    trainable: int
    work: Work
    matmuls: MatmulRate
    environment: dict[str, Any]
    ptkit: Side = field(default_factory=Side)
    peft: Side = field(default_factory=Side)
    estimated_bytes: int = 0
    layers_recomputed: int = 0
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON values; a side that wasn't measured is None."""
        made: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("recipe", "command", "device", "dtype", "quantization", "parameters")
        }
        made |= {"trainable": self.trainable, "work": asdict(self.work)}
        made |= {
            "estimated_bytes": self.estimated_bytes,
            "layers_recomputed": self.layers_recomputed,
        }
        made |= {"matmuls": self.matmuls.as_dict(), "environment": self.environment}
        for name in ("ptkit", "peft"):
            side: Side = getattr(self, name)
            made[name] = {
                "steps": side.steps and side.steps.as_dict(self.work, self.matmuls),
                "loss": side.loss,
                "answers": side.answers and side.answers.as_dict(),
            }
        ours, theirs = self.ptkit.answers, self.peft.answers
        made["same_answers"] = None
        if ours is not None and theirs is not None:
            made["same_answers"] = sum(a == b for a, b in zip(ours.ids, theirs.ids, strict=True))
        return {**made, "notes": self.notes}
