"""How much to draft: a fixed number of tokens, or as many as should save time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from foretoken.core.contracts import Step
from foretoken.core.costs import CostCurve, LearnedCosts, Median
from foretoken.core.draft import Draft
from foretoken.core.numbers import whole


class Budget(Protocol):
    """A policy of its own, neither the drafter's nor the loop's."""

    def max_draft_tokens(self) -> int:
        """The most guesses that the next draft may have; 0 for no draft at all."""
        ...

    def choose(self, draft: Draft, num_reread: int | None = None) -> Draft:
        """The nodes of a draft that are worth a row of the forward; lookahead rows all together or not at all.

        Args:
            draft: What the drafter proposed.
            num_reread: How many committed tokens the forward reads again in any case; see ``Target``.
        """
        ...

    def observe(self, step: Step, seconds: float) -> None:
        """Learn from a step.

        Args:
            step: What was verified, how much of it was right, and what the drafter took.
            seconds: How long the step took in all, the drafter with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """The same number every time; 7 is ANPD's K (arXiv 2404.08698), whose gain is flat from 6 to 8.

    Raises:
        ForetokenError: If ``num_tokens`` is no whole number from 0 on.
    """

    num_tokens: int = 7

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", whole("num_tokens", self.num_tokens, 0))

    def max_draft_tokens(self) -> int:
        return self.num_tokens

    def choose(self, draft: Draft, num_reread: int | None = None) -> Draft:
        if draft.num_guesses <= self.num_tokens:
            return draft
        return draft.with_guesses(range(self.num_tokens))

    def observe(self, step: Step, seconds: float) -> None:
        pass


class AdaptiveBudget:
    """Draft only what is expected to save time.

    Compared with plain decoding it loses at most a bounded exploration cost.

    A step over n rows takes t(n) and the time of the draft, which is spent by then. The steps correct what is known of
    t(n). The tokens that a step is expected to commit are 1 and the sum of the path probabilities of the nodes. Nodes
    join in order of path probability as far as the expected tokens per second rise, which may be not at all.

    - Where drafts keep less than they promise, promises are discounted.
    - A size that was hardly tried may be cheaper than it seems. It is tried at a risk that a small share of the time
      pays for, at most twice as large as any before.
    - Lookahead rows join together, where what they are expected to bring in later steps pays for them now.
    - Where the drafter's answers are not worth its own time, it is asked less often.
    - Now and then a step is plain, so that t(1) stays known.

    It learns from a text, so it belongs to one answer. The next answer of the same namespace may begin with a copy.

    Args:
        max_tokens: The most guesses of a draft.
        costs: What is known of t(n): a curve, or rows to seconds. If None, nothing.

    Raises:
        ForetokenError: If ``max_tokens`` is no whole number from 0 on.
    """

    MARGIN = 1.02  # by which a draft must beat a plain step, since times are noisy
    UNKNOWN_PROB = 0.6  # of a node whose drafter says nothing
    FORGET = 0.02  # of what drafts promised and kept, each time that the drafter is asked
    PRIOR = 2.0  # tokens that count as promised and kept before any was
    PLAIN_SAMPLES = 2  # that t(1) is first learned from
    PLAIN_EVERY = 50  # steps
    MAX_PAUSE = 15  # steps between two questions
    VAIN = 0.004  # share of the time that questions may take in vain: the more one loses, the longer the pause
    CREDIT = 8.0  # plain steps that may at once be risked on trying a size
    CREDIT_RATE = 0.01  # share of the time that may be so in the long run

    def __init__(self, max_tokens: int = 64, costs: CostCurve | Mapping[int, float] | None = None) -> None:
        self.max_tokens = whole("max_tokens", max_tokens, 0)
        self.costs = LearnedCosts(costs if isinstance(costs, CostCurve) else CostCurve(costs or {}))
        self._promised = self._kept = 0.0  # tokens, of late
        self._credit = self.CREDIT
        self._charged = 0.0  # for this step
        self._since_plain = 0  # steps
        self._asked = False  # whether the drafter was, in this step
        self._drafting = Median()  # seconds that the drafter takes where it is asked
        self._gain = 0.05  # what asking saves of late, in plain steps
        self._pause = self._paused = 0  # steps between two questions, and how many of them have passed

    @property
    def discount(self) -> float:
        """What drafts keep of what they promise."""
        return min(1.5, (self.PRIOR + self._kept) / (self.PRIOR + self._promised))

    def copy(self) -> AdaptiveBudget:
        """Another budget that knows as much."""
        return deepcopy(self)

    def max_draft_tokens(self) -> int:
        self._since_plain += 1
        self._asked = False  # also where a step was begun that nobody came back to tell of
        self._credit, self._charged = self._credit + self._charged, 0.0
        if self.costs.num_plain < self.PLAIN_SAMPLES or self._since_plain > self.PLAIN_EVERY:
            return 0
        if self._paused < self._pause:
            self._paused += 1
            return 0
        self._paused = 0
        return self.max_tokens

    def choose(self, draft: Draft, num_reread: int | None = None) -> Draft:
        self._asked = True
        if not draft or not self.costs.num_plain:
            return Draft()
        values = self._values(draft)
        order = self._order(draft, values)
        sizes = self._sizes(draft, order, num_reread or 0)
        size = self._best_size([values[node] for node in order], sizes, num_reread)
        return draft if size == len(draft) else draft.select(sorted(order[:size]))

    def _order(self, draft: Draft, values: list[float]) -> list[int]:
        """The nodes, the most valuable first, each after its parent; lookahead rows stand together."""
        ranks = values
        if draft.window_parents:  # the window comes after the last guess that it hangs on
            last = min(values[node] for node in draft.window_parents)
            ranks = [*values[: draft.num_guesses], *(min(last, value) for value in values[draft.num_guesses :])]
        # A guess is never more probable than its parent, and the sort keeps the order of equals.
        return sorted(range(len(ranks)), key=ranks.__getitem__, reverse=True)

    def _sizes(self, draft: Draft, order: list[int], num_reread: int) -> list[int]:
        """How many of the nodes, in this order, may be verified: a few more than ever, and no part of the window."""
        most = min(len(order), 2 * self.costs.most_rows - 1 - num_reread)
        if not draft.num_lookahead:
            return list(range(1, most + 1))
        start = order.index(draft.num_guesses)  # the first lookahead row, and the others follow it
        end = start + draft.num_lookahead
        sizes = [size for size in range(1, most + 1) if not start < size < end]
        # A window is tried whole, however large, once it seems cheap enough for that.
        affordable = self.costs.seconds(1 + end) <= (1 + self._credit) * self.costs.seconds(1)
        return [*sizes, end] if most < end and affordable else sizes

    def _best_size(self, values: list[float], sizes: list[int], num_reread: int | None) -> int:
        """How many of the nodes, the most valuable first, are worth a row."""
        drafting = self._drafting.value
        lines = self.costs.bounds(1 + (num_reread or 0) + len(values))
        if num_reread is not None:
            lines = _with_rereading(lines[0], values, num_reread), _with_rereading(lines[1], values, num_reread)
        expected, least = ([time + drafting for time in line] for line in lines)
        plain = expected[0]
        tokens = list(accumulate(values, initial=1.0))
        best_rate, best_size = self.MARGIN / plain, 0
        hope, hope_size = 0.0, 0
        for size in sizes:
            if tokens[size] > best_rate * expected[size]:
                best_rate, best_size = tokens[size] / expected[size], size
            if tokens[size] > hope * least[size]:
                hope, hope_size = tokens[size] / least[size], size
        if hope > self.MARGIN * best_rate:
            # n rows never cost more than n one-row forwards; a larger measurement is an outlier.
            most = min(expected[hope_size] / plain, 1.0 + hope_size)
            price = most - tokens[hope_size] / (best_rate * plain)
            if price <= self._credit:
                self._charged = max(0.0, price)
                self._credit -= self._charged
                return hope_size
        return best_size

    def observe(self, step: Step, seconds: float) -> None:
        draft, num_accepted, draft_seconds = step.draft, step.num_accepted, step.draft_seconds
        asked, self._asked = self._asked, False
        rows, forward = step.num_rows, seconds - draft_seconds
        before = self.costs.median(rows)
        says_the_price = self.costs.add(rows, forward)
        charged, self._charged = self._charged, 0.0
        if not says_the_price:
            self._credit += charged  # nothing was learned for it: try again
        if says_the_price and before and abs(forward - before) > before / 3:
            self._since_plain += self.PLAIN_EVERY // 10  # the machine has changed: see what t(1) is now
        if rows == 1:
            self._since_plain = 0
        plain = self.costs.median(1)
        if not plain:
            return
        self._credit = min(self.CREDIT, self._credit + self.CREDIT_RATE * min(4.0, seconds / plain))
        if asked:
            self._drafting.add(draft_seconds if draft_seconds > 0 else 0.0)  # whatever the clock says
        if asked or draft:
            self._learn_promises(draft, num_accepted)
            cost = self.costs.median(rows) or plain  # as much at least, where it is not known yet
            if step.num_reread is not None:  # an earlier draft is to blame for those, and this one for what is to come
                num_later = step.num_reread + 1 + num_accepted if num_accepted < len(draft) else 0
                cost += self._rereading(num_later) - self._rereading(step.num_reread)
            self._learn_gain(1 + num_accepted - (cost + self._drafting.value) / plain)

    def _rereading(self, num_reread: int) -> float:
        """Seconds by which reading so many tokens again makes a plain step longer."""
        return max(0.0, self.costs.seconds(1 + num_reread) - self.costs.seconds(1))

    def _learn_promises(self, draft: Draft, num_accepted: int) -> None:
        """Learn from a step in which the drafter was asked."""
        self._promised -= self.FORGET * self._promised
        self._kept -= self.FORGET * self._kept
        if draft:
            self._promised += sum(self._path_probs(draft))
            self._kept += num_accepted

    def _learn_gain(self, gain: float) -> None:
        """Learn from a step in which the drafter was asked, and which saved so many plain ones."""
        self._gain = min(0.5, max(-0.1, 0.97 * self._gain + 0.03 * max(-1.0, gain)))
        self._pause = min(self.MAX_PAUSE, int(max(0.0, -self._gain) / self.VAIN))

    def _values(self, draft: Draft) -> list[float]:
        """For each node, the tokens that its row is expected to bring; a lookahead row, what all of them do on average.

        In a step a guess brings one token if it and all before it are right.
        """
        num, discount = draft.num_guesses, self.discount
        later = sum(draft.probs[num:]) / max(1, draft.num_lookahead)
        if not 0.0 <= later < math.inf:  # such as not a number
            later = 0.0
        return [path * discount for path in self._path_probs(draft)] + [later] * draft.num_lookahead

    def _path_probs(self, draft: Draft) -> list[float]:
        """For each guess, how likely it and all before it are right."""
        probs = draft.probs or (self.UNKNOWN_PROB,) * len(draft)
        paths: list[float] = []
        for prob, parent in zip(probs[: draft.num_guesses], draft.parents, strict=False):
            if not 0.0 <= prob <= 1.0:  # such as not a number
                prob = 1.0 if prob > 1.0 else 0.0
            paths.append(prob * paths[parent] if parent >= 0 else prob)
        return paths


def _with_rereading(line: list[float], values: list[float], num_reread: int) -> list[float]:
    """The seconds that a chain of 0, 1, .. guesses adds to a step, if a rejection has accepted tokens read again.

    What is read again already does not count, since that is so for any draft. If the n-th guess is the first wrong one,
    the tokens before it join what the next forward reads again, and so does the last committed one.

    Args:
        line: Seconds of a forward over 1, 2, .. rows.
        values: For each guess, how likely it and all before it are right.
        num_reread: How many committed tokens this forward reads again.
    """
    plain, before = line[0], line[num_reread]
    later, right = 0.0, 1.0
    made = [plain]
    for size, value in enumerate(values, 1):
        still_right = min(right, value)
        later += (right - still_right) * (line[num_reread + size] - plain)
        right = still_right
        made.append(plain + line[num_reread + size] - before + later)
    return made
