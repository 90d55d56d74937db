"""The contract check for task heads: records, rows, predictions; losses are in `losses`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ptkit.components import TaskHead
from ptkit.models import Backbone, Tokenizer
from ptkit.records import IGNORE, Geometry, HeadInfo, Record, Row
from ptkit.rowstore import RowStore
from ptkit.testing.faults import Subject, same
from ptkit.testing.losses import Bench, check_losses, one_thread
from ptkit.testing.tiny import TinyBackbone

_ALONE = 8  # rows whose output is also asked for without the others
_TOLERANCE = 1e-4
_OUTPUT_HINT = (
    "an output must be made of its own row: use states.at, first, last, mean or the mask of "
    "padded(), and leave what needs all rows of a record to decode()"
)


def check_task_head(
    head: TaskHead,
    records: Sequence[Record],
    *,
    unanswered: Sequence[Record] = (),
    backbone: Backbone | None = None,
) -> None:
    """Check that ``head`` keeps the contract of `ptkit.TaskHead` on ``records``.

    Give it four to eight records with answers, of different lengths, and settings under which rows
    stay short. ``unanswered``: records whose answer is unknown, to be encoded and predicted only.
    It runs on ``backbone``; by default on the causal `TinyBackbone` and, if the head has a module
    of its own, on the one that is not causal. Raises `AssertionError` naming the head, the fault
    and what to do.
    """
    subject = Subject(head, TaskHead)
    subject.check_component()
    _check_records(subject, head, [*records, *unanswered])
    with one_thread():
        _check(subject, head, records, unanswered, backbone)
    subject.check_import()


def _check(
    subject: Subject,
    head: TaskHead,
    records: Sequence[Record],
    unanswered: Sequence[Record],
    backbone: Backbone | None,
) -> None:
    head = _with_labels(subject, head, records)
    _check_references(subject, head, records)
    encoder = TinyBackbone(TinyBackbone.Settings(causal=False))
    for chosen in [backbone] if backbone else [TinyBackbone(), encoder]:
        module = _build(subject, head, chosen.geometry)
        if module is None and backbone is None and not chosen.geometry.causal:
            continue  # no LM head there
        store = RowStore()
        for record in records:
            rows = _encode(subject, head, record, chosen)
            _check_labels(subject, head, record, rows, chosen.geometry, trains=module is not None)
            store.append(rows)
        _check_order(subject, head, records, store, chosen.tokenizer)
        bench = Bench(subject, head, module, store, chosen)
        check_losses(bench)
        _check_predictions(bench, records)
        if unanswered:
            extra = RowStore()
            for record in unanswered:
                extra.append(_encode(subject, head, record, chosen))
            _check_predictions(Bench(subject, head, module, extra, chosen), unanswered)


def _check_records(subject: Subject, head: TaskHead, records: Sequence[Record]) -> None:
    if not records:
        raise subject.fault("check_task_head() needs at least one record")
    for record in records:
        if not isinstance(record, head.accepts):
            raise subject.fault(
                f"it accepts {head.accepts.__name__}, but was given a {type(record).__name__}"
            )


def _with_labels(subject: Subject, head: TaskHead, records: Sequence[Record]) -> TaskHead:
    """The head as a run makes it: with the labels of the training records."""
    given = copy.deepcopy(list(records))
    labels = subject.call("collect_labels()", lambda: list(head.collect_labels(given)))
    if not same(given, list(records)):
        raise subject.fault("collect_labels() changed its records")
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise subject.fault(f"collect_labels() must give distinct strings, got {labels}")
    again = subject.call("collect_labels()", lambda: list(head.collect_labels(given)))
    if again != labels:
        raise subject.fault(f"collect_labels() gave {labels}, then {again}; sort a set")
    return _fresh(subject, head, labels or head.labels)


def _fresh(subject: Subject, head: TaskHead, labels: Sequence[str]) -> TaskHead:
    made = subject.call(
        "making it from settings and labels",
        lambda: type(head)(head.settings, labels),
        "; a head is made with (settings, labels)",
    )
    if tuple(made.labels) != tuple(labels):
        raise subject.fault(f"it was made with the labels {tuple(labels)}, but has {made.labels}")
    return made


def _check_references(subject: Subject, head: TaskHead, records: Sequence[Record]) -> None:
    given = copy.deepcopy(list(records))
    calls: dict[str, Callable[[], list[Any]]] = {
        "reference()": lambda: [head.reference(record) for record in given],
        "constants()": lambda: list(head.constants(given, seed=1)),
    }
    for what, call in calls.items():
        if not same(subject.call(what, call), subject.call(what, call)):
            raise subject.fault(f"{what} gives other values the second time; follow the seed alone")
    if not same(given, list(records)):
        raise subject.fault("reference() or constants() changed its records")


def _build(subject: Subject, head: TaskHead, geometry: Geometry) -> nn.Module | None:
    info = HeadInfo(geometry.hidden_size, geometry.vocab_size, geometry.causal, seed=3)
    made: list[nn.Module | None] = []
    for state in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(state)
            made.append(subject.call("build()", lambda: head.build(info)))
    if any(module is not None and not isinstance(module, nn.Module) for module in made):
        got = type(made[0]).__name__
        raise subject.fault(f"build() must return a torch module or None, got {got}")
    first, second = (None if module is None else dict(module.state_dict()) for module in made)
    if not same(first, second):
        raise subject.fault(
            "build() gives other weights the second time; initialise them from info.seed, for "
            "example with a torch.Generator"
        )
    if made[0] is not None and not any(p.requires_grad for p in made[0].parameters()):
        raise subject.fault("build() gives a module in which nothing trains; return None")
    return made[0]


# ------------------------------------------------------------------------------------ rows


def _encode(subject: Subject, head: TaskHead, record: Record, backbone: Backbone) -> list[Row]:
    """The rows of a record from a head that has seen no other, checked."""
    tokenizer, geometry = backbone.tokenizer, backbone.geometry
    alone = [_fresh(subject, head, head.labels) for _ in range(2)]
    given = copy.deepcopy(record)
    where = f"encode() of the record from {record.origin}"
    first = subject.call(where, lambda: alone[0].encode(given, tokenizer))
    second = subject.call(where, lambda: alone[1].encode(given, tokenizer))
    if not same(given, record):
        raise subject.fault(f"{where} changed the fields of the record")
    if not isinstance(first, list) or not first or not all(isinstance(row, Row) for row in first):
        raise subject.fault(f"{where} must return a list of ptkit.Row, one or more, got {first!r}")
    if not same(first, second):
        raise subject.fault(f"{where} gives other rows the second time; rows follow the record")
    for row in first:
        for name in ("tokens", "labels", "token_types", "places"):
            values = getattr(row, name)
            if not isinstance(values, tuple) or not all(map(_is_int32, values)):
                raise subject.fault(
                    f"{where}: {name} must be a tuple of plain ints of 32 bits, got {values!r}"
                )
        if not row.tokens:
            raise subject.fault(f"{where} gave a row without tokens")
        if len(row.tokens) > geometry.max_positions:
            raise subject.fault(
                f"{where} gave a row of {len(row.tokens)} tokens, but the backbone takes "
                f"{geometry.max_positions}; cut it, and say in `cut` how many tokens were left out"
            )
        wrong = [token for token in row.tokens if not 0 <= token < geometry.vocab_size]
        if wrong:
            raise subject.fault(
                f"{where}: token {wrong[0]} is outside the vocabulary of {geometry.vocab_size} ids"
            )
        if row.token_types and len(row.token_types) != len(row.tokens):
            raise subject.fault(
                f"{where}: {len(row.token_types)} token types for {len(row.tokens)} tokens; give "
                "one a token, or none"
            )
        if type(row.cut) is not int or row.cut < 0:
            raise subject.fault(f"{where}: cut must count tokens, got {row.cut!r}")
        if type(row.cut_targets) is not int or not 0 <= row.cut_targets <= row.cut:
            raise subject.fault(
                f"{where}: cut_targets counts those of the {row.cut} tokens in cut that were to be "
                f"trained on, got {row.cut_targets!r}"
            )
    return first


def _is_int32(value: Any) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _check_labels(
    subject: Subject,
    head: TaskHead,
    record: Record,
    rows: Sequence[Row],
    geometry: Geometry,
    *,
    trains: bool,
) -> None:
    """Labels that can't be meant. Their meaning is the head's, so only plain cases are found."""
    where = f"encode() of the record from {record.origin}"
    for row in rows:
        by_token = len(row.labels) == len(row.tokens)
        if not trains:
            wrong = [x for x in row.labels if x != IGNORE and not 0 <= x < geometry.vocab_size]
            if wrong:
                raise subject.fault(
                    f"{where}: label {wrong[0]} is outside the vocabulary of {geometry.vocab_size} "
                    f"ids; without a module, labels are the LM head's ids, or ptkit.IGNORE"
                )
            if by_token and _shifted(row, geometry):
                raise subject.fault(
                    f"{where}: the labels don't line up with the tokens, they are one place early; "
                    "give each token its own label, states.token_loss() does the shift"
                )
            if len(row.labels) > 1 and not by_token:
                raise subject.fault(
                    f"{where}: the labels don't line up with the tokens, {len(row.labels)} labels "
                    f"for {len(row.tokens)} tokens; give one a token, ptkit.IGNORE for no training"
                )
        elif head.labels and (by_token or len(row.labels) == 1):
            wrong = [x for x in row.labels if x != IGNORE and not 0 <= x < len(head.labels)]
            if wrong:
                raise subject.fault(
                    f"{where}: label {wrong[0]} is outside the {len(head.labels)} labels "
                    f"{head.labels}; use their indices, or ptkit.IGNORE ({IGNORE})"
                )


def _shifted(row: Row, geometry: Geometry) -> bool:
    at = [i for i, label in enumerate(row.labels) if label != IGNORE]
    if not geometry.causal or len(at) < 2 or at[-1] == len(row.tokens) - 1:
        return False
    early = all(row.labels[i] == row.tokens[i + 1] for i in at)
    return early and any(row.labels[i] != row.tokens[i] for i in at)


def _check_order(
    subject: Subject,
    head: TaskHead,
    records: Sequence[Record],
    store: RowStore,
    tokenizer: Tokenizer,
) -> None:
    """One head for all records, in both orders, must give the rows of a fresh one."""
    used = _fresh(subject, head, head.labels)
    for index in (*range(len(records)), *reversed(range(len(records)))):
        rows = subject.call("encode()", partial(used.encode, records[index], tokenizer))
        if not same(rows, [store[i].row for i in store.rows_of(index)]):
            raise subject.fault(
                f"encode() of the record from {records[index].origin} gives other rows when it "
                "comes after others; keep no state between rows"
            )
    batch = subject.call("encode_batch()", lambda: used.encode_batch(list(records), tokenizer))
    alone = [[store[i].row for i in store.rows_of(index)] for index in range(len(records))]
    if not same(batch, alone):
        raise subject.fault(
            "encode_batch() must give the rows of encode() for every record, in order; "
            "a class that overrides one of them overrides both"
        )


# ------------------------------------------------------------------------------------ predictions


def _check_predictions(bench: Bench, records: Sequence[Record]) -> None:
    subject, head, rows = bench.subject, bench.head, list(bench.store)
    if type(head).outputs is not TaskHead.outputs:
        bench.check_untouched("outputs()", lambda states: head.outputs(bench.module, states, rows))
    outputs = _predict(bench, rows)
    if not same(outputs, _predict(bench, rows), _TOLERANCE):
        raise subject.fault("predict() gives other outputs the second time; draw by a seed")
    alone = [_predict(bench, [row])[0] for row in rows[:_ALONE]]
    for index, output in enumerate(alone):
        if same(output, outputs[index], _TOLERANCE):
            continue
        if all(any(same(a, o, _TOLERANCE) for o in outputs) for a in alone):
            raise subject.fault("predict() gives its outputs in another order than its rows")
        raise subject.fault(
            f"predict() gives {outputs[index]!r} for row {index} beside other rows, and {output!r} "
            f"for the row alone; {_OUTPUT_HINT}"
        )
    if not same(outputs[::-1], _predict(bench, rows[::-1]), _TOLERANCE):
        raise subject.fault(
            "predict() gives other outputs when its rows come in another order; "
            f"give them in the order of the rows, and note that {_OUTPUT_HINT}"
        )
    if not same(outputs, _predict(bench, rows, layout="padded"), _TOLERANCE):
        raise subject.fault(
            "predict() gives other outputs when the model pads rows instead of packing them; look "
            "at hidden states through ptkit.States only"
        )
    for index, record in enumerate(records):
        parts = [(rows[i].row, outputs[i]) for i in bench.store.rows_of(index)]
        _check_decode(bench, record, parts)


def _predict(bench: Bench, rows: list[Any], layout: str = "packed") -> list[Any]:
    subject, head = bench.subject, bench.head
    model = bench.packed if layout == "packed" else bench.padded
    given = list(rows)
    with bench.prefix_of(model):
        outputs = subject.call("predict()", lambda: head.predict(model, bench.module, given))
    if given != rows:
        raise subject.fault("predict() changed its list of rows; work on a copy")
    if not hasattr(outputs, "__len__") or len(outputs) != len(rows):
        got = f"{len(outputs)}" if hasattr(outputs, "__len__") else type(outputs).__name__
        raise subject.fault(f"predict() must give one output a row, got {got} for {len(rows)}")
    for tensor in _tensors(outputs):
        if tensor.requires_grad:
            raise subject.fault(
                "predict() gives tensors that require grad, and so keep the memory of the forward "
                "pass; detach() them"
            )
        if tensor.device.type != "cpu":
            raise subject.fault(f"predict() gives tensors on {tensor.device}; use cpu()")
    return list(outputs)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for entry in value for tensor in _tensors(entry)]
    return []


def _check_decode(bench: Bench, record: Record, parts: Sequence[tuple[Row, Any]]) -> None:
    subject, tokenizer = bench.subject, bench.backbone.tokenizer
    rows, outputs = [row for row, _ in parts], [output for _, output in parts]
    given, own = copy.deepcopy(record), copy.deepcopy(outputs)
    what = f"decode() of the record from {record.origin}"
    first, second = (
        subject.call(what, lambda: bench.head.decode(given, rows, own, tokenizer)) for _ in range(2)
    )
    if not same(given, record) or not same(own, outputs):
        raise subject.fault(f"{what} changed the record or its outputs")
    if not same(first, second):
        raise subject.fault(f"{what} gives {first!r}, then {second!r}; keep no state in between")
