"""How many tokens to draft next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Budget(Protocol):
    """A policy of its own, neither the drafter's nor the loop's."""

    def max_draft_tokens(self) -> int:
        """The most nodes that the next draft may have; 0 for no draft at all."""
        ...


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """The same number every time; 7 is ANPD's K (arXiv 2404.08698), whose gain is flat from 6 to 8."""

    num_tokens: int = 7

    def __post_init__(self) -> None:
        if self.num_tokens < 0:
            raise ValueError(f"a budget of {self.num_tokens} tokens is negative")

    def max_draft_tokens(self) -> int:
        return self.num_tokens
