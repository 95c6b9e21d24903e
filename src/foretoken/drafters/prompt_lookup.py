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
    """Copy on from an earlier occurrence of the longest suffix that has one.

    An index of n-grams makes a draft independent of the context's length.

    Args:
        max_ngram: The longest suffix that is looked for, in tokens. Shorter ones are tried next.
        min_ngram: The shortest suffix that is looked for.
        first: Whether to copy from the first occurrence, as vLLM's ``NgramProposer`` does, instead of the latest.

    Raises:
        ForetokenError: If ``min_ngram`` is below 1 or above ``max_ngram``.

    >>> drafter = PromptLookupDrafter()
    >>> drafter.begin([1, 2, 3, 4, 2, 3])
    >>> drafter.propose([1, 2, 3, 4, 2, 3], max_tokens=3).tokens
    (4, 2, 3)
    """

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1, *, first: bool = False) -> None:
        self.min_ngram = whole("min_ngram", min_ngram, 1)
        self.max_ngram, self.first = whole("max_ngram", max_ngram, self.min_ngram), first
        self.begin(())

    def begin(self, prompt: Sequence[int]) -> None:
        self._context: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its occurrence stands
        self._extend(prompt)

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        for length in range(min(self.max_ngram, len(context)), self.min_ngram - 1, -1):
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
            for length in range(self.min_ngram, min(self.max_ngram, end) + 1):
                gram = tuple(self._context[end - length :])
                if not self.first or gram not in self._after:
                    self._after[gram] = end
            self._context.append(token)


@dataclass(frozen=True)
class PromptLookup(Recipe):
    """Prompt lookup: what came after the last few tokens the last time.

    Args:
        max_ngram: The longest suffix that is looked for, in tokens.
        min_ngram: The shortest suffix that is looked for.
        first: Whether to copy from its first occurrence instead of the latest.
    """

    name = "prompt-lookup"
    max_ngram: int = option(3, least=1)
    min_ngram: int = option(1, least=1)
    first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("max_ngram", self.max_ngram, self.min_ngram)

    def make(self, parts: Parts) -> PromptLookupDrafter:
        return PromptLookupDrafter(self.max_ngram, self.min_ngram, first=self.first)
