"""What processes that share a run are made of: dealing, adding up, joining, spreading a base."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from ptkit.components import TaskHead
from ptkit.data import Part
from ptkit.engine.evaluate import predict
from ptkit.engine.processes import ALONE, Processes, deal, joined, lost_connection
from ptkit.engine.sharding import LockStep, repeated_layers
from ptkit.errors import CheckpointError, PtkitError
from ptkit.records import EncodedRow, HeadLimits, Row
from ptkit.rowstore import RowStore
from ptkit.settings import SourcePath
from ptkit.testing import tiny_model

from .forked import Ended, share

FINE = Ended(0, "")


def test_the_weights_of_a_spread_base_are_shared_out(tmp_path: Path) -> None:
    """Each of two processes holds half of every weight of the body, int8 ones included."""
    script = tmp_path / "spread.py"
    script.write_text(
        """
import json, sys, torch
from ptkit.engine.frozen import Int8Linear
from ptkit.engine.processes import joined
from ptkit.engine.sharding import shard
from ptkit.records import EncodedRow, Row
from ptkit.testing import tiny_model

rows = [EncodedRow(Row((3, 4, 5)), 0)]
with joined("cpu") as processes:
    model = tiny_model()
    layer = model.body.layers[0].mlp
    layer.down_proj = Int8Linear.from_weight(layer.down_proj.weight.data)
    before = model.states(rows).hidden
    whole = {name: p.numel() for name, p in model.body.named_parameters()}
    shard(model, processes, "cpu")
    own = {name: p.to_local().numel() for name, p in model.body.named_parameters()}
    assert {name: 2 * n for name, n in own.items()} == whole, own
    torch.testing.assert_close(model.states(rows).hidden, before)
"""
    )
    assert share(script, "", 2, tmp_path) == [FINE, FINE]


def test_while_a_layer_works_it_is_whole_and_so_are_the_embeddings(tmp_path: Path) -> None:
    """In the forward and the backward pass, as `ptkit.memory` takes it; the LM head always is."""
    script = tmp_path / "whole.py"
    script.write_text(
        """
import torch
from torch.distributed.tensor import DTensor
from ptkit.engine.processes import joined
from ptkit.engine.sharding import shard
from ptkit.records import EncodedRow, Row
from ptkit.testing import TinyBackbone, tiny_model

def whole(module):
    return {name for name, p in module.named_parameters() if not isinstance(p, DTensor)}

with joined("cpu") as processes:
    model = tiny_model(TinyBackbone(TinyBackbone.Settings(layers=4)))
    names = {name for name, _ in model.body.named_parameters()}
    wanted = {name for name in names if "layers." not in name or "layers.1." in name}
    shard(model, processes, "cpu")
    assert whole(model.lm_head) and not whole(model.body)
    seen, attention = [], model.attentions[1]
    attention.register_forward_hook(lambda *_: seen.append(whole(model.body)))
    attention.q_proj.register_full_backward_hook(lambda *_: seen.append(whole(model.body)))
    prefix = torch.zeros(8, 1, model.geometry.kv_groups, 3, model.geometry.head_size)
    with model.using(prefix.requires_grad_()):
        model.states([EncodedRow(Row((3, 4, 5)), 0)]).hidden.sum().backward()
    assert seen == [wanted, wanted], seen
    assert not whole(model.body)
"""
    )
    assert share(script, "", 2, tmp_path) == [FINE, FINE]


class Counting:
    """A head, as far as `predict` uses it, that answers a record with the number of its rows."""

    def limits(self) -> HeadLimits:
        return HeadLimits()

    def predict(self, model: Any, module: Any, rows: Sequence[EncodedRow]) -> list[int]:
        return [1] * len(rows)

    def decode(self, record: Any, rows: Any, outputs: list[int], tokenizer: Any) -> int:
        return sum(outputs)


def test_progress_counts_the_rows_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five records of 1 to 3 rows of three tokens, two rows a batch: each of two processes has four
    or five of the nine rows, and says that all nine are done when it has everybody's answers."""
    store, counts = RowStore(), [2, 1, 3, 1, 2]
    for count in counts:
        store.append([Row((3, 4, 5))] * count)
    records: list[Any] = [None] * len(counts)
    source = SourcePath("v.json", Path("v.json"))
    part = Part("validation", source, lambda: iter(()), rows=store, records=records)
    model, head = tiny_model(), cast("TaskHead", Counting())
    model.batch_tokens = 6
    gathered: dict[int, Any] = {}

    def predicted(processes: Processes) -> tuple[list[Any], list[tuple[int, int]]]:
        told: list[tuple[int, int]] = []

        def gather(self: Processes, value: Any) -> list[Any]:
            told.append((-1, -1))
            gathered[self.rank] = value
            return list(gathered.values())

        monkeypatch.setattr(Processes, "gather", gather)
        tokenizer: Any = None
        found = predict(
            model, head, None, part, tokenizer, lambda *both: told.append(both), processes
        )
        return found, told

    assert predicted(ALONE) == (counts, [(2, 9), (4, 9), (6, 9), (8, 9), (9, 9)])
    _, told = predicted(Processes(1, 2))  # four rows
    assert told == [(4, 9), (-1, -1), (9, 9)]
    found, told = predicted(Processes(0, 2))
    assert found == counts
    assert told == [(3, 9), (7, 9), (-1, -1), (9, 9)]


def test_layers_that_can_t_be_found_can_t_be_spread() -> None:
    model = tiny_model()
    layers: Any = model.body.layers
    assert repeated_layers(model) == list(layers)
    model.attentions.reverse()
    with pytest.raises(CheckpointError) as caught:
        repeated_layers(model)
    assert caught.value.lines == (
        "GlmModel: its repeated layers can't be told apart, so its weights can't be spread; "
        "set train.shard_base = false",
    )


def test_a_pass_without_gradients_is_refused_where_the_others_go_backward() -> None:
    model = tiny_model()
    lock_step = LockStep(model, ALONE)
    rows = [EncodedRow(Row((3, 4)), 0)]
    with lock_step.until_all_are_done(gradients=False), torch.no_grad():
        model.states(rows)
    expected = pytest.raises(RuntimeError, match="the other processes expect a pass with gradients")
    with expected, lock_step.until_all_are_done(gradients=True), torch.no_grad():
        model.states(rows)


def test_gradients_are_added_up_where_some_process_has_them(tmp_path: Path) -> None:
    """Rank r gives r + 1 times [1, 2] for the first leaf; rank 1 alone has the second's; nobody
    the third's."""
    script = tmp_path / "add.py"
    script.write_text(
        """
import torch
from ptkit.engine.processes import joined
from ptkit.engine.train import Totals

with joined("cpu") as processes:
    rank = processes.rank
    leaves = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    leaves[0].grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    leaves[1].grad = torch.tensor([5.0, 6.0]) if rank else None
    mine = Totals(torch.tensor(1.5 + rank), torch.tensor(2.0), 16_777_217 + rank, 1)
    totals = processes.add_up(mine, leaves)
    assert leaves[0].grad.tolist() == [3.0, 6.0]
    assert leaves[1].grad.tolist() == [5.0, 6.0]
    assert leaves[2].grad is None
    assert (float(totals.numerator), float(totals.weight)) == (4.0, 4.0)
    assert (totals.tokens, totals.micro_batches) == (33_554_435, 2)
    assert processes.gather(rank) == [0, 1]
    assert processes.first(lambda: rank) == 0
    assert processes.largest(rank) == 1
"""
    )
    assert share(script, "", 2, tmp_path) == [FINE, FINE]


def test_deal_gives_like_loads_and_keeps_the_order() -> None:
    assert deal([5, 1, 4, 2], 2) == [[0, 1], [2, 3]]
    assert deal([3], 3) == [[0], [], []]
    assert deal([1, 1, 1, 1], 3) == [[0, 3], [1], [2]]
    sizes = [7 * i % 31 + 1 for i in range(100)]
    dealt = deal(sizes, 4)
    assert sorted(i for part in dealt for i in part) == list(range(100))
    loads = [sum(sizes[i] for i in part) for part in dealt]
    assert max(loads) - min(loads) <= min(sizes)


def test_alone_nothing_is_dealt_or_asked() -> None:
    assert Processes(0, 1) == ALONE
    assert ALONE.share([3, 4], lambda size: size) == [3, 4]
    assert ALONE.gather("x") == ["x"]
    assert ALONE.first(lambda: 5) == 5
    assert ALONE.largest(3) == 3


def test_a_run_alone_imports_no_collectives() -> None:
    code = (
        "import sys, ptkit.engine.processes as p\n"
        "with p.joined('cpu') as processes: assert processes is p.ALONE\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {k: v for k, v in os.environ.items() if k != "WORLD_SIZE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
            "WORLD_SIZE: says that this is one of 2 processes, but MASTER_ADDR, MASTER_PORT are "
            "not set; start it with torchrun, or with --processes and without WORLD_SIZE",
        ),
        (
            {"WORLD_SIZE": "two"},
            "WORLD_SIZE: must be a whole number, got 'two'; start with torchrun",
        ),
    ],
)
def test_variables_that_are_missing_or_wrong_are_told(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], line: str
) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PtkitError) as caught, joined("cpu"):
        pass
    assert caught.value.lines == (line,)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda", "auto"):
        with pytest.raises(PtkitError) as caught, joined(device):
            pass
        assert caught.value.lines == (
            f"device {device!r}: 2 processes on this machine, but torch sees 1 GPU; "
            "use --processes 1, or --device cpu",
        )


def test_only_errors_of_connections_are_taken_for_them() -> None:
    assert lost_connection(RuntimeError("[gloo/transport/tcp/pair.cc:538] Connection closed"))
    caused = ValueError("head")
    caused.__cause__ = torch.distributed.DistBackendError("NCCL error")
    assert lost_connection(caused)
    assert not lost_connection(RuntimeError("shapes differ"))
