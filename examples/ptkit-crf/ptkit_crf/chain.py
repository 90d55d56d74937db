"""A linear-chain conditional random field (Lafferty, McCallum and Pereira, 2001).

Shapes: b texts, w words, n tags. The score of the tags y of a text of w words is::

    first[y1] + emissions[1, y1] + after[y1, y2] + emissions[2, y2] + … + last[yw]

and the probability of y is exp(score) over the sum of exp(score) of all n^w sequences.
A score of -inf means that a sequence with it can't occur.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Chain(NamedTuple):
    """The scores that depend on tags alone.

    ``first`` [n]: of a tag at the beginning. ``after`` [n, n]: of the tag of the column
    right behind that of the row. ``last`` [n]: of a tag at the end.
    """

    first: Tensor
    after: Tensor
    last: Tensor


def log_partition(emissions: Tensor, lengths: Tensor, chain: Chain) -> Tensor:
    """[b]: the logarithm of the sum of exp(score) of all tag sequences of each text.

    ``emissions`` [b, w, n]; ``lengths`` [b], the words of each text, whose emissions
    come first. The forward algorithm in log space, all texts at once. A text without
    words has one sequence, the empty one of score 0.

    Example: one word, emissions (0, 0), no other scores: log(e^0 + e^0) = log 2.
    """
    import torch

    if emissions.shape[1] == 0:
        return emissions.sum((1, 2))
    alpha = chain.first + emissions[:, 0]  # [b, n]
    for place in range(1, emissions.shape[1]):
        onward = (alpha[:, :, None] + chain.after).logsumexp(1) + emissions[:, place]
        alpha = torch.where((place < lengths)[:, None], onward, alpha)
    return (alpha + chain.last).logsumexp(1).where(lengths > 0, 0.0)


def path_score(
    emissions: Tensor, lengths: Tensor, tags: Tensor, chain: Chain
) -> Tensor:
    """[b]: the score of one tag sequence of each text.

    ``tags`` [b, w]: any valid tag behind the end of a text; it doesn't count.
    """
    import torch

    if emissions.shape[1] == 0:
        return emissions.sum((1, 2))
    places = torch.arange(emissions.shape[1], device=emissions.device)
    inside = places < lengths[:, None]  # [b, w]
    emitted = emissions.gather(2, tags[..., None])[..., 0]
    followed = chain.after[tags[:, :-1], tags[:, 1:]]
    ends = tags.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0]
    score = chain.first[tags[:, 0]] + chain.last[ends]
    score = score + emitted.where(inside, 0.0).sum(1)
    score = score + followed.where(inside[:, 1:], 0.0).sum(1)
    return score.where(lengths > 0, 0.0)


def best_path(emissions: Tensor, chain: Chain) -> list[int]:
    """The tag sequence of the highest score for ``emissions`` [w, n] of one text.

    Viterbi's algorithm. Of sequences that score the same, any.
    """
    if not len(emissions):
        return []
    best = chain.first + emissions[0]  # [n]: of the best sequence that ends in each tag
    back = []
    for emission in emissions[1:]:
        scores, before = (best[:, None] + chain.after).max(0)
        best = scores + emission
        back.append(before.tolist())
    tags = [int((best + chain.last).argmax())]
    for came_from in reversed(back):
        tags.append(came_from[tags[-1]])
    return tags[::-1]
