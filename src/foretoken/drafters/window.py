"""Lookahead's window beside another drafter, which learns from what the target says in the window's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foretoken.core.contracts import Drafter, Need, Step, needs_of
from foretoken.core.draft import Draft
from foretoken.drafters.lookahead import Lookahead, LookaheadDrafter
from foretoken.drafters.mixed import Mixed
from foretoken.drafters.recipe import Parts, Recipe, option


class WithWindow:
    """Draft as one drafter does, and let a window of lookahead ride along for it.

    ``NgramMixer(recycle=True)`` learns from every row that is scored, so that the window's n-grams vote among all other
    evidence. Where its own drafts are wide they show it nearly as much, and ``mixed`` goes without a window.

    Args:
        guesser: Where guesses come from.
        window: Its window rides; its own guesses do not.

    >>> from foretoken.drafters.anpd import AdaptiveNgram
    >>> drafter = WithWindow(AdaptiveNgram(), LookaheadDrafter(window=2, ngram=3, guesses=1))
    >>> drafter.begin([4, 1, 7, 4, 1])
    >>> drafter.propose([4, 1, 7, 4], max_tokens=1).num_lookahead
    2
    """

    def __init__(self, guesser: Drafter, window: LookaheadDrafter) -> None:
        self.guesser, self.window = guesser, window

    @property
    def needs(self) -> frozenset[Need]:
        """What either of them needs."""
        return needs_of(self.guesser) | needs_of(self.window)

    def begin(self, prompt: Sequence[int]) -> None:
        self.guesser.begin(prompt)
        self.window.begin(prompt)

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        return self.window.beside(self.guesser.propose(context, max_tokens), context[-1])

    def observe(self, step: Step) -> None:
        self.guesser.observe(step)
        self.window.observe(step)


@dataclass(frozen=True)
class MixedWindow(Recipe):
    """The drafter "mixed" with a window of lookahead, whose rows it learns from.

    It is measured beside the others and has no name of its own at the doors.

    Args:
        window: Columns of the window.
        ngram: Tokens of an n-gram; the window has one level fewer.
        floor: As ``Mixed`` has it.
    """

    name = "mixed-window"
    calibrated = True
    remembers = True
    needs = frozenset({"top"})
    window: int = option(15, least=0)
    ngram: int = option(5, least=2)
    floor: float | None = option(None, least=0.0)

    def check(self, parts: Parts) -> None:
        super().check(parts)
        Lookahead().check(parts)  # which needs trees

    def make(self, parts: Parts) -> WithWindow:
        self.check(parts)
        window = LookaheadDrafter(self.window, self.ngram, 1, text=False)
        return WithWindow(Mixed(floor=self.floor, heads=False).make(parts), window)
