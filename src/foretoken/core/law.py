"""Law: a distribution over the vocabulary, and its plain form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Law(Protocol):
    """A probability distribution over the vocabulary."""

    def prob(self, token: int) -> float:
        """The probability of ``token``."""
        ...

    def minus(self, other: Law) -> Law:
        """The residual ``max(self - other, 0)``, normalised (Leviathan et al. 2023, section 2.3)."""
        ...

    def draw(self, uniform: float) -> int:
        """The token at ``uniform``, in [0, 1), of the cumulative distribution."""
        ...


@dataclass(frozen=True, slots=True)
class ListLaw:
    """A law as plain numbers, ``probs[token]``.

    >>> ListLaw((0.5, 0.3, 0.2)).minus(ListLaw((0.2, 0.6, 0.2))).probs
    (1.0, 0.0, 0.0)
    """

    probs: Sequence[float]

    def prob(self, token: int) -> float:
        return self.probs[token]

    def minus(self, other: Law) -> ListLaw:
        rest = [max(prob - other.prob(token), 0.0) for token, prob in enumerate(self.probs)]
        total = sum(rest)
        # Equal laws leave nothing; then the draft was accepted with probability 1 and only rounding leads here.
        return ListLaw(tuple(prob / total for prob in rest)) if total > 0 else self

    def draw(self, uniform: float) -> int:
        total = 0.0
        for token, prob in enumerate(self.probs):
            total += prob
            if uniform < total:
                return token
        return max(range(len(self.probs)), key=lambda token: self.probs[token])  # the sum was rounded below 1
