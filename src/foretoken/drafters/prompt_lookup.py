"""Prompt lookup: find the last few tokens earlier in the text and copy what came after them.

Saxena, "Prompt Lookup Decoding" (2023): the baseline everybody knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foretoken.core.contracts import Step
from foretoken.core.draft import Draft
from foretoken.core.numbers import whole
from foretoken.drafters.recipe import Parts, Recipe, option


class PromptLookupDrafter:
    """Copy on from the most recent earlier occurrence of the longest suffix that has one.

    An index of n-grams makes a draft independent of the context's length.

    Args:
        max_ngram: The longest suffix looked for, in tokens; shorter ones are tried down to 1.

    Raises:
        ForetokenError: If ``max_ngram`` is below 1.

    >>> drafter = PromptLookupDrafter()
    >>> drafter.begin([1, 2, 3, 4, 2, 3])
    >>> drafter.propose([1, 2, 3, 4, 2, 3], max_tokens=3).tokens
    (4, 2, 3)
    """

    def __init__(self, max_ngram: int = 3) -> None:
        self.max_ngram = whole("max_ngram", max_ngram, 1)
        self.begin(())

    def begin(self, prompt: Sequence[int]) -> None:
        self._context: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its last occurrence stands
        self._extend(prompt)

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        for length in range(min(self.max_ngram, len(context)), 0, -1):
            start = self._after.get(tuple(context[-length:]))
            if start is not None:
                return Draft.chain(context[start : start + max_tokens])
        return Draft()

    def observe(self, step: Step) -> None:
        self._extend(step.tokens)

    def _extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            # Index the grams that end just before this token: now they have a successor.
            end = len(self._context)
            for length in range(1, min(self.max_ngram, end) + 1):
                self._after[tuple(self._context[end - length :])] = end
            self._context.append(token)


@dataclass(frozen=True)
class PromptLookup(Recipe):
    """Prompt lookup: what came after the last few tokens the last time.

    Args:
        max_ngram: The longest suffix that is looked for, in tokens.
    """

    name = "prompt-lookup"
    max_ngram: int = option(3, least=1)

    def make(self, parts: Parts) -> PromptLookupDrafter:
        return PromptLookupDrafter(self.max_ngram)
