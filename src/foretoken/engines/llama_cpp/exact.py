"""Is a row's forward the same in all its bits, whatever is drafted? Found out with a few forwards.

A matrix product may take another way for one row than for several, and for the last rows of a forward than for groups
of four. Attention may take another way for one row on two threads, or once the text grows beyond 256 tokens. So the
bits of plain decoding, a row at a time, may not be those of a draft's rows. If every forward is filled up to certain
numbers of rows they may; plain steps are then filled up, too, and drafted text equals plain text to the bit.

Only flash attention adds up what a row sees in the order of the text, whatever lies between. With the other kind a
branch of a tree, which lies behind the main chain, has other bits, so that only chains are exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from foretoken.core.draft import Draft
from foretoken.engines.llama_cpp.context import Contexts
from foretoken.engines.llama_cpp.target import EVERY_WIDTH, MOST_ROWS, LlamaCppTarget
from foretoken.memory.self_tests import SelfTest

# What forwards may be filled up to, as plain steps get dearer: any number of rows, two at least, groups of four, ...
# The first is only for flash attention. The other kind multiplies in another way for a single row; where the values
# that come next are rounded to eight bits this seldom shows, so that a few forwards do not find it.
WAYS = (
    EVERY_WIDTH,
    *(range(least, MOST_ROWS + 1, step) for least, step in ((2, 1), (4, 4), (8, 4), (8, 8), (16, 16))),
)
GUESSES = MOST_ROWS - 1  # that are compared with plain steps over the same tokens
CHAINS = (1, 2, 4, 5, 7, 10, 12, 16, 22, GUESSES)
MAIN, BESIDE = 5, 12  # nodes of a tree's main chain and of its branch
LONG, SHORT = 240, 20  # tokens of the text before them: with the guesses it grows beyond 256
QUICK = 0.05  # seconds of a step, above which the text is short
TIMES, SECONDS = 6, 0.1  # of each step that is timed: at least so many times, and so long in all


def self_test(contexts: Contexts, vocab_size: int, most_cost: float = math.inf) -> SelfTest:
    """Compare drafts of several sizes with plain steps, filled up in one way after the other until all bits agree.

    Args:
        contexts: Of the model.
        vocab_size: Of it.
        most_cost: What filling up a plain step may add to it, as a share. Dearer ways are not tried.

    Returns:
        The numbers of rows that forwards are filled up to; none if no way gives the same bits. The seconds are those of
        a plain step, filled up.
    """
    target, rng = LlamaCppTarget(contexts), np.random.default_rng(0)
    target.prefill([0])
    quick = _seconds(target, (1,))[0] < QUICK
    most = max(1, target.max_length - GUESSES - 2)
    starts = [min(start, most) for start in ((LONG, SHORT) if quick else (SHORT,))]
    texts = [rng.integers(0, vocab_size, start + GUESSES + 1).tolist() for start in starts]
    target.prefill(texts[0][: starts[0]])
    tested: list[int] = []
    equal: list[bool] = []
    for widths in WAYS if contexts.settings.flash else WAYS[1:]:
        alone, seconds = _seconds(target, (1, widths[0]))
        if seconds > (1 + most_cost) * alone:
            break
        tested = sorted({*tested, widths[0]})
        target.widths = widths
        equal = []
        for start, text in zip(starts, texts, strict=True):
            target.prefill(text[:start])
            equal += _compared(target, text, start, contexts.settings.flash)
            if not equal[-1]:
                break
        else:
            return SelfTest(tuple(tested), tuple(widths), len(equal), len(equal), seconds / alone - 1, seconds)
    return SelfTest(tuple(tested), (), sum(equal), len(equal), 0.0, alone)


def _compared(target: LlamaCppTarget, text: Sequence[int], start: int, trees: bool) -> Iterator[bool]:
    """For each right guess of each draft, whether its logits have the bits of a plain step, up to the first difference.

    Args:
        target: It has read the text up to ``start``.
        text: Tokens.
        start: Where the drafts begin, after a token that is known.
        trees: Whether a tree is among them.
    """
    guesses, plain = text[start + 1 :], list[Any]()
    target.rewind(start)
    for token in text[start:]:
        plain.append(target.score(token, Draft()).row_logits(0).copy())
        target.keep(())
    chains = [(Draft.chain(guesses[:size]), range(1, 1 + size)) for size in CHAINS]
    for draft, rows in [*chains, _tree(guesses)] if trees else chains:
        target.rewind(start)
        scores = target.score(text[start], draft)
        for place, row in enumerate([0, *rows]):
            same = np.array_equal(scores.row_logits(row), plain[place])
            yield same
            if not same:
                target.rewind(start)
                return
    target.rewind(start)


def _tree(guesses: Sequence[int]) -> tuple[Draft, Sequence[int]]:
    """A tree whose main chain is wrong and whose branch is right, and the rows of the branch."""
    wrong = [guess ^ 1 for guess in guesses[:MAIN]]
    tokens = (*wrong, *guesses[:BESIDE])
    parents = (*range(-1, MAIN - 1), -1, *range(MAIN, len(tokens) - 1))
    return Draft(tokens, parents), range(1 + MAIN, 1 + len(tokens))


def _seconds(target: LlamaCppTarget, widths: Sequence[int]) -> list[float]:
    """What a plain step takes that is filled up to each of some numbers of rows: the least times of several turns."""
    length, began = target.num_cached, time.perf_counter()
    times: dict[int, list[float]] = {width: [] for width in widths}
    while len(times[widths[0]]) < TIMES or time.perf_counter() < began + SECONDS:
        for width, some in times.items():
            target.widths = (width,)
            started = target.clock()
            target.score(0, Draft())
            some.append(target.clock() - started)
            target.rewind(length)
    return [min(times[width]) for width in widths]
