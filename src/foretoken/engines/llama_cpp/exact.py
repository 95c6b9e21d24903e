"""Is a row's forward the same in all its bits, whatever is drafted? Found out with a few forwards.

A matrix product may take another way for one row than for several, and attention for one row on two threads. So the
bits of plain decoding, a row at a time, may not be those of a draft's rows. From some number of rows on they are always
the same; then plain steps are filled up to that number, and drafted text equals plain text to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretoken.core.draft import Draft
from foretoken.engines.llama_cpp.context import Contexts
from foretoken.engines.llama_cpp.target import MOST_ROWS, LlamaCppTarget

WIDTHS = (1, 2, 4, 8, 16)  # rows that a plain step may be filled up to
DRAFTS = (1, 2, 3, 6, 15, MOST_ROWS - 1)  # guesses of the drafts that are compared with it
LENGTHS = (20, 300)  # of the texts; from 256 tokens on, attention over two threads may go another way
MAX_COST = 1.05  # of a plain step, up to which exactness is worth its price by itself
TIMES = 8


@dataclass(frozen=True)
class Exactness:
    """What plain steps must be filled up to.

    Args:
        least_rows: So many rows make every row's bits the same. None if no number that was tried does.
        cost: Of a step of so many rows, in steps of one row.
    """

    least_rows: int | None
    cost: float

    @property
    def is_cheap(self) -> bool:
        """Whether exactness costs so little that nobody need ask for it."""
        return self.least_rows is not None and self.cost <= MAX_COST


def find_exactness(contexts: Contexts, vocab_size: int) -> Exactness:
    """Compare chains and trees of several sizes with plain steps of several widths.

    Args:
        contexts: Of the model.
        vocab_size: Of it.
    """
    target = LlamaCppTarget(contexts)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, vocab_size, length + max(DRAFTS) + 1).tolist() for length in LENGTHS]
    texts = [text for text in texts if len(text) < target.max_length]
    for width in WIDTHS:
        target.least_rows = width
        if all(_agrees(target, text, length) for text, length in zip(texts, LENGTHS, strict=False)):
            return Exactness(width, _cost(target, width))
    return Exactness(None, 1.0)


def _agrees(target: LlamaCppTarget, text: Sequence[int], length: int) -> bool:
    """Whether drafts of a text's tokens get the bits of plain steps over them."""
    target.prefill(text[:length])
    plain: list[NDArray[np.float32]] = []
    for token in text[length:]:
        plain.append(target.score(token, Draft()).row(0).copy())
        target.keep(())
    for size in DRAFTS:
        target.rewind(length)
        guesses = text[length + 1 : length + 1 + size]
        for draft in (Draft.chain(guesses), _with_branches(guesses)):
            scores = target.score(text[length], draft)
            same = all(np.array_equal(scores.row(row), plain[row]) for row in range(1 + size))
            target.rewind(length)
            if not same:
                return False
    return True


def _with_branches(tokens: Sequence[int]) -> Draft:
    """A chain of these, and a wrong sibling of each."""
    nodes = [*tokens, *(token ^ 1 for token in tokens)]
    return Draft(tuple(nodes), (*range(-1, len(tokens) - 1), *range(-1, len(tokens) - 1)))


def _cost(target: LlamaCppTarget, width: int) -> float:
    """What a plain step filled up to so many rows takes, in steps of one row: the least times of several turns."""
    if width == 1:
        return 1.0
    target.prefill([0])
    times: dict[int, list[float]] = {1: [], width: []}
    for _ in range(TIMES):
        for rows, some in times.items():
            target.least_rows = rows
            started = time.perf_counter()
            target.score(0, Draft())
            some.append(time.perf_counter() - started)
            target.keep(())
    return min(times[width]) / min(times[1])
