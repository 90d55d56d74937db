"""One or two texts within a limit of tokens, specials included."""

from __future__ import annotations

from collections.abc import Sequence

import ptkit


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of either text stay, where both have ``room`` tokens together.

    Tokens go one by one from the end of the longer text, of equal ones from the second, as
    transformers' ``truncation="longest_first"`` has it.

    >>> longest_first(10, 2, 6), longest_first(10, 10, 5)
    ((4, 2), (3, 2))
    """
    kept = min(first, max(room - second, (room + 1) // 2))
    return kept, min(second, room - kept)


def first_first(first: int, second: int, room: int) -> tuple[int, int]:
    """As `longest_first`, but the second text is only cut where nothing of the first is left.

    >>> first_first(10, 2, 6), first_first(10, 8, 6)
    ((4, 2), (0, 6))
    """
    return min(first, max(0, room - second)), min(second, room)


def fitting(
    tokenizer: ptkit.Tokenizer,
    first: Sequence[int],
    second: Sequence[int] | None,
    limit: int,
    *,
    cut_first: bool = False,
) -> tuple[ptkit.Joined, int]:
    """The ids of one or two texts, joined to ``limit`` tokens at most, and how many were left out.

    ``cut_first``: shorten the first text as far as it goes, instead of the longer one. Raises
    `RecipeError` for a limit that the specials fill.
    """
    whole = tokenizer.join(first, second)
    if len(whole.tokens) <= limit:
        return whole, 0
    specials = len(tokenizer.join((), None if second is None else ()).tokens)
    room = limit - specials
    if room < 1:
        raise ptkit.RecipeError(
            f"task.max_tokens = {limit} leaves no room for text: what stands around it has "
            f"{specials} tokens; raise it"
        )
    if second is None:
        return tokenizer.join(first[:room]), len(first) - room
    keep = first_first if cut_first else longest_first
    one, two = keep(len(first), len(second), room)
    return tokenizer.join(first[:one], second[:two]), len(first) - one + len(second) - two
