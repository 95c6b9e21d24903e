"""ANPD: the text repeats itself, so guess what most often followed the last few tokens.

The adaptive multi-level n-gram module of Ou et al., "Lossless Acceleration of Large Language Model via Adaptive N-gram
Parallel Decoding" (arXiv 2404.08698): tables of every order, filled from the prompt and with every committed token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foretoken.core.contracts import Step
from foretoken.core.draft import Draft
from foretoken.core.numbers import whole
from foretoken.drafters.recipe import Parts, Recipe, option


class Successors:
    """How often each token followed one context, and the most frequent of them; the most recent where two tie."""

    __slots__ = ("best", "counts")

    def __init__(self, token: int) -> None:
        self.best = token
        self.counts = {token: 1}

    def add(self, token: int) -> None:
        count = self.counts.get(token, 0) + 1
        self.counts[token] = count
        # The token just seen is the most recent of all, so it leads from a tie on.
        if count >= self.counts[self.best]:
            self.best = token


class NgramTables:
    """What followed every (n - 1)-gram of one sequence, for orders n = 2 .. ``max_order``.

    Appending costs O(orders) per token; a lookup costs the same whatever the sequence's length.

    >>> tables = NgramTables(max_order=3)
    >>> tables.extend([5, 9, 4, 5, 9, 4, 5, 9])
    >>> tables.successor([5, 9]), tables.successor([7, 9]), tables.successor([7])
    (4, 4, None)
    """

    def __init__(self, max_order: int) -> None:
        self.max_order = max_order
        self.levels: list[dict[tuple[int, ...], Successors]] = [{} for _ in range(max_order - 1)]
        self._tail: tuple[int, ...] = ()

    def extend(self, tokens: Iterable[int]) -> None:
        """Append committed tokens to the sequence."""
        for token in tokens:
            tail = self._tail
            for length in range(1, len(tail) + 1):
                level, gram = self.levels[length - 1], tail[-length:]
                if gram in level:
                    level[gram].add(token)
                else:
                    level[gram] = Successors(token)
            self._tail = (*tail, token)[1 - self.max_order :]

    def successor(self, context: Sequence[int]) -> int | None:
        """What most often followed the longest suffix of ``context`` that occurred before; None where none did."""
        for length in range(min(self.max_order - 1, len(context)), 0, -1):
            successors = self.levels[length - 1].get(tuple(context[-length:]))
            if successors is not None:
                return successors.best
        return None


class AdaptiveNgram:
    """Draft token by token from the tables, each guess part of the context of the next.

    Args:
        max_order: The paper's N: the longest n-gram counted, the guessed token with it; at least 2.

    Raises:
        ForetokenError: If ``max_order`` is below 2.
    """

    def __init__(self, max_order: int = 5) -> None:
        self.max_order = whole("max_order", max_order, 2)
        self.tables = NgramTables(max_order)

    def begin(self, prompt: Sequence[int]) -> None:
        self.tables = NgramTables(self.max_order)
        self.tables.extend(prompt)

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        tail = list(context[1 - self.max_order :])
        start = len(tail)
        while len(tail) - start < max_tokens:
            token = self.tables.successor(tail)
            if token is None:
                break
            tail.append(token)
        return Draft.chain(tail[start:])

    def observe(self, step: Step) -> None:
        self.tables.extend(step.tokens)


@dataclass(frozen=True)
class Anpd(Recipe):
    """ANPD: what most often followed the last few tokens of the text.

    Args:
        max_order: The longest n-gram that is counted, its last token with it.
    """

    name = "anpd"
    max_order: int = option(5, least=2)

    def make(self, parts: Parts) -> AdaptiveNgram:
        return AdaptiveNgram(self.max_order)
