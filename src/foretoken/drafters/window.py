"""Lookahead's window beside the guesses of another drafter, which sees what the target says in its rows."""

from __future__ import annotations

from collections.abc import Sequence

from foretoken.core.contracts import Drafter, Need, Step, needs_of
from foretoken.core.draft import Draft
from foretoken.drafters.lookahead import LookaheadDrafter


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
