"""Outputs that fell into a loop: trivially drafted, so never part of a headline."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PERIOD = 64
MIN_REPEATED = 32


def loops(tokens: Sequence[int]) -> bool:
    """Whether some stretch of the text says the same thing at least three times in a row.

    That is: for a period p of at most 64 tokens, a run in which every token equals the one p before it, at least 32
    tokens and two periods long.

    >>> loops([1, 2, 3] * 20), loops(list(range(200))), loops([*range(40), *range(40)])
    (True, False, False)
    """
    for period in range(1, min(MAX_PERIOD, len(tokens) // 3) + 1):
        run = 0
        for token, before in zip(tokens[period:], tokens, strict=False):
            run = run + 1 if token == before else 0
            if run >= max(MIN_REPEATED, 2 * period):
                return True
    return False
