"""Heads for labelled texts: rows and cuts by hand, losses beside torch's, errors, whole runs."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ptkit_tasks.classification import MultiLabelClassification, SequenceClassification
from ptkit_tasks.fitting import first_first, fitting, longest_first
from ptkit_tasks.linear import PooledSettings, dropped, pooled, pooling_of
from ptkit_tasks.regression import SequenceRegression
from torch import Tensor, nn
from torch.nn import functional as F

import ptkit
from ptkit.testing import TinyBackbone, WordTokenizer, check_task_head

IGNORE = ptkit.IGNORE
Label = str | tuple[str, ...] | float | None
RunToy = Callable[..., ptkit.RunResult]

WORDS = WordTokenizer(["a", "b", "c", "d", "e"])  # ids 3 4 5 6 7, behind pad, eos and start


def record(text: str, label: Label = None, second: str | None = None, line: int = 1) -> Any:
    return ptkit.LabelledRecord(
        origin=ptkit.Origin("a.jsonl", line), text=text, second=second, label=label
    )


def single(trained: Sequence[str] = (), **settings: Any) -> SequenceClassification:
    return SequenceClassification(
        SequenceClassification.Settings(**{"hidden": "none", **settings}), trained
    )


def multi(trained: Sequence[str] = (), **settings: Any) -> MultiLabelClassification:
    return MultiLabelClassification(
        MultiLabelClassification.Settings(**{"hidden": "none", **settings}), trained
    )


def regression(**settings: Any) -> SequenceRegression:
    return SequenceRegression(SequenceRegression.Settings(**{"hidden": "none", **settings}))


def info(hidden_size: int = 8, *, causal: bool = False, rows: Any = (), seed: int = 0) -> Any:
    return ptkit.HeadInfo(hidden_size, 64, causal, seed, rows)


class Marking(WordTokenizer):
    """Two texts as BERT takes them, with start and eos for its marks."""

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> ptkit.Joined:
        tokens = (2, *first, 1, *(() if second is None else (*second, 1)))
        types = tuple(int(index > len(first) + 1) for index in range(len(tokens)))
        return ptkit.Joined(tokens, types, 1, len(first) + 2)


# ------------------------------------------------------------------------------------ rows


def test_a_row_is_the_text_and_the_index_of_its_label() -> None:
    (row,) = single(["no", "yes"]).encode(record("a b", "yes"), WORDS)
    assert row == ptkit.Row((2, 3, 4), (1,))


def test_two_texts_are_joined_as_the_backbone_takes_them() -> None:
    (row,) = single(["no", "yes"]).encode(record("a b", "no", "c"), Marking(["a", "b", "c"]))
    assert row == ptkit.Row((2, 3, 4, 1, 5, 1), (0,), (0, 0, 0, 0, 1, 1))


def test_an_unlabelled_record_is_a_row_to_predict_from() -> None:
    assert single(["n", "y"]).encode(record("a"), WORDS) == [ptkit.Row((2, 3), (IGNORE,))]
    assert multi(["n", "y"]).encode(record("a"), WORDS) == [ptkit.Row((2, 3), (IGNORE,))]
    assert regression().encode(record("a"), WORDS) == [ptkit.Row((2, 3))]


def test_a_row_of_names_has_their_indices_and_may_have_none() -> None:
    head = multi(["x", "y", "z"])
    assert head.encode(record("a", ("z", "x")), WORDS)[0].labels == (0, 2)
    assert head.encode(record("a", ()), WORDS)[0].labels == ()


@pytest.mark.parametrize("number", [0.0, -1.5, 3, 0.1, 1e38])
def test_a_number_survives_as_the_bits_of_a_float32(number: float) -> None:
    (row,) = regression().encode(record("a", number), WORDS)
    (bits,) = row.labels
    found = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert torch.equal(found, torch.tensor([number], dtype=torch.float32))


def test_labels_in_words() -> None:
    assert [single(["n", "y"]).label_text(x) for x in (1, IGNORE)] == ["y", "unknown"]
    (row,) = regression().encode(record("a", 2.5), WORDS)
    assert regression().label_text(row.labels[0]) == "2.5"


def test_a_long_text_is_cut_at_its_end() -> None:
    (row,) = single(["n", "y"], max_tokens=4).encode(record("a b c d e", "n"), WORDS)
    assert row == ptkit.Row((2, 3, 4, 5), (0,), cut=2)


def test_the_longer_text_of_a_pair_is_cut_first() -> None:
    """Nine words and three marks in ten tokens: two of the longer text go."""
    (row,) = single(["n", "y"], max_tokens=10).encode(
        record("a b c d e a", "n", "c d e"), Marking(["a", "b", "c", "d", "e"])
    )
    assert row.tokens == (2, 3, 4, 5, 6, 1, 5, 6, 7, 1)
    assert (row.token_types, row.cut) == ((0,) * 6 + (1,) * 4, 2)


def one_by_one(first: int, second: int, room: int) -> tuple[int, int]:
    """transformers' longest_first as it is written: a token at a time."""
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


def test_cuts_are_those_of_longest_first() -> None:
    for first in range(9):
        for second in range(9):
            for room in range(1, first + second):
                expected = one_by_one(first, second, room)
                assert longest_first(first, second, room) == expected, (first, second, room)
    assert first_first(10, 2, 6) == (4, 2)
    assert first_first(10, 8, 6) == (0, 6)


def test_cut_rows_fill_the_limit_and_count_what_went() -> None:
    draw = random.Random(0)
    for tokenizer in (WORDS, Marking(["a", "b"])):
        for _ in range(200):
            first = [3] * draw.randrange(12)
            second = draw.choice([None, [4] * draw.randrange(12)])
            limit = draw.randrange(4, 20)
            whole = len(tokenizer.join(first, second).tokens)
            for cut_first in (False, True):
                joined, cut = fitting(tokenizer, first, second, limit, cut_first=cut_first)
                assert len(joined.tokens) == min(whole, limit)
                assert cut == whole - len(joined.tokens)
                assert len(joined.token_types) in (0, len(joined.tokens))
                kept = [joined.tokens.count(token) for token in (3, 4)]
                assert kept[0] + kept[1] + cut == len(first) + len(second or ())


def test_a_limit_that_the_specials_fill_is_refused() -> None:
    with pytest.raises(ptkit.RecipeError) as error:
        single(["n", "y"], max_tokens=3).encode(record("a b", "n", "c"), Marking(["a", "b", "c"]))
    assert str(error.value) == (
        "task.max_tokens = 3 leaves no room for text: what stands around it has 3 tokens; raise it"
    )


# ------------------------------------------------------------------------------------ labels


def test_labels_come_from_the_data_sorted_or_from_the_recipe_as_they_are() -> None:
    records = [record("a", "pos"), record("b", "neg"), record("c", "pos"), record("d")]
    assert tuple(single().collect_labels(records)) == ("neg", "pos")
    assert tuple(single(labels=["pos", "neg", "so"]).collect_labels(records)) == (
        "pos",
        "neg",
        "so",
    )
    several = [record("a", ("y", "x")), record("b", ()), record("c", ("z",))]
    assert tuple(multi().collect_labels(several)) == ("x", "y", "z")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: single(["neg", "pos"]).encode(record("a", "poss", line=7), WORDS),
            "a.jsonl:7: label 'poss' is not among the 2 labels ('neg', 'pos') that the adapter "
            "was trained with (did you mean 'pos'?); correct it, or train with task.labels that "
            "have it",
        ),
        (
            lambda: multi(["x"]).encode(record("a", ("x", "quite"), line=8), WORDS),
            "a.jsonl:8: label 'quite' is not among the 1 label ('x') that the adapter was trained "
            "with; correct it, or train with task.labels that have it",
        ),
        (
            lambda: single(labels=["neg", "pos"]).collect_labels([record("a", "ne", line=3)]),
            "a.jsonl:3: label 'ne' is not among the 2 labels ('neg', 'pos') of task.labels "
            "(did you mean 'neg'?); add it there, or correct it",
        ),
        (
            lambda: single().collect_labels([record("a", "pos", line=2), record("b", "pos")]),
            "a.jsonl:2: this and every other training row has the same label 'pos', so there is "
            "nothing to learn; see which column dataset.label_column names, and whether "
            "dataset.limit takes the beginning of a sorted file",
        ),
        (
            lambda: multi().collect_labels([record("a", ("x", "y"), line=2)]),
            "a.jsonl:2: this and every other training row has the same labels 'x', 'y', so there "
            "is nothing to learn; see which column dataset.label_column names, and whether "
            "dataset.limit takes the beginning of a sorted file",
        ),
        (
            lambda: multi().collect_labels([record("a", ()), record("b", ())]),
            "a.jsonl:1: this and every other training row has the same labels (none), so there is "
            "nothing to learn; see which column dataset.label_column names, and whether "
            "dataset.limit takes the beginning of a sorted file",
        ),
        (
            lambda: single().collect_labels([record("a"), record("b")]),
            "a.jsonl:1: this and every other training row has no label, so there is nothing to "
            "learn; see which column dataset.label_column names, and whether dataset.limit takes "
            "the beginning of a sorted file",
        ),
        (
            lambda: single(["n", "y"]).encode(record("a", 3.5, line=4), WORDS),
            "a.jsonl:4: its label is the number 3.5, but task 'sequence-classification' takes one "
            "name; set dataset.label_type = 'name', or task.kind to what fits the labels",
        ),
        (
            lambda: single(["n", "y"]).reference(record("a", ("n",))),
            "a.jsonl:1: its label is the names ('n',), but task 'sequence-classification' takes "
            "one name; set dataset.label_type = 'name', or task.kind to what fits the labels",
        ),
        (
            lambda: multi(["n"]).encode(record("a", "n"), WORDS),
            "a.jsonl:1: its label is the name 'n', but task 'multi-label-classification' takes a "
            "list of names; set dataset.label_type = 'names', or task.kind to what fits the labels",
        ),
        (
            lambda: regression().encode(record("a", "3.5"), WORDS),
            "a.jsonl:1: its label is the name '3.5', but task 'sequence-regression' takes a "
            "number; set dataset.label_type = 'number', or task.kind to what fits the labels",
        ),
        (
            lambda: regression().encode(record("a", math.nan, line=9), WORDS),
            "a.jsonl:9: label nan is not a number that can be learnt; give a finite one below "
            "3e38, or leave the row out",
        ),
        (
            lambda: regression().encode(record("a", -math.inf), WORDS),
            "a.jsonl:1: label -inf is not a number that can be learnt; give a finite one below "
            "3e38, or leave the row out",
        ),
        (
            lambda: regression().encode(record("a", 1e39), WORDS),
            "a.jsonl:1: label 1e+39 is not a number that can be learnt; give a finite one below "
            "3e38, or leave the row out",
        ),
    ],
)
def test_labels_that_do_not_fit(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ptkit.DataError) as error:
        call()
    assert error.value.lines == (message,)


def test_a_message_lists_twenty_labels_at_most() -> None:
    with pytest.raises(ptkit.DataError, match=r"the 30 labels \('0', .*, '19' and 10 more\) that"):
        single([str(i) for i in range(30)]).encode(record("a", "x"), WORDS)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            single(class_weights={"poss": 2.0}),
            "task.class_weights: 'poss' is not among the 2 labels ('neg', 'pos') "
            "(did you mean 'pos'?); remove or correct it",
        ),
        (
            multi(positive_weights={"none": 2.0}),
            "task.positive_weights: 'none' is not among the 2 labels ('neg', 'pos'); "
            "remove or correct it",
        ),
    ],
)
def test_weights_of_no_label_are_refused(head: ptkit.TaskHead, message: str) -> None:
    kinds: list[Label] = [("pos",), ("neg",)] if isinstance(head, MultiLabelClassification) else []
    kinds = kinds or ["pos", "neg"]
    with pytest.raises(ptkit.RecipeError) as error:
        head.collect_labels([record("a", kind) for kind in kinds])
    assert error.value.lines == (message,)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"labels": ["a", "b", "a"]}, "task.labels: has 'a' more than once; name every label once"),
        ({"labels": []}, "task.labels: "),
        ({"class_weights": {"a": 0}}, "task.class_weights.a: "),
        ({"class_weights": "even"}, "task.class_weights: "),
        ({"dropout": 1.0}, "task.dropout: "),
        ({"label_smoothing": 1.0}, "task.label_smoothing: "),
        ({"max_tokens": 0}, "task.max_tokens: "),
    ],
)
def test_settings_are_checked(
    run_toy: RunToy, task: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ptkit.RecipeError) as error:
        run_toy(SequenceClassification, [record("a", "x")], [record("a", "x")], task=task)
    assert len(error.value.lines) == 1
    assert message in error.value.lines[0]


# ------------------------------------------------------------------------------------ pooling


def states(hidden: Tensor, lengths: Sequence[int], *, causal: bool = False) -> ptkit.States:
    return ptkit.States(hidden, lengths, None, causal=causal)


def test_pooling_takes_one_state_a_row() -> None:
    hidden = torch.arange(10.0).view(5, 2)  # rows of two and three tokens
    found = {
        pooling: pooled(states(hidden, (2, 3)), pooling).tolist()
        for pooling in ("first", "mean", "last")
    }
    assert found == {
        "first": [[0, 1], [4, 5]],
        "mean": [[1, 2], [6, 7]],
        "last": [[2, 3], [8, 9]],
    }


def test_auto_is_the_first_token_of_encoders_and_the_last_of_causal_models() -> None:
    assert pooling_of("auto", causal=False) == "first"
    assert pooling_of("auto", causal=True) == "last"
    assert pooling_of("mean", causal=True) == "mean"
    hidden = torch.arange(10.0).view(5, 2)
    assert pooled(states(hidden, (2, 3)), "auto").tolist() == [[0, 1], [4, 5]]
    assert pooled(states(hidden, (2, 3), causal=True), "auto").tolist() == [[2, 3], [8, 9]]


def test_the_first_token_of_a_causal_model_is_refused() -> None:
    with pytest.raises(ptkit.RecipeError) as error:
        single(["n", "y"], pooling="first").build(info(causal=True))
    assert str(error.value) == (
        'task.pooling = "first" takes the first token, which on a causal model has seen nothing '
        'of the text; use "last" or "mean"'
    )
    single(["n", "y"], pooling="first").build(info(causal=False))


# ------------------------------------------------------------------------------------ modules


def test_the_module_has_a_score_a_label_and_a_dense_layer_if_asked() -> None:
    plain = single(["n", "y", "z"]).build(info())
    assert {name: tuple(p.shape) for name, p in plain.state_dict().items()} == {
        "output.weight": (3, 8),
        "output.bias": (3,),
    }
    dense = single(["n", "y", "z"], hidden="tanh").build(info())
    assert {name: tuple(p.shape) for name, p in dense.state_dict().items()} == {
        "dense.weight": (8, 8),
        "dense.bias": (8,),
        "output.weight": (3, 8),
        "output.bias": (3,),
    }
    other = single(["n", "y", "z"]).build(info(seed=1))
    assert not torch.equal(
        plain.get_parameter("output.weight"), other.get_parameter("output.weight")
    )


def by_hand(module: nn.Module, hidden: Tensor) -> Tensor:
    """The scores of pooled states, without dropout."""
    weights = module.state_dict()
    if "dense.weight" in weights:
        hidden = torch.tanh(hidden @ weights["dense.weight"].T + weights["dense.bias"])
    return hidden @ weights["output.weight"].T + weights["output.bias"]


@pytest.mark.parametrize("hidden", ["none", "tanh"])
def test_scores_by_hand(hidden: str) -> None:
    head = single(["n", "y", "z"], hidden=hidden)
    module = head.build(info()).double().eval()
    values = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = encoded([(0,), (1,)])
    found = head.outputs(module, states(values, (2, 3)), rows)
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), by_hand(module, values[[0, 2]])
    )


def test_scores_are_float32_on_states_of_fewer_bits() -> None:
    head = single(["n", "y"])
    module = head.build(info()).eval()
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = head.outputs(module, states(values, (2, 2)), encoded([(0,), (1,)]))
    expected = by_hand(module, values[[0, 2]].float())
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-6)
    assert (
        head.loss(module, states(values, (2, 2)), encoded([(0,), (1,)])).sums.dtype is torch.float32
    )


# ------------------------------------------------------------------------------------ dropout


def encoded(labels: Sequence[tuple[int, ...]]) -> list[ptkit.EncodedRow]:
    return [ptkit.EncodedRow(ptkit.Row((2, 3), own), i) for i, own in enumerate(labels)]


def test_dropout_leaves_out_the_share_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    rows = encoded([()] * 200)
    found = dropped(torch.ones(200, 50), rows, 0.25)
    assert found.unique().tolist() == pytest.approx([0, 4 / 3])
    # 10,000 draws: a standard deviation is 0.4 %
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(dropped(torch.ones(200, 50), rows, 0.0), torch.ones(200, 50))


def test_dropout_follows_the_step_and_the_row_and_nothing_else() -> None:
    rows, ones = encoded([()] * 6), torch.ones(6, 40)
    torch.manual_seed(5)
    whole = dropped(ones, rows, 0.5)
    torch.rand(3)  # other draws in between change nothing
    split = [dropped(ones[:2], rows[:2], 0.5), dropped(ones[2:], rows[2:], 0.5)]
    assert torch.equal(torch.cat(split), whole)
    assert torch.equal(dropped(ones, rows[::-1], 0.5).flip(0), whole)
    assert not torch.equal(dropped(ones, rows, 0.5, place=1), whole)
    assert not torch.equal(whole[0], whole[1])
    torch.manual_seed(6)
    assert not torch.equal(dropped(ones, rows, 0.5), whole)


def test_dropout_is_for_training_only() -> None:
    head = single(["n", "y"], dropout=0.5)
    module = head.build(info())
    values = torch.ones(2, 8)
    rows = encoded([(0,), (1,)])
    training = head.outputs(module.train(), states(values, (1, 1)), rows)
    answering = head.outputs(module.eval(), states(values, (1, 1)), rows)
    assert training != answering
    assert answering[0] == answering[1]


# ------------------------------------------------------------------------------------ losses

LABELS = ("a", "b", "c")


def twin(head: ptkit.TaskHead, labels: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
    """Module, hidden states and rows in float64, and the scores that torch's losses take."""
    generator = torch.Generator().manual_seed(1)
    module = head.build(info(rows=encoded(labels)))
    assert module is not None
    module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    lengths = [1 + i % 3 for i in range(len(labels))]
    hidden = torch.randn(sum(lengths), 8, dtype=torch.float64, generator=generator)
    hidden.requires_grad_()
    first = [sum(lengths[:i]) for i in range(len(labels))]
    weights = dict(module.named_parameters())
    logits = hidden[first] @ weights["output.weight"].T + weights["output.bias"]
    return module, hidden, states(hidden, lengths), encoded(labels), logits


def quotient(loss: ptkit.Loss) -> Tensor:
    """What the engine makes of a step's loss."""
    assert not loss.weights.requires_grad
    return loss.sums.sum() / loss.weights.sum()


def assert_same_gradients(
    found: Tensor, expected: Tensor, module: nn.Module, hidden: Tensor
) -> None:
    torch.testing.assert_close(found, expected)
    wanted = [hidden, *module.parameters()]
    for left, right in zip(
        torch.autograd.grad(found, wanted, retain_graph=True),
        torch.autograd.grad(expected, wanted),
        strict=True,
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("weights", "values"),
    [
        ("none", [1.0, 1.0, 1.0]),
        ({"a": 3.0, "c": 0.5}, [3.0, 1.0, 0.5]),
        # six rows, of which 3, 2 and 1 have the labels
        ("balanced", [6 / 9, 6 / 6, 6 / 3]),
    ],
)
def test_cross_entropy_is_torchs(weights: Any, values: list[float], smoothing: float) -> None:
    head = single(LABELS, class_weights=weights, label_smoothing=smoothing, dropout=0.0)
    labels = [(0,), (1,), (0,), (2,), (0,), (1,)]
    module, hidden, seen, rows, logits = twin(head, labels)
    loss = head.loss(module, seen, rows)
    weight = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(loss.weights, weight[[0, 1, 0, 2, 0, 1]], atol=1e-7, rtol=1e-7)
    reference = nn.CrossEntropyLoss(
        weight=module.get_buffer("label_weights"), label_smoothing=smoothing
    )
    expected = reference(logits, torch.tensor([x for (x,) in labels]))
    assert_same_gradients(quotient(loss), expected, module, hidden)


def test_rows_without_a_label_have_no_loss() -> None:
    head = single(LABELS, label_smoothing=0.1, dropout=0.0)
    module, _, seen, rows, _ = twin(head, [(0,), (IGNORE,), (2,)])
    loss = head.loss(module, seen, rows)
    assert (loss.sums[1], loss.weights.tolist()) == (0.0, [1.0, 0.0, 1.0])
    several = multi(LABELS, dropout=0.0)
    module, _, seen, rows, _ = twin(several, [(0,), (IGNORE,), ()])
    loss = several.loss(module, seen, rows)
    assert (loss.sums[1], loss.weights.tolist()) == (0.0, [1.0, 0.0, 1.0])
    assert loss.sums[2] > 0
    number = regression(dropout=0.0)
    labels = [number.encode(record("a", x), WORDS)[0].labels for x in (1.0, None)]
    module, _, seen, rows, _ = twin(number, labels)
    loss = number.loss(module, seen, rows)
    assert (loss.sums[1], loss.weights.tolist()) == (0.0, [1.0, 0.0])


def test_balanced_weights_are_one_where_the_data_say_nothing() -> None:
    head = single(LABELS, class_weights="balanced")
    module = head.build(info(rows=encoded([(0,), (0,), (0,), (1,), (IGNORE,)])))
    weights = module.get_buffer("label_weights")
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 4 / 2, 1.0]))
    assert head.build(info()).get_buffer("label_weights").tolist() == [1.0, 1.0, 1.0]
    several = multi(LABELS, positive_weights="balanced")
    labels = [(0,), (0, 1), (0,), (0,), (IGNORE,)]
    weights = several.build(info(rows=encoded(labels))).get_buffer("label_weights")
    assert weights.tolist() == [1.0, 3.0, 1.0]
    assert "label_weights" not in module.state_dict()


def test_balanced_weights_are_scikit_learns() -> None:
    utils = pytest.importorskip("sklearn.utils.class_weight")
    labels = [0, 1, 1, 2, 1, 2, 2, 2, 0, 1, 1]
    module = single(LABELS, class_weights="balanced").build(
        info(rows=encoded([(x,) for x in labels]))
    )
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    torch.testing.assert_close(
        module.get_buffer("label_weights").double(), torch.tensor(expected), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("weights", ["none", {"a": 3.0, "c": 0.5}, "balanced"])
def test_binary_cross_entropy_is_torchs(weights: Any) -> None:
    head = multi(LABELS, positive_weights=weights, dropout=0.0)
    labels = [(0,), (0, 2), (), (1, 2), (0, 1, 2)]
    module, hidden, seen, rows, logits = twin(head, labels)
    targets = torch.tensor(
        [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.float64
    )
    reference = nn.BCEWithLogitsLoss(pos_weight=module.get_buffer("label_weights"))
    loss = head.loss(module, seen, rows)
    assert loss.weights.tolist() == [1.0] * 5
    assert_same_gradients(quotient(loss), reference(logits, targets), module, hidden)


def test_the_squared_error_is_torchs() -> None:
    head = regression(dropout=0.0)
    numbers = [0.5, -2.0, 3.25, 0.0]  # exact in float32
    labels = [head.encode(record("a", number), WORDS)[0].labels for number in numbers]
    module, hidden, seen, rows, logits = twin(head, labels)
    expected = F.mse_loss(logits[:, 0], torch.tensor(numbers, dtype=torch.float64))
    assert_same_gradients(quotient(head.loss(module, seen, rows)), expected, module, hidden)


def test_a_regression_begins_at_the_mean_of_the_training_labels() -> None:
    head = regression()
    labels = [head.encode(record("a", x), WORDS)[0].labels for x in (1.0, 4.0, None, 4.0)]
    assert head.build(info(rows=encoded(labels))).get_parameter("output.bias").tolist() == [3.0]
    assert head.build(info()).get_parameter("output.bias").tolist() == [0.0]


# ------------------------------------------------------------------------------------ answers


def test_decoding_by_hand() -> None:
    row = [ptkit.Row((2,))]
    assert single(LABELS).decode(record("a"), row, [[0.1, 0.3, -5.0]], WORDS) == "b"
    assert regression().decode(record("a"), row, [[2.5]], WORDS) == 2.5
    logit = math.log(0.7 / 0.3)
    outputs = [[logit, logit - 1e-3, logit + 1e-3]]
    several = multi(LABELS, threshold=0.7)
    assert several.decode(record("a"), row, outputs, WORDS) == ("a", "c")
    assert multi(LABELS).decode(record("a"), row, [[-1.0, 0.0, 1e-6]], WORDS) == ("b", "c")


def test_references_and_constants() -> None:
    assert single(LABELS).reference(record("a", "b")) == "b"
    assert multi(["b", "a"]).reference(record("x", ("a", "b", "a"))) == ("b", "a")
    assert multi(["b", "a"]).reference(record("x")) is None
    assert regression().reference(record("a", 2)) == 2.0
    numbers = [record("a", x) for x in (1.0, 1.0, 2.0, 8.0, None)]
    assert regression().constants(numbers, seed=0) == [3.0, 1.5]
    assert regression().constants([record("a")], seed=0) == []
    names = [record("a", x) for x in ("b", "a", "b")]
    assert single(LABELS).constants(names, seed=0) == ["b"]
    sets = [record("a", x) for x in (("a", "b"), (), ("b", "a"), ("c",))]
    assert multi(LABELS).constants(sets, seed=0) == [("a", "b")]


# ------------------------------------------------------------------------------------ contract

TEXTS = ["good", "so very good", "bad", "a bad one", "good enough", "really quite bad , it is"]


def labelled(kind: str) -> list[Any]:
    """Six records, every second with two texts."""
    made = []
    for line, text in enumerate(TEXTS, start=1):
        good = "good" in text
        label: Label = "pos" if good else "neg"
        if kind == "names":
            label = (("short",) if line % 2 else ()) + ((str(label),) if line > 1 else ())
        elif kind == "number":
            label = line / 2
        made.append(record(text, label, "what else" if line % 2 else None, line))
    return made


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (single(class_weights={"pos": 2.5}, label_smoothing=0.1), "name"),
        (single(hidden="tanh", pooling="mean", max_tokens=5), "name"),
        (multi(positive_weights={"pos": 2.5}), "names"),
        (multi(hidden="tanh", dropout=0.0, pooling="last"), "names"),
        (regression(), "number"),
        (regression(hidden="tanh", pooling="mean", max_tokens=5), "number"),
    ],
)
def test_they_keep_the_contract(head: ptkit.TaskHead, kind: str, causal: bool) -> None:
    unanswered = [record("what", None), record("is it", None, "or not")]
    backbone = TinyBackbone(TinyBackbone.Settings(causal=causal))
    check_task_head(head, labelled(kind), unanswered=unanswered, backbone=backbone)


# ------------------------------------------------------------------------------------ whole runs

GOOD, BAD = ["fine", "great"], ["poor", "weak"]
FILLER = ["the", "film", "was"]
VOCABULARY = [*GOOD, *BAD, *FILLER]


def reviews(count: int, seed: int) -> list[tuple[str, int]]:
    """Texts with one telling word somewhere, and whether it is a good one."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        words = draw.choices(FILLER, k=draw.randrange(1, 3))
        words.insert(draw.randrange(len(words) + 1), draw.choice([BAD, GOOD][index % 2]))
        made.append((" ".join(words), index % 2))
    return made


@pytest.mark.parametrize("causal", [True, False])
def test_a_run_learns_a_label(run_toy: RunToy, causal: bool) -> None:
    train, test = (
        [record(text, ["neg", "pos"][good], line=i) for i, (text, good) in enumerate(made, 1)]
        for made in (reviews(128, 0), reviews(40, 1))
    )
    result = run_toy(SequenceClassification, train, test, causal=causal, words=VOCABULARY)
    assert result.scores["after"]["equal"] >= 97.5
    assert result.scores["constant"]["equal"] == 50.0
    manifest = json.loads((result.adapter / "adapter.json").read_text())
    assert manifest["task"] == {"kind": "sequence-classification", "labels": ["neg", "pos"]}


def test_an_adapter_knows_its_labels(
    run_toy: RunToy, toy_registry: Callable[..., Any], tmp_path: Path
) -> None:
    """Loaded again it answers as the run did; a row with another label is refused before that."""
    rows = [
        record(word, label, line=i)
        for i, (word, label) in enumerate([("fine", "z"), ("poor", "y")])
    ]
    task = {"labels": ["z", "y", "x"], "class_weights": "balanced"}
    result = run_toy(SequenceClassification, rows, rows, task=task, training={"max_steps": 2})
    lines = (result.folder / "predictions.jsonl").read_text().splitlines()
    registry = toy_registry(SequenceClassification, {"train": rows, "test": rows})
    tuned = ptkit.load("tiny", result.adapter, registry=registry, device="cpu")
    assert tuned.head is not None
    assert tuned.head.labels == ("z", "y", "x")
    assert tuned.predict(rows) == [json.loads(line)["after"] for line in lines]
    assert set(tuned.predict([record("fine"), record("the")])) <= {"z", "y", "x"}
    with pytest.raises(ptkit.DataError, match="a.jsonl:9: label 'w' is not among the 3 labels"):
        run_toy(SequenceClassification, rows, [record("a", "w", line=9)], task=task, out="other")
    assert not (tmp_path / "other").exists()


def test_a_run_on_shuffled_labels_learns_nothing(run_toy: RunToy) -> None:
    train, test = (
        [record(text, ["neg", "pos"][good], line=i) for i, (text, good) in enumerate(made, 1)]
        for made in (reviews(128, 0), reviews(40, 1))
    )
    shuffled = [{"kind": "shuffle-labels"}]
    result = run_toy(SequenceClassification, train, test, words=VOCABULARY, transforms=shuffled)
    assert result.scores["after"]["equal"] < 80


def test_a_run_learns_pairs_of_texts(run_toy: RunToy) -> None:
    """The first text says nothing, the second one everything."""
    train, test = (
        [
            record(FILLER[line % 3], ["neg", "pos"][good], text, line)
            for line, (text, good) in enumerate(made, 1)
        ]
        for made in (reviews(128, 0), reviews(40, 1))
    )
    task = {"pooling": "mean", "hidden": "tanh"}
    result = run_toy(SequenceClassification, train, test, words=VOCABULARY, task=task)
    assert result.scores["after"]["equal"] >= 97.5


def test_a_run_learns_sets_of_labels(run_toy: RunToy) -> None:
    def rows(seed: int, count: int) -> list[Any]:
        draw = random.Random(seed)
        made = []
        for line in range(1, count + 1):
            chosen = [word for word in ("fine", "poor", "film") if draw.random() < 0.5]
            words = [*chosen, "the"]
            draw.shuffle(words)
            made.append(record(" ".join(words), tuple(chosen), line=line))
        return made

    result = run_toy(
        MultiLabelClassification,
        rows(0, 96),
        rows(1, 40),
        words=VOCABULARY,
        task={"pooling": "mean"},
    )
    assert result.scores["after"]["equal"] >= 95


def test_a_run_learns_a_number(run_toy: RunToy) -> None:
    def rows(seed: int, count: int) -> list[Any]:
        return [
            record(text, 10.0 + 4.0 * good, line=line)
            for line, (text, good) in enumerate(reviews(count, seed), 1)
        ]

    result = run_toy(
        SequenceRegression,
        rows(0, 128),
        rows(1, 40),
        words=VOCABULARY,
        training={"max_steps": 150},
    )
    lines = (result.folder / "predictions.jsonl").read_text().splitlines()
    pairs = [(line["reference"], line["before"], line["after"]) for line in map(json.loads, lines)]
    assert sum(abs(after - wanted) for wanted, _, after in pairs) / len(pairs) < 0.5
    assert all(11 < before < 13 for _, before, _ in pairs)  # the mean of the training labels


def test_balanced_weights_are_of_the_training_rows(run_toy: RunToy) -> None:
    """Of ten rows one has the rare label. Untuned, all have about the same score, so that both
    labels cost ln 2 a row, and as much in all: the loss is the same with weights."""
    train = [record(f"the film {i}", "rare" if i == 3 else "often", line=i) for i in range(10)]
    losses = {}
    for weights in ("none", "balanced"):
        result = run_toy(
            SequenceClassification,
            train,
            train,
            task={"class_weights": weights, "dropout": 0.0},
            training={"max_steps": 40, "batch_size": 10, "learning_rate": 0.005},
            out=weights,
        )
        events = (result.folder / "events.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in events]
        losses[weights] = [e["loss"] for e in found if e["event"] == "train"]
    assert losses["none"][0] == pytest.approx(math.log(2), abs=0.1)
    assert losses["balanced"][0] == pytest.approx(math.log(2), abs=0.1)
    # answering "often" always is soon good without weights, and no better than a guess with them
    assert losses["none"][10] < 0.5
    assert losses["balanced"][10] > 0.5


def test_a_resumed_run_ends_the_same(run_toy: RunToy, tmp_path: Path) -> None:
    """Dropout and balanced weights after a stop are those of a run that never stopped."""
    rows = [
        record(text, ["neg", "pos"][good], line=i) for i, (text, good) in enumerate(reviews(30, 0))
    ]
    rows += rows[::2]
    task = {"class_weights": "balanced", "hidden": "tanh", "dropout": 0.3}
    training = {"max_steps": 6, "save_every": 3}
    whole = run_toy(SequenceClassification, rows, rows, task=task, training=training, out="whole")
    run_toy(SequenceClassification, rows, rows, task=task, training=training, out="stopped")
    for checkpoint in (tmp_path / "stopped" / "checkpoints").iterdir():
        if checkpoint.name != "step-000003":
            for file in checkpoint.iterdir():
                file.unlink()
            checkpoint.rmdir()
    resumed = run_toy(
        SequenceClassification,
        rows,
        rows,
        task=task,
        training=training,
        out="stopped",
        resume=True,
    )
    for path in whole.adapter.iterdir():
        assert path.read_bytes() == (resumed.adapter / path.name).read_bytes(), path.name


def test_a_run_is_the_same_in_however_many_micro_batches(run_toy: RunToy) -> None:
    rows = [
        record(text, ["neg", "pos"][good], line=i) for i, (text, good) in enumerate(reviews(16, 0))
    ]
    losses = []
    for tokens in (4096, 8):
        result = run_toy(
            SequenceClassification,
            rows,
            rows,
            task={"dropout": 0.3, "hidden": "tanh"},
            training={"max_steps": 4, "tokens_per_micro_batch": tokens},
            out=f"split-{tokens}",
        )
        events = map(json.loads, (result.folder / "events.jsonl").read_text().splitlines())
        losses.append([event["loss"] for event in events if event["event"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_pooled_settings_are_shared() -> None:
    assert issubclass(SequenceClassification.Settings, PooledSettings)
    assert issubclass(SequenceRegression.Settings, PooledSettings)
