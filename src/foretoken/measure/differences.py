"""Where a drafted answer first differs from the plain one, and how near the tie was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foretoken.core.contracts import Target
from foretoken.core.draft import Draft
from foretoken.core.errors import ForetokenError


class TextChanged(ForetokenError):
    """A measurement found a text that is not plain decoding's where it has to be: no fault of the input."""


def first_difference(plain: Sequence[int], drafted: Sequence[int]) -> int | None:
    """How many tokens agree before the answers part; None where they do not.

    >>> first_difference([5, 6, 7], [5, 6, 8]), first_difference([5, 6], [5, 6, 7]), first_difference([5], [5])
    (2, 2, None)
    """
    pairs = enumerate(zip(plain, drafted, strict=False))
    shorter = min(len(plain), len(drafted))
    same_length = len(plain) == len(drafted)
    return next((i for i, (a, b) in pairs if a != b), None if same_length else shorter)


def gap(target: Target, tokens: Sequence[int]) -> float:
    """By how much the best logit after ``tokens``, scored by a forward over one row, leads the second."""
    target.prefill(tokens[:-1])
    second, best = np.partition(np.asarray(target.score(tokens[-1], Draft()).row_logits(0), np.float32), -2)[-2:]
    return float(best - second)
