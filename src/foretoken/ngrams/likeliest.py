"""The likeliest tokens of rows of logits that lie in this machine's memory: what token recycling reads of every step.

One pass finds the largest logits, a block at a time, and another adds up the softmax's denominator. Libraries do the
same in several passes, with an array for each: a row took three times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from foretoken.ngrams import compiling
from foretoken.ngrams.arrays import Floats, Ints

F = TypeVar("F", bound=Callable[..., Any])

BLOCK = 16  # logits of which the largest is found at once
FAST = {"nnan", "nsz", "arcp", "contract", "reassoc"}  # vectors need sums in any order
LOG2_E = np.float32(1.442695)
LEAST_EXPONENT = np.float32(-126.0)  # of a float32; what is less likely than that counts as nothing anyway
EXPONENT_BIAS, FRACTION_BITS = np.int32(127), np.int32(23)  # of a float32
# 2**x for x from 0 to 1, as powers of x; off by 2e-6 at most.
_POWERS = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[0, 1]).convert(kind=np.polynomial.Polynomial)
C0, C1, C2, C3, C4, C5 = (np.float32(power) for power in _POWERS)


def likeliest(logits: Floats, k: int) -> tuple[Ints, Floats]:
    """The tokens of the ``k`` largest logits of each row, best first, and their probabilities at temperature 1.

    Of equal logits the first token comes first. A row with a NaN names ``k`` tokens, and which is not defined.

    Args:
        logits: [rows, vocab], float32, one row after the other in memory.
        k: At least 1. If the vocabulary is smaller, all its tokens are named.

    Returns:
        Tokens and probabilities, each [rows, min(k, vocab)].
    """
    shape = len(logits), min(k, logits.shape[1])
    tokens, largest, probs = np.zeros(shape, np.int32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    _fill(logits, tokens, largest, probs)
    return tokens, probs


def compile_likeliest() -> None:
    """Compile the loop, or load it from the disk, so that no answer's time has that in it."""
    likeliest(np.zeros((1, 1), np.float32), 1)


def _compiled(function: F) -> F:
    return compiling.compiled(function, error_model="numpy", fastmath=FAST)


def _part(function: F) -> F:
    return compiling.helper(function, error_model="numpy", fastmath=FAST)


@_part
def _exceeds(row: Floats, start: int, bound: np.float32) -> bool:
    """Whether one of the ``BLOCK`` logits from ``start`` on is above ``bound``; the compiler makes vectors of it."""
    largest = row[start]
    for i in range(1, BLOCK):
        if row[start + i] > largest:
            largest = row[start + i]
    above: bool = largest > bound
    return above


@_part
def _sum_of_powers(row: Floats, largest: np.float32) -> np.float32:
    """The sum of exp(logit - largest)."""
    total = np.float32(0.0)
    for i in range(row.size):
        exponent = max((row[i] - largest) * LOG2_E, LEAST_EXPONENT)
        floor = np.floor(exponent)
        x = exponent - floor
        power = C0 + x * (C1 + x * (C2 + x * (C3 + x * (C4 + x * C5))))  # 2**x
        # A float32 with nothing but an exponent is a power of two.
        total += power * np.int32((np.int32(floor) + EXPONENT_BIAS) << FRACTION_BITS).view(np.float32)
    return total


@_compiled
def _fill(logits: Floats, tokens: Ints, largest: Floats, probs: Floats) -> None:
    """Fill in the ``tokens`` of the ``largest`` logits, these themselves, and their ``probs``, each [rows, k]."""
    k = tokens.shape[1]
    for r in range(logits.shape[0]):
        row, best, found = logits[r], largest[r], 0
        for start in range(0, row.size, BLOCK):
            end = min(start + BLOCK, row.size)
            if found == k and end - start == BLOCK and not _exceeds(row, start, best[k - 1]):
                continue
            for i in range(start, end):
                if found == k and not row[i] > best[k - 1]:
                    continue
                place = min(found, k - 1)
                while place > 0 and best[place - 1] < row[i]:
                    best[place], tokens[r, place] = best[place - 1], tokens[r, place - 1]
                    place -= 1
                best[place], tokens[r, place] = row[i], i
                found = min(found + 1, k)
        total = _sum_of_powers(row, best[0])
        for i in range(k):
            probs[r, i] = np.exp(best[i] - best[0]) / total
