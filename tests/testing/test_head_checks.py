"""Every fault of heads that `check_task_head` finds, each in a head of its own."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch

import ptkit
from ptkit.testing import TinyBackbone, check_task_head

from .moods import MoodRecord


class Mood(ptkit.TaskHead):
    """One label a record, from the mean state; every fault below is one changed method."""

    name = "mood"
    accepts = MoodRecord
    predicts = "label"

    def collect_labels(self, records: Iterable[ptkit.Record]) -> Sequence[str]:
        return sorted({r.mood for r in records if isinstance(r, MoodRecord) and r.mood})

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        assert isinstance(record, MoodRecord)
        tokens = (*tokenizer.start_ids, *tokenizer.encode(record.text))
        return [ptkit.Row(tokens, (self.labels.index(record.mood),) if record.mood else ())]

    def build(self, info: ptkit.HeadInfo) -> Any:
        import torch

        module = torch.nn.Linear(info.hidden_size, len(self.labels))
        generator = torch.Generator().manual_seed(info.seed)
        with torch.no_grad():
            module.weight.normal_(0, 0.1, generator=generator)
            module.bias.zero_()
        return module

    def losses(self, module: Any, hidden: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        import torch

        targets = torch.tensor([row.labels[0] if row.labels else ptkit.IGNORE for row in rows])
        return torch.nn.functional.cross_entropy(module(hidden), targets, reduction="none")

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        import torch

        losses = self.losses(module, states.mean, rows)
        return ptkit.Loss(losses, torch.tensor([float(bool(row.labels)) for row in rows]))

    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return module(states.mean).detach().tolist()

    def decode(self, record: Any, rows: Any, outputs: Sequence[Any], tokenizer: Any) -> Any:
        return self.labels[outputs[0].index(max(outputs[0]))]

    def reference(self, record: ptkit.Record) -> Any:
        assert isinstance(record, MoodRecord)
        return record.mood


def mood(line: int, text: str, mood: str | None) -> MoodRecord:
    return MoodRecord(origin=ptkit.Origin("moods.txt", line), text=text, mood=mood)


RECORDS = [
    mood(1, "a fine day in the sun", "good"),
    mood(2, "rain", "bad"),
    mood(3, "a day", "so-so"),
    mood(4, "no sun , cold wind", "bad"),
]
UNKNOWN = [mood(5, "wind and sun", None)]


def test_a_good_head_passes() -> None:
    check_task_head(Mood(Mood.Settings()), RECORDS, unanswered=UNKNOWN)


def test_a_head_is_checked_on_the_backbone_that_it_is_given() -> None:
    small = TinyBackbone(TinyBackbone.Settings(max_positions=4))
    with pytest.raises(AssertionError, match="row of 7 tokens, but the backbone takes 4; cut it"):
        check_task_head(Mood(Mood.Settings()), RECORDS, backbone=small)


class ChangesRecord(Mood):
    def encode(self, record: Any, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        record.notes.append("encoded")
        return super().encode(record, tokenizer)


class KeepsState(Mood):
    """Encodes every text behind the one before."""

    before: tuple[int, ...] = ()

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        (row,) = super().encode(record, tokenizer)
        before, self.before = self.before, row.tokens
        return [dataclasses.replace(row, tokens=(*before, *row.tokens))]


class ChangesItsMind(Mood):
    calls = Counter[str]()

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        self.calls["encode"] += 1
        return [ptkit.Row((self.calls["encode"] % 7,))]


class NoRows(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return []


class NoTokens(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row(())]


class ListTokens(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row([1, 2])]  # type: ignore[arg-type]


class UnknownToken(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row((tokenizer.vocab_size,))]


class HalfTypes(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row((3, 4), token_types=(0,))]


class CutText(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row((3, 4), cut=-1)]


class ManyCutTargets(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row((3, 4), cut=1, cut_targets=2)]


class ListPlaces(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row((3, 4), places=[0])]  # type: ignore[arg-type]


class FloatPlaces(Mood):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row((3, 4), places=(0.5,))]  # type: ignore[arg-type]


class OneLabelOutside(Mood):
    """The label's number, counted from 1."""

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        (row,) = super().encode(record, tokenizer)
        return [dataclasses.replace(row, labels=tuple(label + 1 for label in row.labels))]


class LabelOutside(Mood):
    """A label a token, one more than there are."""

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        (row,) = super().encode(record, tokenizer)
        return [dataclasses.replace(row, labels=(len(self.labels),) * len(row.tokens))]


class EncodeRaises(Mood):
    def encode(self, record: Any, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        return [ptkit.Row(tuple(tokenizer.encode(record.sentence)))]


class Unsorted(Mood):
    calls = Counter[str]()

    def collect_labels(self, records: Iterable[ptkit.Record]) -> Sequence[str]:
        self.calls["collect"] += 1
        labels = list(super().collect_labels(records))
        return labels[::-1] if self.calls["collect"] % 2 else labels


class TwiceTheLabel(Mood):
    def collect_labels(self, records: Iterable[ptkit.Record]) -> Sequence[str]:
        return [r.mood for r in records if isinstance(r, MoodRecord) and r.mood]


class LosesLabels(Mood):
    def __init__(self, settings: Any, labels: Sequence[str] = ()) -> None:
        super().__init__(settings)


class RandomBuild(Mood):
    def build(self, info: ptkit.HeadInfo) -> Any:
        import torch

        return torch.nn.Linear(info.hidden_size, len(self.labels))


class FrozenBuild(Mood):
    def build(self, info: ptkit.HeadInfo) -> Any:
        return super().build(info).requires_grad_(False)


class BuildsList(Mood):
    def build(self, info: ptkit.HeadInfo) -> Any:
        return [super().build(info)]


class MeanLoss(Mood):
    """One number, as cross_entropy gives it by default."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums.mean(), weights.sum())


class SpreadMeanLoss(Mood):
    """The mean, in the right shape."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums.mean().expand(len(rows)), weights)


class DividedLoss(Mood):
    """Each row's share of the mean."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums / len(rows), weights)


class ReadsNeighbour(Mood):
    """The first tokens of the pack, whichever row they belong to."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        _, weights = super().loss(module, states, rows)
        return ptkit.Loss(self.losses(module, states.hidden[: len(rows)], rows), weights)


class CountsPadding(Mood):
    """A mean over the padding too."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        _, weights = super().loss(module, states, rows)
        return ptkit.Loss(self.losses(module, states.padded()[0].mean(1), rows), weights)


class SortedLoss(Mood):
    """Right alone and in the order of the records, wrong in any other order."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        order = sorted(range(len(rows)), key=lambda i: rows[i].record)
        falling = [row.record for row in rows] == [3, 2, 1, 0]
        return ptkit.Loss(sums[order], weights[order]) if falling else ptkit.Loss(sums, weights)


class MergesRepeats(Mood):
    """Takes neighbours of one record for one group."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        if len({row.record for row in rows}) < len(rows):
            sums = sums * 1.5
        return ptkit.Loss(sums, weights)


class InPlaceLoss(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        import torch

        with torch.no_grad():
            states.hidden.mul_(2)
        return super().loss(module, states, rows)


class InPlaceOutputs(Mood):
    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        import torch

        with torch.no_grad():
            states.hidden.clamp_(min=0)
        return super().outputs(module, states, rows)


class SortsRows(Mood):
    def loss(self, module: Any, states: Any, rows: Any) -> Any:
        loss = super().loss(module, states, rows)
        rows.sort(key=lambda row: len(row.tokens))
        return loss


class DropoutLoss(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        import torch

        _, weights = super().loss(module, states, rows)
        hidden = torch.nn.functional.dropout(states.mean)
        return ptkit.Loss(self.losses(module, hidden, rows), weights)


class Detached(Mood):
    """Trains its module, but not the prefix."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        _, weights = super().loss(module, states, rows)
        return ptkit.Loss(self.losses(module, states.mean.detach(), rows), weights)


class NoGraph(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums.detach(), weights)


class UnusedBias(Mood):
    def losses(self, module: Any, hidden: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return super().losses(lambda states: states @ module.weight.T, hidden, rows)


class WeightsTrain(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums, weights * states.mean.abs().mean(1))


class NegativeWeights(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums, -weights)


class NoWeights(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums, weights * 0)


class NanLoss(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums / 0 - sums / 0, weights)


class OneTensor(Mood):
    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return super().loss(module, states, rows).sums


class SeesLayout(Mood):
    """Tells a slice of one packed sequence from rows gathered out of padded ones."""

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        sums, weights = super().loss(module, states, rows)
        return ptkit.Loss(sums * (1 if states.hidden._is_view() else 2), weights)


class ShortOutputs(Mood):
    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return super().outputs(module, states, rows)[:-1]


class SortedOutputs(Mood):
    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return sorted(super().outputs(module, states, rows))


class RankedOutputs(Mood):
    """How each row compares with the others of its batch."""

    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return module(states.mean).detach().softmax(0).tolist()


class ReversedOutputs(Mood):
    """Right alone and in the order of the records, wrong in reverse."""

    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        found = super().outputs(module, states, rows)
        return found[::-1] if rows[0].record > rows[-1].record else found


class GraphOutputs(Mood):
    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return list(module(states.mean))


class RandomOutputs(Mood):
    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        import torch

        return torch.rand(len(rows), len(self.labels)).tolist()


class LayoutOutputs(Mood):
    def predict(self, model: Any, module: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        found = super().predict(model, module, rows)
        return [[0.0] * len(self.labels)] * len(rows) if model.layout == "padded" else found


class NoOutputs(Mood):
    outputs = ptkit.TaskHead.outputs


class DecodeChanges(Mood):
    def decode(self, record: Any, rows: Any, outputs: Sequence[Any], tokenizer: Any) -> Any:
        outputs[0].sort()
        return super().decode(record, rows, outputs, tokenizer)


class DecodeCounts(Mood):
    calls = Counter[str]()

    def decode(self, record: Any, rows: Any, outputs: Sequence[Any], tokenizer: Any) -> Any:
        self.calls["decode"] += 1
        return self.calls["decode"]


class ConstantsRaise(Mood):
    def constants(self, records: Sequence[ptkit.Record], *, seed: int) -> Any:
        return {[]: 1}  # type: ignore[dict-item]


class HeadName(Mood):
    name = "Mood"


class NoRecordType(Mood):
    accepts = dict  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (ChangesRecord, "moods.txt:1 changed the fields of the record"),
        (KeepsState, "when it comes after others; keep no state between rows"),
        (ChangesItsMind, "gives other rows the second time"),
        (NoRows, r"must return a list of ptkit.Row, one or more, got \[\]"),
        (NoTokens, "gave a row without tokens"),
        (ListTokens, r"tokens must be a tuple of plain ints of 32 bits, got \[1, 2\]"),
        (UnknownToken, "token 64 is outside the vocabulary of 64 ids"),
        (HalfTypes, "1 token types for 2 tokens"),
        (CutText, "cut must count tokens, got -1"),
        (ManyCutTargets, "cut_targets counts those of the 1 tokens in cut .*, got 2"),
        (ListPlaces, r"places must be a tuple of plain ints of 32 bits, got \[0\]"),
        (FloatPlaces, r"places must be a tuple of plain ints of 32 bits, got \(0.5,\)"),
        (OneLabelOutside, r"label 3 is outside the 3 labels \('bad', 'good', 'so-so'\)"),
        (LabelOutside, r"label 3 is outside the 3 labels \('bad', 'good', 'so-so'\)"),
        (EncodeRaises, "encode.. of the record from moods.txt:1 raised AttributeError"),
        (Unsorted, "collect_labels.. gave .*, then .*; sort a set"),
        (TwiceTheLabel, "must give distinct strings"),
        (LosesLabels, r"was made with the labels .* but has \(\)"),
        (RandomBuild, "build.. gives other weights the second time"),
        (FrozenBuild, "a module in which nothing trains"),
        (BuildsList, "must return a torch module or None, got list"),
        (MeanLoss, r"gave sums of shape \[\] for 4 groups; no head adds up or averages by itself"),
        (SpreadMeanLoss, "averages by itself"),
        (DividedLoss, "averages by itself: .* let the engine divide"),
        (ReadsNeighbour, "packed beside other rows: it reads beyond its own tokens"),
        (CountsPadding, "or counts padding; use .* the mask of padded"),
        (SortedLoss, "not in the order of the rows"),
        (MergesRepeats, "changes when rows come twice .* each row whose part is 0"),
        (InPlaceLoss, r"loss\(\) changed the hidden states in place"),
        (InPlaceOutputs, r"outputs\(\) changed the hidden states in place"),
        (SortsRows, "changed its list of rows"),
        (DropoutLoss, "other values the second time; .* no dropout in the module"),
        (Detached, "the prefix of layer 0 gets no gradient; .* don't detach the hidden states"),
        (NoGraph, "gave sums without a graph"),
        (UnusedBias, "bias of the module gets no gradient"),
        (WeightsTrain, "gave weights that depend on the model"),
        (NegativeWeights, "gave negative weights"),
        (NoWeights, "gave no record any weight"),
        (NanLoss, "gave sums that are not finite"),
        (OneTensor, "loss.. gave a Tensor; return ptkit.Loss"),
        (SeesLayout, "the loss changes when the model pads rows instead of packing them"),
        (ShortOutputs, "must give one output a row, got 3 for 4"),
        (SortedOutputs, "gives its outputs in another order than its rows"),
        (RankedOutputs, "beside other rows, and .* for the row alone"),
        (ReversedOutputs, "other outputs when its rows come in another order"),
        (GraphOutputs, r"tensors that require grad.* detach\(\) them"),
        (RandomOutputs, "predict.. gives other outputs the second time"),
        (LayoutOutputs, "other outputs when the model pads rows instead of packing them"),
        (NoOutputs, "raised NotImplementedError: NoOutputs has neither outputs.. nor its own"),
        (DecodeChanges, "changed the record or its outputs"),
        (DecodeCounts, "decode.. of the record from moods.txt:1 gives 1, then 2"),
        (ConstantsRaise, "constants.. raised TypeError: unhashable"),
        (HeadName, "must be kebab-case such as 'my-name', got 'Mood'"),
        (NoRecordType, "accepts must be a subclass of ptkit.Record"),
    ],
)
def test_faults_of_heads(head: type[ptkit.TaskHead], words: str) -> None:
    with pytest.raises(AssertionError, match=words) as raised:
        check_task_head(head(head.Settings()), RECORDS)
    assert str(raised.value).startswith(f"task head '{head.name}': ")


def test_records_of_another_type() -> None:
    record = ptkit.GenerationRecord(origin=ptkit.Origin("d.json", 1), prompt="hello")
    with pytest.raises(AssertionError, match="accepts MoodRecord, but was given a GenerationR"):
        check_task_head(Mood(Mood.Settings()), [record])


class Reversed(Mood):
    def encode_batch(self, records: Any, tokenizer: Any) -> Any:
        return super().encode_batch(records, tokenizer)[::-1]


def test_a_batch_with_other_rows() -> None:
    with pytest.raises(AssertionError, match="encode_batch\\(\\) must give the rows of encode"):
        check_task_head(Reversed(Reversed.Settings()), RECORDS)


def test_no_records() -> None:
    with pytest.raises(AssertionError, match="needs at least one record"):
        check_task_head(Mood(Mood.Settings()), [])


# ------------------------------------------------------------------------------------ LM heads


class Echo(ptkit.TaskHead):
    """Trains on the record's own text through the LM head."""

    name = "echo"
    accepts = MoodRecord
    predicts = "text"

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        assert isinstance(record, MoodRecord)
        text = (*tokenizer.encode(record.text), tokenizer.eos_id)
        return [ptkit.Row((*tokenizer.start_ids, *text), (ptkit.IGNORE, *text))]

    def loss(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> ptkit.Loss:
        import torch

        losses, owners = states.token_loss([row.labels for row in rows])
        zeros = torch.zeros(len(rows))
        counts = zeros.index_add(0, owners, torch.ones_like(losses))
        return ptkit.Loss(zeros.index_add(0, owners, losses), counts)

    def outputs(self, module: Any, states: Any, rows: Sequence[ptkit.EncodedRow]) -> Any:
        return [0] * len(rows)

    def decode(self, record: Any, rows: Any, outputs: Sequence[Any], tokenizer: Any) -> Any:
        return ""

    def reference(self, record: ptkit.Record) -> Any:
        assert isinstance(record, MoodRecord)
        return record.text


def test_a_head_without_a_module_passes() -> None:
    check_task_head(Echo(Echo.Settings()), RECORDS)


class LabelOutsideVocabulary(Echo):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        (row,) = super().encode(record, tokenizer)
        return [dataclasses.replace(row, labels=(*row.labels[:-1], tokenizer.vocab_size))]


class ShiftedLabels(Echo):
    """The shift of causal models, which token_loss() does a second time."""

    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        (row,) = super().encode(record, tokenizer)
        return [dataclasses.replace(row, labels=(*row.labels[1:], ptkit.IGNORE))]


class ShortLabels(Echo):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        (row,) = super().encode(record, tokenizer)
        return [dataclasses.replace(row, labels=row.labels[1:])]


class LabelsFirst(Echo):
    def encode(self, record: ptkit.Record, tokenizer: ptkit.Tokenizer) -> list[ptkit.Row]:
        (row,) = super().encode(record, tokenizer)
        return [dataclasses.replace(row, labels=row.tokens)]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (LabelOutsideVocabulary, "label 64 is outside the vocabulary of 64 ids"),
        (ShiftedLabels, "don't line up with the tokens, they are one place early"),
        (ShortLabels, "don't line up with the tokens, 7 labels for 8 tokens"),
        (LabelsFirst, "loss.. raised ValueError: row 0: nothing comes before its first token"),
    ],
)
def test_faults_of_heads_without_a_module(head: type[ptkit.TaskHead], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_task_head(head(head.Settings()), RECORDS)


# ------------------------------------------------------------------------------------ backbones


class ForgetsPositions(TinyBackbone):
    """Counts positions itself, so that packed rows go on where the row before ended."""

    def load(self, device: str, dtype: str) -> ptkit.LoadedBackbone:
        loaded = super().load(device, dtype)
        forward = loaded.body.forward
        loaded.body.forward = lambda position_ids, **rest: forward(**rest)
        return loaded


class DropsPrefix(TinyBackbone):
    """The second layer has other prefix keys when activations are computed again."""

    def load(self, device: str, dtype: str) -> ptkit.LoadedBackbone:
        loaded = super().load(device, dtype)
        attention: Any = loaded.attentions[1]
        forward = attention.forward

        def without_prefix(*args: Any, **rest: Any) -> Any:
            if torch._C._current_graph_task_id() != -1:  # inside a backward pass
                vars(attention)["ptkit_prefix_key"] = attention.ptkit_prefix_key * 0
            return forward(*args, **rest)

        attention.forward = without_prefix
        return loaded


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (ForgetsPositions, "packed beside other rows"),
        (DropsPrefix, "the prefix of layer 0 changes when gradient checkpointing is on"),
    ],
)
def test_a_backbone_that_packing_or_checkpointing_changes(
    backbone: type[TinyBackbone], words: str
) -> None:
    with pytest.raises(AssertionError, match=words):
        check_task_head(Mood(Mood.Settings()), RECORDS, backbone=backbone())
