"""The likeliest tokens of rows of logits that lie in this machine's memory: of the model, or of trained heads.

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
FEW = 16  # places in the order that are not worth a further pass
GROUPS, HALVINGS = 256, 12
FAST = {"nnan", "nsz", "arcp", "contract", "reassoc"}  # vectors need sums in any order
LOG2_E = np.float32(1.442695)
LEAST_EXPONENT = np.float32(-126.0)  # of a float32; what is less likely than that counts as nothing anyway
EXPONENT_BIAS, FRACTION_BITS = np.int32(127), np.int32(23)  # of a float32
# 2**x for x from 0 to 1, as powers of x; off by 2e-6 at most.
_POWERS = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[0, 1]).convert(kind=np.polynomial.Polynomial)
C0, C1, C2, C3, C4, C5 = (np.float32(power) for power in _POWERS)


def likeliest(logits: Floats, k: int, temperature: float = 1.0) -> tuple[Ints, Floats]:
    """The tokens of the ``k`` largest logits of each row, best first, and the logarithms of their probabilities.

    Of equal logits the first token comes first. A row with a NaN names ``k`` tokens, and which is not defined.

    Args:
        logits: [rows, vocab], float32, one row after the other in memory.
        k: At least 1. If the vocabulary is smaller, all its tokens are named.
        temperature: By which the logits are divided.

    Returns:
        Tokens and log softmax(logits / temperature), each [rows, min(k, vocab)].
    """
    shape = len(logits), min(k, logits.shape[1])
    tokens, logprobs = np.zeros(shape, np.int32), np.empty(shape, np.float32)
    _fill(logits, np.float32(1 / temperature), tokens, logprobs)
    return tokens, logprobs


def compile_likeliest() -> None:
    """Compile the loop, or load it from the disk, so that no answer's time has that in it."""
    likeliest(np.zeros((1, 1), np.float32), 1)


def _compiled(function: F) -> F:
    return compiling.compiled(function, error_model="numpy", fastmath=FAST)


def _part(function: F) -> F:
    return compiling.helper(function, error_model="numpy", fastmath=FAST)


@_part
def _largest(row: Floats, start: int) -> np.float32:
    """The largest of the ``BLOCK`` logits from ``start`` on; the compiler makes vectors of it."""
    largest: np.float32 = row[start]
    for i in range(1, BLOCK):
        largest = max(largest, row[start + i])
    return largest


@_part
def _reached(row: Floats, k: int, largest: Floats) -> np.float32:
    """A number that ``k`` of the logits reach, if few others do: so few places in the order are taken in vain.

    As many groups of them have one that reaches it, each of every ``GROUPS``-th logit. ``largest`` [GROUPS] is room.
    """
    if row.size < GROUPS or k > GROUPS:
        return np.float32(-np.inf)
    for j in range(GROUPS):
        largest[j] = row[j]
    for start in range(GROUPS, row.size, GROUPS):
        for j in range(min(GROUPS, row.size - start)):
            largest[j] = max(largest[j], row[start + j])
    low: np.float32 = largest.min()
    high: np.float32 = largest.max()
    for _ in range(HALVINGS):
        middle = np.float32(0.5) * (low + high)
        reach = 0
        for j in range(GROUPS):
            reach += largest[j] >= middle
        low, high = (middle, high) if reach >= k else (low, middle)
    return low


@_part
def _sum_of_powers(row: Floats, largest: np.float32, scale: np.float32) -> np.float32:
    """The sum of exp(scale * (logit - largest))."""
    total, factor = np.float32(0.0), scale * LOG2_E
    for i in range(row.size):
        exponent = max((row[i] - largest) * factor, LEAST_EXPONENT)
        floor = np.floor(exponent)
        x = exponent - floor
        power = C0 + x * (C1 + x * (C2 + x * (C3 + x * (C4 + x * C5))))  # 2**x
        # A float32 with nothing but an exponent is a power of two.
        total += power * np.int32((np.int32(floor) + EXPONENT_BIAS) << FRACTION_BITS).view(np.float32)
    return total


@_part
def fill_likeliest(logits: Floats, scale: np.float32, tokens: Ints, logprobs: Floats) -> None:
    """Fill in the ``tokens`` of the largest logits and their ``logprobs`` once they are scaled, each [rows, k]."""
    k = tokens.shape[1]
    room = np.empty(GROUPS, np.float32)
    for r in range(logits.shape[0]):
        row, best, found = logits[r], logprobs[r], 0  # the best logits, at first
        reached = _reached(row, k, room) if k > FEW else np.float32(-np.inf)
        for start in range(0, row.size, BLOCK):
            end = min(start + BLOCK, row.size)
            if end - start == BLOCK and _largest(row, start) < reached:
                continue
            for i in range(start, end):
                if row[i] < reached or (found == k and row[i] <= best[k - 1]):
                    continue
                place = min(found, k - 1)
                while place > 0 and best[place - 1] < row[i]:
                    best[place], tokens[r, place] = best[place - 1], tokens[r, place - 1]
                    place -= 1
                best[place], tokens[r, place] = row[i], i
                found = min(found + 1, k)
                if found == k:
                    reached = best[k - 1]
        largest = best[0]
        log_sum = np.log(_sum_of_powers(row, largest, scale))
        for i in range(k):
            best[i] = scale * (best[i] - largest) - log_sum


_fill = _compiled(fill_likeliest)
