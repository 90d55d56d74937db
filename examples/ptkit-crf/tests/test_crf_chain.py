"""The chain against the sum and the best of all tag sequences, one by one."""

from __future__ import annotations

import doctest
import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from ptkit_crf import bio
from ptkit_crf.bio import barred, bio_labels
from ptkit_crf.chain import Chain, best_path, log_partition, path_score

LENGTHS = (4, 1, 3, 0)
TAGS = 3


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield


def random_chain(tags: int = TAGS) -> Chain:
    shapes = ((tags,), (tags, tags), (tags,))
    return Chain(*(torch.randn(shape, dtype=torch.float64) for shape in shapes))


def constrained(labels: Sequence[str]) -> Chain:
    no_first, no_after = (torch.tensor(mask) for mask in barred(labels))
    first, after, last = random_chain(len(labels))
    infinite = -math.inf
    first = first.masked_fill(no_first, infinite)
    return Chain(first, after.masked_fill(no_after, infinite), last)


def random_emissions(tags: int = TAGS) -> Tensor:
    """What stands behind the end of a text is large, so that using it shows."""
    emissions = torch.randn(len(LENGTHS), max(LENGTHS), tags, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        emissions[row, length:] = 1e6
    return emissions


def score(emissions: Tensor, tags: Sequence[int], chain: Chain) -> Tensor:
    """As in the docstring of the module, term by term."""
    terms = [emissions[place, tag] for place, tag in enumerate(tags)]
    terms += [chain.after[a, b] for a, b in itertools.pairwise(tags)]
    return sum(terms, chain.first[tags[0]] + chain.last[tags[-1]])


def all_scores(emissions: Tensor, chain: Chain) -> dict[tuple[int, ...], Tensor]:
    tags = range(emissions.shape[1])
    paths = itertools.product(tags, repeat=len(emissions))
    return {path: score(emissions, path, chain) for path in paths}


def test_two_words_by_hand() -> None:
    # e^0 + e^1 for the first word; log 2 more behind tag 1 if it is followed by tag 0
    emissions = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    after = torch.tensor([[0.0, 0.0], [math.log(2), 0.0]])
    chain = Chain(torch.zeros(2), after, torch.tensor([0.0, math.log(3)]))
    # paths 00: 1, 01: 3, 10: 2e, 11: 3e
    expected = math.log(1 + 3 + 2 * math.e + 3 * math.e)
    lengths = torch.tensor([2])
    assert float(log_partition(emissions, lengths, chain)) == pytest.approx(expected)
    path = torch.tensor([[1, 0]])
    found = path_score(emissions, lengths, path, chain)
    assert float(found) == pytest.approx(1 + math.log(2))
    assert best_path(emissions[0], chain) == [1, 1]


def test_the_partition_is_the_sum_over_all_sequences() -> None:
    emissions, chain = random_emissions(), random_chain()
    found = log_partition(emissions, torch.tensor(LENGTHS), chain)
    for row, length in enumerate(LENGTHS[:3]):
        scores = all_scores(emissions[row, :length], chain)
        total = torch.stack(list(scores.values())).logsumexp(0)
        assert float(found[row]) == pytest.approx(float(total), abs=1e-12)
    assert float(found[3]) == 0  # no words: the empty sequence alone


def test_the_score_of_a_sequence() -> None:
    emissions, chain = random_emissions(), random_chain()
    tags = torch.randint(TAGS, (len(LENGTHS), max(LENGTHS)))
    found = path_score(emissions, torch.tensor(LENGTHS), tags, chain)
    for row, length in enumerate(LENGTHS[:3]):
        expected = score(emissions[row], tags[row, :length].tolist(), chain)
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-12)
    assert float(found[3]) == 0


def test_the_best_path_is_the_best_of_all() -> None:
    for _ in range(20):
        emissions, chain = random_emissions(), random_chain()
        for row, length in enumerate(LENGTHS[:3]):
            scores = all_scores(emissions[row, :length], chain)
            best = max(scores, key=lambda path: float(scores[path]))
            assert tuple(best_path(emissions[row, :length], chain)) == best
    assert best_path(emissions[3, :0], chain) == []


@pytest.mark.parametrize("labels", [["O", "P", "Q"], bio_labels(["x"])])
def test_gradients_are_those_of_the_sum_over_all_sequences(labels: list[str]) -> None:
    """With tags that can't occur, too: their scores get 0 and never NaN."""
    chain = constrained(labels)
    emissions = random_emissions()
    tags = torch.tensor([[0, 1, 2, 0], [1, 0, 0, 0], [1, 2, 2, 0], [0, 0, 0, 0]])
    lengths = torch.tensor(LENGTHS)
    leaves = [emissions.requires_grad_(), *(part.requires_grad_() for part in chain)]

    ours = log_partition(emissions, lengths, chain)
    ours = ours - path_score(emissions, lengths, tags, chain)
    found = torch.autograd.grad(ours.sum(), leaves)

    losses = []
    for row, length in enumerate(LENGTHS[:3]):
        possible = [
            value
            for value in all_scores(emissions[row, :length], chain).values()
            if float(value.detach()) > -math.inf
        ]
        gold = score(emissions[row], tags[row, :length].tolist(), chain)
        losses.append(torch.stack(possible).logsumexp(0) - gold)
    expected = torch.autograd.grad(torch.stack(losses).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_probabilities_of_all_sequences_add_up_to_one() -> None:
    chain = constrained(bio_labels(["x"]))
    emissions = torch.randn(1, 3, 3, dtype=torch.float64)
    paths = torch.tensor(list(itertools.product(range(3), repeat=3)))
    many = emissions.expand(len(paths), -1, -1)
    lengths = torch.full((len(paths),), 3)
    log_probabilities = path_score(many, lengths, paths, chain)
    log_probabilities = log_probabilities - log_partition(many, lengths, chain)
    assert float(log_probabilities.exp().sum()) == pytest.approx(1, abs=1e-12)
    # O, B and I in three places: I may not begin or stand behind O, 13 ways are left
    assert int((log_probabilities > -math.inf).sum()) == 13


def test_barred_tags_never_come() -> None:
    labels = bio_labels(["x", "y"])
    no_first, no_after = barred(labels)
    for _ in range(200):
        emissions = 10 * torch.randn(7, len(labels), dtype=torch.float64)
        path = best_path(emissions, constrained(labels))
        assert not no_first[path[0]]
        assert not any(no_after[a][b] for a, b in itertools.pairwise(path))


def test_what_is_barred() -> None:
    labels = bio_labels(["x", "y"])
    assert labels == ["O", "B-x", "I-x", "B-y", "I-y"]
    no_first, no_after = barred(labels)
    assert [tag for tag, no in zip(labels, no_first, strict=True) if no] == [
        "I-x",
        "I-y",
    ]
    pairs = itertools.product(range(5), repeat=2)
    allowed = [(labels[a], labels[b]) for a, b in pairs if not no_after[a][b]]
    assert [before for before, tag in allowed if tag == "I-x"] == ["B-x", "I-x"]
    assert [before for before, tag in allowed if tag == "I-y"] == ["B-y", "I-y"]
    assert len(allowed) == 5 * 3 + 2 * 2  # O, B-x, B-y behind any


def test_the_examples_of_the_docstrings() -> None:
    found = doctest.testmod(bio)
    assert (found.attempted > 0, found.failed) == (True, 0)
