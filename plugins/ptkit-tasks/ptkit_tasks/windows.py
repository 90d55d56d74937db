"""Inputs that are longer than a row, as windows that overlap."""

from __future__ import annotations


def token_windows(tokens: int, room: int, stride: int, longest: int) -> list[range]:
    """Windows of ``room`` tokens, a stride apart, the last as long as what is left.

    Every piece of up to ``longest`` tokens that fits the room is whole in one of them; the stride
    is shortened where it wouldn't be.

    >>> token_windows(10, room=6, stride=4, longest=3)
    [range(0, 6), range(4, 10)]
    >>> token_windows(10, room=6, stride=4, longest=6)
    [range(0, 6), range(1, 7), range(2, 8), range(3, 9), range(4, 10)]
    """
    step = min(stride, room - min(longest, room) + 1)
    count = 1 + max(0, -(-(tokens - room) // step))
    return [range(i * step, min(i * step + room, tokens)) for i in range(count)]
