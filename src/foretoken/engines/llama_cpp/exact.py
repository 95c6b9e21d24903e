"""Is a row's forward the same in all its bits, whatever is drafted? Found out with a few forwards.

A matrix product may take another way for one row than for several, and attention for one row on two threads. So the
bits of plain decoding, a row at a time, may not be those of a draft's rows. From some number of rows on they are always
the same; then plain steps are filled up to that number, and drafted text equals plain text to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from foretoken.core.draft import Draft
from foretoken.engines.llama_cpp.context import Contexts
from foretoken.engines.llama_cpp.target import MOST_ROWS, LlamaCppTarget
from foretoken.memory.self_tests import SelfTest

WIDTHS = (1, 2, 4, 8, 16)  # rows that a plain step may be filled up to
GUESSES = 6  # that are compared with plain steps over the same tokens
DRAFTS = (1, 2, 3, 5, 15, MOST_ROWS - 1)  # nodes of the drafts; those beyond the guesses are wrong siblings
SHORT, LONG = 20, 300  # tokens of a text; from 256 on, attention over two threads may go another way
TIMES = 8


def self_test(contexts: Contexts, vocab_size: int) -> SelfTest:
    """Compare drafts of several sizes with plain steps, which are filled up to more and more rows until all bits agree.

    Args:
        contexts: Of the model.
        vocab_size: Of it.

    Returns:
        The number of rows of a plain step as its only width; none if no number that was tried gives the same bits.
    """
    target = LlamaCppTarget(contexts)
    lengths = (SHORT,) if contexts.settings.threads == 1 else (SHORT, LONG)
    rng, most = np.random.default_rng(0), target.max_length - GUESSES - 1
    texts = [rng.integers(0, vocab_size, min(length, most) + GUESSES + 1).tolist() for length in lengths]
    tested: list[int] = []
    for width in WIDTHS:
        tested.append(width)
        target.least_rows = width
        equal = [same for text in texts for same in _compared(target, text)]
        if all(equal):
            return SelfTest(tuple(tested), (width,), sum(equal), len(equal), _cost(target, width))
    return SelfTest(tuple(tested), (), sum(equal), len(equal), 0.0)


def _compared(target: LlamaCppTarget, text: Sequence[int]) -> Iterator[bool]:
    """For each guess of each draft, whether its logits have the bits of a plain step."""
    start = len(text) - GUESSES - 1
    target.prefill(text[:start])
    plain = []
    for token in text[start:]:
        plain.append(target.score(token, Draft()).row(0).copy())
        target.keep(())
    for size in DRAFTS:
        target.rewind(start)
        draft = _draft(text[start + 1 :], size)
        scores = target.score(text[start], draft)
        for row in range(1 + min(size, GUESSES)):
            yield np.array_equal(scores.row(row), plain[row])
    target.rewind(0)


def _draft(guesses: Sequence[int], size: int) -> Draft:
    """A chain of the guesses, and as many wrong siblings of theirs as make up the size."""
    chain = list(guesses[:size])
    wrong = [token ^ (1 << i // GUESSES) for i, token in enumerate(chain * size)][: size - len(chain)]
    parents = [i % len(chain) - 1 for i in range(len(wrong))]
    return Draft((*chain, *wrong), (*range(-1, len(chain) - 1), *parents))


def _cost(target: LlamaCppTarget, width: int) -> float:
    """What filling a plain step up to so many rows adds to it, as a share: by the least times of several turns."""
    if width == 1:
        return 0.0
    target.prefill([0])
    times: dict[int, list[float]] = {1: [], width: []}
    for _ in range(TIMES):
        for rows, some in times.items():
            target.least_rows = rows
            started = target.clock()
            target.score(0, Draft())
            some.append(target.clock() - started)
            target.keep(())
    return min(times[width]) / min(times[1]) - 1
