"""loss.png: the training loss, the validation loss, and the untuned model's as a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ptkit.engine.files import whole_file


def smoothed(values: list[float]) -> list[float]:
    """The exponential moving average over a fortieth of the values, corrected for its start as
    Adam's (Kingma and Ba, 2015)."""
    weight = max(0.0, 1 - 40 / max(1, len(values)))
    average, result = 0.0, []
    for count, value in enumerate(values, start=1):
        average = weight * average + (1 - weight) * value
        result.append(average / (1 - weight**count))
    return result


def plot_losses(events: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the loss curves of a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train = [e for e in events if e["event"] == "train"]
    validation = [e for e in events if e["event"] == "validation"]
    untuned = [e for e in events if e["event"] == "untuned"]
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [e["step"] for e in train]
    losses = [e["loss"] for e in train]
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="training, each step")
    axes.plot(steps, smoothed(losses), color="#1f5a96", linewidth=1.8, label="training, smoothed")
    if validation:
        axes.plot(
            [e["step"] for e in validation],
            [e["loss"] for e in validation],
            color="#c2410c",
            marker="o",
            markersize=4,
            label="validation",
        )
    for event in untuned:
        label = f"untuned model ({event['loss']:.2f})"
        axes.axhline(event["loss"], color="#555555", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats)")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=140)
