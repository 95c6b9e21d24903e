"""vLLM's draft-free methods: ngram as a drafter that does the same, and what to write for both in its config."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from foretoken.core.contracts import Step
from foretoken.core.draft import Draft

MIN_TREE_DEPTH = 24  # vLLM's default


class VllmNgram:
    """Copy on from the earliest occurrence of the longest suffix of ``min_ngram`` to ``max_ngram`` tokens.

    The same guesses as vLLM's ``NgramProposer``, which searches the text anew for each; an index finds them here.

    Args:
        min_ngram: vLLM's ``prompt_lookup_min``.
        max_ngram: vLLM's ``prompt_lookup_max``.

    >>> drafter = VllmNgram(1, 2)
    >>> text = [1, 2, 3, 4, 2, 5, 1, 2]
    >>> drafter.begin(text)
    >>> drafter.propose(text, max_tokens=3).tokens
    (3, 4, 2)
    """

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        self.min_ngram, self.max_ngram = min_ngram, max_ngram
        self.begin(())

    def begin(self, prompt: Sequence[int]) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # n-gram -> where the token after its first occurrence stands
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
            end = len(self._text)
            for length in range(self.min_ngram, min(self.max_ngram, end) + 1):
                self._after.setdefault(tuple(self._text[end - length :]), end)
            self._text.append(token)


def ngram_config(min_ngram: int, max_ngram: int, num_tokens: int) -> dict[str, Any]:
    """The ``--speculative-config`` of method ngram."""
    return {
        "method": "ngram",
        "num_speculative_tokens": num_tokens,
        "prompt_lookup_min": min_ngram,
        "prompt_lookup_max": max_ngram,
    }


def suffix_config(num_tokens: int, break_even: float) -> dict[str, Any]:
    """The ``--speculative-config`` of method suffix that comes closest; nothing here replays that method.

    Args:
        num_tokens: The budget that was best for chains.
        break_even: The chance at which a further guess pays for its row.
    """
    return {
        "method": "suffix",
        "num_speculative_tokens": num_tokens,
        # A match as long as the guess, as a factor of 1 asks for, and the guess itself share the depth.
        "suffix_decoding_max_tree_depth": max(MIN_TREE_DEPTH, 2 * num_tokens),
        "suffix_decoding_max_spec_factor": 1.0,
        # The method compares it with the chance of the whole path, which is what pays for a row.
        "suffix_decoding_min_token_prob": round(min(break_even, 1.0), 2),
    }
