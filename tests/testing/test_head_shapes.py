"""Four shapes of heads, each on a causal model and on one that isn't: they learn, and exactly so.

However a step of eight records is laid out, split or recomputed, loss and gradients are the same.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from ptkit_tasks import generation
from torch import Tensor

import ptkit
from ptkit.batching import micro_batches
from ptkit.engine.optimizing import make_optimizer
from ptkit.engine.prefix import PrefixEncoder
from ptkit.engine.train import Totals, Trainable, step_gradients
from ptkit.recipe import TrainSettings
from ptkit.rowstore import RowStore
from ptkit.testing import TinyBackbone, check_task_head, tiny_model

from .heads import (
    ChoiceRecord,
    CrfTagger,
    Extraction,
    MultipleChoice,
    SpanRecord,
    TagRecord,
    log_partition,
    viterbi,
)

TOLERANCE = 1e-6
COLOURS = ["red", "green", "blue", "black", "white", "pink", "brown", "grey"]


def origin(line: int) -> ptkit.Origin:
    return ptkit.Origin("records.json", line)


def generation_records() -> list[ptkit.Record]:
    return [
        ptkit.GenerationRecord(
            origin=origin(i), prompt="say " + "please " * (i % 3) + word, response=f"{word} it is"
        )
        for i, word in enumerate(COLOURS)
    ]


def choice_records() -> list[ptkit.Record]:
    """The right choice is the word of the question; two to four choices."""
    records: list[ptkit.Record] = []
    for i, word in enumerate(COLOURS):
        choices = [*COLOURS[i + 1 :], *COLOURS[:i]][: 1 + i % 3]
        choices.insert(i % 2, word)
        records.append(
            ChoiceRecord(
                origin=origin(i),
                question="which is " + "so " * (i % 4) + word,
                choices=tuple(choices),
                answer=i % 2,
            )
        )
    return records


def span_records() -> list[ptkit.Record]:
    """The answer is what comes after "the"; one to three windows."""
    records: list[ptkit.Record] = []
    for i, word in enumerate(COLOURS):
        words = ("once", "upon", "a", "time") * (i % 3) + ("we", "saw", "the", word, "hat", ".")
        answer = (len(words) - 3, len(words) - 1)
        records.append(SpanRecord(origin=origin(i), question="what", words=words, answer=answer))
    return records


def tag_records() -> list[ptkit.Record]:
    """Colours begin a thing, and the word behind them is in it."""
    records: list[ptkit.Record] = []
    for i, word in enumerate(COLOURS):
        words = ("he",) * (1 + i % 4) + (word, "bow-tie", "sat")
        tags = ("O",) * (1 + i % 4) + ("B", "I", "O")
        records.append(TagRecord(origin=origin(i), words=words, tags=tags))
    return records


@dataclasses.dataclass
class Case:
    """A head on a tiny backbone, with eight encoded records."""

    head: ptkit.TaskHead
    records: list[ptkit.Record]
    backbone: TinyBackbone
    store: RowStore

    def trainable(self, dropout: float = 0.1) -> Trainable:
        geometry = self.backbone.geometry
        prefix = PrefixEncoder(geometry, 3, dropout=dropout)
        prefix.initialize(std=0.5, seed=0)
        info = ptkit.HeadInfo(geometry.hidden_size, geometry.vocab_size, geometry.causal, seed=0)
        return Trainable(prefix, self.head.build(info))

    def step(
        self, model: ptkit.Model, trainable: Trainable, *, tokens: int = 4096, step: int = 0
    ) -> Totals:
        groups = self.store.groups(range(self.store.records), share_loss=self.head.rows_share_loss)
        settings = TrainSettings(max_steps=1, tokens_per_micro_batch=tokens)
        return step_gradients(model, trainable, self.head, self.store, groups, settings, step)


HEADS: dict[str, tuple[ptkit.TaskHead, list[ptkit.Record]]] = {
    "generation": (
        generation.Generation(
            generation.Generation.Settings(sampling=generation.SamplingSettings(max_new_tokens=4))
        ),
        generation_records(),
    ),
    "multiple-choice": (MultipleChoice(MultipleChoice.Settings()), choice_records()),
    "extraction": (Extraction(Extraction.Settings()), span_records()),
    "crf-tagger": (CrfTagger(CrfTagger.Settings(), ("B", "I", "O")), tag_records()),
}
CASES = [
    (name, causal) for name in HEADS for causal in (True, False) if causal or name != "generation"
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case_name(case: tuple[str, bool]) -> str:
    name, causal = case
    return f"{name}-{'glm' if causal else 'bert'}"


@pytest.fixture(params=CASES, ids=case_name)
def case(request: pytest.FixtureRequest) -> Case:
    name, causal = request.param
    head, records = HEADS[name]
    backbone = TinyBackbone(TinyBackbone.Settings(causal=causal, words=tuple(COLOURS)))
    store = RowStore()
    for record in records:
        store.append(head.encode(record, backbone.tokenizer))
    return Case(head, records, backbone, store)


def test_it_keeps_the_contract(case: Case) -> None:
    unanswered = [without_answer(record) for record in case.records[:3]]
    check_task_head(case.head, case.records, unanswered=unanswered, backbone=case.backbone)


def without_answer(record: ptkit.Record) -> ptkit.Record:
    unknown = {"answer", "tags", "response"} & {f.name for f in dataclasses.fields(record)}
    nothing: dict[str, Any] = dict.fromkeys(unknown)
    return dataclasses.replace(record, **nothing)


def test_it_learns(case: Case) -> None:
    model, trainable = tiny_model(case.backbone), case.trainable(dropout=0.0)
    optimizer = make_optimizer(trainable, TrainSettings(max_steps=1, learning_rate=0.05))
    losses = []
    for step in range(30):
        losses.append(case.step(model, trainable, step=step).loss)
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None for p in trainable.parameters())
    assert not any(p.requires_grad for m in model.frozen_modules() for p in m.parameters())


# a random model doesn't learn to speak in forty steps
@pytest.mark.parametrize("case", CASES[1:], indirect=True, ids=case_name)
def test_it_predicts_what_it_learned(case: Case) -> None:
    model, trainable = tiny_model(case.backbone), case.trainable(dropout=0.0)
    optimizer = make_optimizer(trainable, TrainSettings(max_steps=1, learning_rate=0.05))
    for step in range(40):
        case.step(model, trainable, step=step)
        optimizer.step()
    with model.using(trainable.keys_and_values()):
        outputs = case.head.predict(model, trainable.module, list(case.store))
    for index, record in enumerate(case.records):
        rows = [case.store[i].row for i in case.store.rows_of(index)]
        own = [outputs[i] for i in case.store.rows_of(index)]
        found = case.head.decode(record, rows, own, case.backbone.tokenizer)
        assert found == case.head.reference(record)


def tokens_for(case: Case, model: ptkit.Model, parts: int) -> int:
    """The least token budget that splits the step into so many micro-batches."""
    store, measure = case.store, sum if model.layout == "packed" else max
    groups = store.groups(range(store.records), share_loss=case.head.rows_share_loss)
    lengths = [measure(store.length(i) for i in group) for group in groups]
    for tokens in range(1, 1000):
        if len(micro_batches(groups, lengths, tokens, model.layout)) == parts:
            return tokens
    raise AssertionError(f"no budget gives {parts} micro-batches")


def gradients(case: Case, model: ptkit.Model, tokens: int) -> tuple[float, dict[str, Tensor]]:
    trainable = case.trainable()
    totals = case.step(model, trainable, tokens=tokens)
    found = {name: p.grad for name, p in trainable.named_parameters().items()}
    assert all(gradient is not None for gradient in found.values())
    return totals.loss, {name: g for name, g in found.items() if g is not None}


def test_loss_and_gradients_depend_on_no_layout(case: Case) -> None:
    loss, expected = gradients(case, tiny_model(case.backbone), 4096)
    assert float(expected["prefix.embedding.weight"].abs().max()) > 1e-3
    for layout, checkpointing in itertools.product(("packed", "padded"), (False, True)):
        model = tiny_model(case.backbone, layout=layout)  # type: ignore[arg-type]
        if checkpointing:
            model.enable_checkpointing()
        budgets = (4096, tokens_for(case, model, 2), 1)  # all at once, two halves, one by one
        for tokens in budgets:
            other, found = gradients(case, model, tokens)
            assert other == pytest.approx(loss, abs=TOLERANCE, rel=TOLERANCE)
            for name, gradient in found.items():
                assert_close(gradient, expected[name])


def assert_close(left: Tensor, right: Tensor) -> None:
    difference = float((left - right).abs().max())
    assert difference <= TOLERANCE * max(1.0, float(right.abs().max()))


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_bert_is_bert_however_rows_lie(layout: Literal["packed", "padded"]) -> None:
    """Rows with and without token types give what transformers' own BERT gives for each alone."""
    backbone = TinyBackbone(TinyBackbone.Settings(causal=False))
    plain = backbone.load("cpu", "float32").body
    rows = [ptkit.Row((5, 6, 7), token_types=(0, 1, 1)), ptkit.Row((8, 9)), ptkit.Row((4,) * 6)]
    encoded = [ptkit.EncodedRow(row, index) for index, row in enumerate(rows)]
    with torch.no_grad():
        states = tiny_model(backbone, layout=layout).states(encoded)
        for row, hidden in zip(rows, states.hidden.split(states.lengths), strict=True):
            types = torch.tensor([row.token_types or (0,) * len(row.tokens)])
            alone = plain(input_ids=torch.tensor([row.tokens]), token_type_ids=types)
            assert torch.allclose(hidden, alone.last_hidden_state[0], atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.filterwarnings("error")
def test_checkpointing_warns_of_nothing(causal: bool) -> None:
    tiny_model(TinyBackbone(TinyBackbone.Settings(causal=causal))).enable_checkpointing()


def test_crf_partition_by_brute_force() -> None:
    """Three tags on four tokens: 81 sequences, added up one by one."""
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(4, 3, generator=generator)
    transitions = torch.randn(3, 3, generator=generator)

    def score(tags: Sequence[int]) -> float:
        emitted = sum(float(emissions[i, tag]) for i, tag in enumerate(tags))
        return emitted + sum(float(transitions[a, b]) for a, b in itertools.pairwise(tags))

    paths = list(itertools.product(range(3), repeat=4))
    total = torch.tensor([score(path) for path in paths]).logsumexp(0)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    assert float(log_partition(emissions[None], everywhere, transitions)) == pytest.approx(
        float(total), abs=1e-5
    )
    assert tuple(viterbi(emissions, transitions)) == max(paths, key=score)


def test_crf_partition_passes_over_untagged_places() -> None:
    emissions, transitions = torch.randn(2, 5, 3), torch.randn(3, 3)
    mask = torch.tensor([[False, True, False, True, True], [True, False, False, False, False]])
    found = log_partition(emissions, mask, transitions)
    for row in range(2):
        kept = emissions[row, mask[row]][None]
        everywhere = torch.ones(kept.shape[:2], dtype=torch.bool)
        assert float(found[row]) == pytest.approx(
            float(log_partition(kept, everywhere, transitions)), abs=1e-5
        )


def test_heads_use_the_public_door_only() -> None:
    """What the heads of this test import is what a third party may."""
    tree = ast.parse((Path(__file__).parent / "heads.py").read_text())
    modules = {
        node.module if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {str(m) for m in modules if str(m).startswith("ptkit")} == {"ptkit"}
