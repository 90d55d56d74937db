"""How a check looks in the terminal, or in a file: text of the width that there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ptkit.check import PartReport, Report
from ptkit.counting import Equal, Lengths
from ptkit.memory import Memory
from ptkit.reporter import Reporter
from ptkit.samples import Sample, SampleRow

BAR = 30  # characters of the longest bar of a histogram
TEXT_SHOWN = 600  # characters of a field of a record
IDS_SHOWN = 1000
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


class Encoding(Reporter):
    """A line on a terminal while rows are encoded, and nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self._status = Status("reading", console=console)
        self._shown = console.is_terminal

    def __enter__(self) -> Encoding:
        if self._shown:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._status.stop()

    def progress(
        self, what: str, done: int, total: int | None, values: Mapping[str, float]
    ) -> None:
        self._status.update(f"{what}: {done:,} rows")


def show(report: Report, console: Console) -> None:
    """Print all of a report."""
    view = _View(console)
    for part in report.parts:
        for number, sample in enumerate(part.first, start=1):
            view.sample(sample, f"{part.name} row {number}")
    view.data(report.parts)
    for part in report.parts:
        view.lengths(part)
    view.plan(report)
    view.memory(report)
    for title, lines in (("suggestions", report.suggestions), ("warnings", report.warnings)):
        if lines:
            view.title(title)
            view.table([("–", line) for line in lines])
    view.title("")
    view.table([("next", f"ptkit run {report.recipe}")], indent=0)


class _View:
    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str, style: str = "") -> None:
        self.table([[Text(text, style)]])

    def title(self, text: str) -> None:
        self._console.print()
        if text:
            self._console.print(Text(text, "bold"))

    def table(
        self,
        rows: Iterable[Sequence[str | Text]],
        *,
        right: Sequence[int] = (),
        indent: int = 2,
        fold: bool = True,
    ) -> None:
        """Rows of cells under each other; ``fold``: the last column wraps in what room is left."""
        rows = list(rows)
        table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
        if indent:
            table.add_column(width=indent - 2)
            rows = [("", *row) for row in rows]
            right = [column + 1 for column in right]
        for column in range(1 if indent else 0, len(rows[0])):
            last = fold and column == len(rows[0]) - 1
            table.add_column(
                justify="right" if column in right else "left",
                no_wrap=not last,
                overflow="fold" if last else "ellipsis",
            )
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        with self._console.capture() as capture:
            self._console.print(table)
        for line in capture.get().splitlines():  # cells are padded to their column's width
            self._console.file.write(f"{line.rstrip()}\n")

    # ------------------------------------------------------------------------------ rows

    def sample(self, sample: Sample, name: str) -> None:
        self.title(f"{name}, {sample.origin}")
        lines: list[tuple[str | Text, str | Text]] = [
            (Text(field, "dim"), _clipped(str(value))) for field, value in sample.fields.items()
        ]
        for number, row in enumerate(sample.rows, start=1):
            if len(sample.rows) > 1:
                lines.append((Text(f"sequence {number}", "dim"), ""))
            lines += self._encoded(row)
        self.table(lines)

    def _encoded(self, row: SampleRow) -> Iterable[tuple[str | Text, str | Text]]:
        shown = row.ids[:IDS_SHOWN]
        more = len(row.ids) - len(shown)
        count = f"{len(row.ids):,} tokens" + (f", {row.cut:,} more were cut" if row.cut else "")
        yield Text("tokens", "dim"), count
        ids = " ".join(map(str, shown)) + (f" … and {more:,} more" if more else "")
        yield Text("ids", "dim"), ids
        for run in row.runs:
            text = Text()
            labels = run.labels or [""] * len(run.pieces)
            for index, (piece, label) in enumerate(zip(run.pieces, labels, strict=True)):
                if index:
                    text.append("|", "dim")
                text.append(_token(piece), "green" if run.trained else "")
                if label:
                    text.append(f"={label}", "cyan")
            label = (
                f"trained on ({len(run.pieces)})" if run.trained else f"read ({len(run.pieces)})"
            )
            yield Text(label, "green" if run.trained else "dim"), text
        if row.labels:
            yield Text("labels", "green"), Text(" ".join(row.labels), "green")

    # ------------------------------------------------------------------------------ data

    def data(self, parts: Sequence[PartReport]) -> None:
        self.title("data")
        several = any(part.sequences != part.records for part in parts)
        head = ["", "rows", "rejected", "cut", "repeated", "also in train", "file"]
        rows = []
        for part in parts:
            shared = "" if part.shared is None else f"{part.shared.count:,}"
            rows.append(
                [
                    part.name,
                    f"{part.records:,}",
                    f"{part.skipped:,}",
                    f"{part.cut:,}",
                    f"{part.repeats.count:,}",
                    shared,
                    part.source,
                ]
            )
            if several:
                rows[-1].insert(2, f"{part.sequences:,}")
        if several:
            head.insert(2, "sequences")
        numbers = range(1, len(head) - 1)
        self.table([[Text(name, "dim") for name in head], *rows], right=numbers)
        for part in parts:
            more = part.skipped - len(part.messages)
            messages = [*part.messages, *([f"and {more:,} more"] if more else [])]
            if messages:
                self.table([(Text("rejected", "yellow"), message) for message in messages])
            self._equal(part.repeats, f"twice in {part.name}")
            if part.shared is not None:
                self._equal(part.shared, f"in train and {part.name}")

    def _equal(self, equal: Equal, what: str) -> None:
        if equal.count:
            examples = ", ".join(f"{first} = {second}" for first, second in equal.examples)
            more = equal.count - len(equal.examples)
            self.table([(what, examples + (f" and {more:,} more" if more else ""))])

    def lengths(self, part: PartReport) -> None:
        sequences = "" if part.sequences == part.records else " a sequence"
        self.title(f"{part.name}: tokens{sequences} before anything is cut")
        head = ["", "50 %", "90 %", "99 %", "longest", "cut", ""]
        rows: list[list[str]] = []
        for side in part.lengths:
            percent = [f"{length:,}" for length in side.percent.values()]
            rows.append([side.what, *percent, *_share(side.cut, part.sequences)])
        if len(rows) > 1 and part.cut:
            rows.append(["either", "", "", "", "", *_share(part.cut, part.sequences)])
            rows.append(["both", "", "", "", "", *_share(part.cut_both, part.sequences)])
        self.table([[Text(name, "dim") for name in head], *rows], right=range(1, 6))
        if part.name == "train":
            for side in part.lengths:
                self._histogram(side)

    def _histogram(self, side: Lengths) -> None:
        self.line("")
        most = max(part.rows for part in side.histogram)
        self.table(
            [
                (
                    side.what if index == 0 else "",
                    f"{part.first:,}–{part.last:,}",
                    f"{part.rows:,}",
                    Text(bar(part.rows / most), "blue"),
                )
                for index, part in enumerate(side.histogram)
            ],
            right=(1, 2),
        )

    # ------------------------------------------------------------------------------ training

    def plan(self, report: Report) -> None:
        plan = report.plan
        self.title("training")
        seen = f"{plan.epochs:,.2f} epochs"
        looked = ""
        if plan.steps_looked_at < plan.steps:
            looked = f" (mean of the first {plan.steps_looked_at:,} steps)"
        targets = ""
        if plan.targets_per_step:
            targets = f", {plan.targets_per_step:,.0f} of them trained on"
        trained = f"{report.trainable:,} parameters"
        if report.head_trains:
            trained += ", plus the head's own"
        share = report.trainable / (report.trainable + report.frozen)
        rows = [
            ("steps", f"{plan.steps:,} of {plan.records_per_step:,} rows, {seen}"),
            ("a step", f"{plan.tokens_per_step:,.0f} tokens{targets}{looked}"),
            ("micro-batches", f"{plan.micro_batches_per_step:,.2f} a step"),
            (
                "padding",
                f"0; rows padded to the longest of a step would be {plan.padding:.0f} % padding",
            ),
            ("trains", f"{trained}, {100 * share:.4f} %; prefix length {report.prefix_length}"),
            ("frozen", f"{report.frozen:,} parameters, {report.backbone}"),
        ]
        if plan.stem:
            same = f"the first {plan.stem} tokens of all rows, computed once a micro-batch"
            rows.insert(4, ("shared", same))
        self.table(rows)

    def memory(self, report: Report) -> None:
        estimates = report.estimates
        large = max(m.total for m in estimates) >= 2**30
        unit, name, digits = (2**30, "GiB", 2) if large else (2**20, "MiB", 1)
        self.title(f"memory of training, estimated, in {name}")
        heads = [f"{DEVICES[m.device]} {m.dtype}" for m in estimates]
        # in two lines, because four columns of "all layers again" are wider than a terminal
        ways = [("all layers", "again") if m.recomputed else ("plain", "") for m in estimates]
        lines: list[list[str | Text]] = [
            ["", *(Text(name, "dim") for name in head)]
            for head in (heads, *zip(*ways, strict=True))
        ]
        for label, values in _memory_lines(estimates):
            style = "bold" if label == "peak" else ""
            lines.append(
                [Text(label, style), *(Text(f"{v / unit:,.{digits}f}", style) for v in values)]
            )
        self.table(lines, right=range(1, len(heads) + 1), fold=False)
        batch = report.largest
        self.line(
            "* only the larger of the two counts. Largest micro-batch: "
            f"{len(batch.lengths):,} rows, {batch.tokens:,} tokens. Python, torch and the device's "
            f'libraries come on top. With train.memory = "{report.memory}":',
            "dim",
        )
        for fit in report.fits:
            self.line(f"  {fit}", "yellow" if fit.fits is False else "")


def _memory_lines(estimates: Sequence[Memory]) -> list[tuple[str, list[int]]]:
    return [
        ("weights", [m.weights for m in estimates]),
        ("adapter", [m.adapter for m in estimates]),
        ("gradients, optimiser", [m.optimizer for m in estimates]),
        ("activations", [m.activations for m in estimates]),
        ("logits at work *", [m.logits for m in estimates]),
        ("a layer at work *", [m.layer for m in estimates]),
        ("peak", [m.total for m in estimates]),
    ]


def _share(count: int, of: int) -> tuple[str, str]:
    return f"{count:,}", f"{100 * count / of:.1f} % of the rows" if count else ""


def bar(share: float) -> str:
    """A bar of eighths of a character; what isn't nothing shows."""
    eighths = max(round(share * BAR * 8), 1 if share else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _visible(piece: str) -> str:
    return piece.replace("\n", "⏎").replace("\t", "⇥")


def _token(piece: str) -> str:
    return _visible(piece).replace(" ", "␣")


def _clipped(text: str) -> str:
    if len(text) <= TEXT_SHOWN:
        return _visible(text)
    return f"{_visible(text[:TEXT_SHOWN])}… ({len(text):,} characters)"
