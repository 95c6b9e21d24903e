"""How much to draft for a whole batch: the rows that give the most expected tokens per second of the next step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foretoken.core.costs import CostCurve, LearnedCosts
from foretoken.ngrams.arrays import Floats, Ints


class BatchBudget:
    """All requests of a batch compete for rows: drafting for one must not slow down the others.

    A plain step over n requests takes P(n) and commits n tokens. With d drafted tokens it takes D(n + d) and commits
    the sum of their path probabilities besides. Tokens join, the most probable path first, as far as the expected
    tokens per second rise. They must beat a plain step by ``MARGIN``, or nothing is drafted. P and D are learned from
    the steps.

    - The first steps of each size of batch are plain, and so is one in every ``PLAIN_EVERY``, so that P is known
      before anything is lost. Sizes are taken together in powers of two.
    - While D is not known it is P, which is known of other sizes, or rises as if each row cost as much as the first.
      Where little is known of it, a cheaper price is tried on credit.
    - At most twice as many rows are tried as ever before.
    - Where no draft was worth its row, steps pass in which none is looked for, up to ``MAX_REST``.
    - What drafts keep of what they promise discounts the promises.
    - Each size of batch has an account, in plain steps. What a step with drafts saved or lost is booked there, and
      every step adds a little. Nothing is drafted while it is empty. So whatever was thought of D or of the drafts,
      drafting loses little more than the account began with, and then the small share of the time that it is given.

    Args:
        costs: What is known of a step over n rows before the first. If None, nothing.
    """

    MARGIN = 1.02
    PLAIN_SAMPLES = 3  # the first over a number of rows may be left out, see LearnedCosts
    PLAIN_EVERY = 50
    FORGET = 0.02  # of what drafts promised and kept, each step
    PRIOR = 2.0  # tokens that count as promised and kept before any was
    CREDIT = 1.0  # plain steps that trying sizes may be expected to cost, at once
    START = 1.0  # plain steps in an account at first
    LEAST, MOST = -1.0, 8.0
    INTEREST = 0.01  # of a plain step, each step
    MAX_REST = 15  # steps

    def __init__(self, costs: CostCurve | None = None) -> None:
        self._known = costs or CostCurve()
        self._plain, self._drafted = LearnedCosts(self._known), LearnedCosts(CostCurve())
        self._sizes: dict[int, SizeOfBatch] = {}
        self._promised = self._kept = 0.0
        self._credit = self.CREDIT

    @property
    def discount(self) -> float:
        """What drafts keep of what they promise."""
        return min(1.5, (self.PRIOR + self._kept) / (self.PRIOR + self._promised))

    def _size(self, num_requests: int) -> SizeOfBatch:
        return self._sizes.setdefault((num_requests - 1).bit_length(), SizeOfBatch(self.START))

    def allows(self, num_requests: int) -> bool:
        """Whether the next step may have drafts at all."""
        size = self._size(num_requests)
        size.since_plain += 1
        return size.num_plain >= self.PLAIN_SAMPLES and size.since_plain <= self.PLAIN_EVERY and size.account > 0

    def rest(self, num_requests: int, is_asked: bool) -> int:
        """How many steps to take without looking for drafts, after one that has none.

        Args:
            num_requests: How many requests it decodes.
            is_asked: Whether drafts were looked for, and none was worth its row.
        """
        size = self._size(num_requests)
        if is_asked:
            size.rest = min(self.MAX_REST, 2 * size.rest + 1)
            return size.rest
        return self.MAX_REST if size.account <= -self.MAX_REST * self.INTEREST else 0

    def _times(self, num_requests: int, num_drafted: int) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        """The seconds of a plain step, and of steps with 1, 2, .. drafted tokens: expected, and the least possible."""
        most = num_requests + num_drafted
        plain = np.array(self._plain.bounds(most)[0])
        now = plain[num_requests - 1]
        if self._drafted.most_rows == 0:
            expected, least = plain, np.array(self._plain.bounds(most)[1])
        else:
            expected, least = (np.array(line) for line in self._drafted.bounds(most))
        rows = slice(num_requests, most)
        # A row never costs more than one of a plain step does; a longer time is an outlier, such as a first forward's.
        dearest = now * (1 + np.arange(1, num_drafted + 1) / num_requests)
        return float(now), *(np.clip(line[rows], now, dearest) for line in (expected, least))

    def floor(self, num_requests: int, num_drafted: int) -> float:
        """The least path probability that can be worth a row."""
        plain, _, least = self._times(num_requests, num_drafted)
        cheapest = float(np.min((least - plain) / np.arange(1, num_drafted + 1)))
        return num_requests * cheapest / (plain * self.discount)

    def choose(self, paths: Floats, num_requests: int) -> Ints:
        """How many tokens of each draft are worth their rows.

        Args:
            paths: float32 [rows, K], how likely each token and all before it are right; 0 where there is none.
            num_requests: How many requests the next step decodes.
        """
        flat = np.minimum.accumulate(paths, axis=1).ravel()  # rounding must not put a token before its parent
        order = np.argsort(-flat, kind="stable")[: np.count_nonzero(flat)]
        num = self._best_number(flat[order], num_requests) if len(order) else 0
        return np.bincount(order[:num] // paths.shape[1], minlength=len(paths)).astype(np.int32)

    def _best_number(self, values: Floats, num_requests: int) -> int:
        """How many of the drafted tokens, the most probable first, to verify."""
        tried = max(self._drafted.most_rows, num_requests)
        values = values[: max(1, 2 * tried - num_requests)]
        plain, expected, least = self._times(num_requests, len(values))
        tokens = num_requests + self.discount * np.cumsum(values, dtype=np.float64)
        rate = self.MARGIN * num_requests / plain
        best = int(np.argmax(tokens / expected))
        num = best + 1 if tokens[best] / expected[best] > rate else 0
        rate = max(rate, tokens[best] / expected[best])
        hope = int(np.argmax(tokens / least))
        if tokens[hope] / least[hope] > self.MARGIN * rate:
            price = (min(expected[hope], plain * (2 + hope)) - tokens[hope] / rate) / plain  # in plain steps
            if price <= self._credit:
                self._credit -= max(0.0, price)
                return hope + 1
        return num

    def observe(self, num_requests: int, num_drafted: int, seconds: float, promised: float, num_kept: int) -> None:
        """Learn from a step that only decoded.

        Args:
            num_requests: How many requests it decoded.
            num_drafted: How many drafted tokens it verified, of all requests.
            seconds: What it took, our own time with it.
            promised: The sum of their path probabilities.
            num_kept: How many were accepted.
        """
        size = self._size(num_requests)
        self._credit = min(self.CREDIT, self._credit + self.INTEREST)
        size.account = min(self.MOST, size.account + self.INTEREST)
        if num_drafted == 0:
            self._plain.add(num_requests, seconds)
            size.num_plain, size.since_plain = size.num_plain + 1, 0
            return
        size.rest = 0
        self._drafted.add(num_requests + num_drafted, seconds)
        self._promised += promised - self.FORGET * self._promised
        self._kept += num_kept - self.FORGET * self._kept
        plain, taken = self._plain.seconds(num_requests), self._drafted.seconds(num_requests + num_drafted)
        taken = min(taken, plain * (1 + num_drafted / num_requests))
        if plain > 0:
            saved = 1 + num_kept / num_requests - taken / plain
            size.account = min(self.MOST, max(self.LEAST, size.account + saved))


@dataclass
class SizeOfBatch:
    """What was learned of batches of one size.

    Args:
        account: Plain steps that drafting may lose.
        num_plain: Plain steps that were timed.
        since_plain: Steps since the last of them.
        rest: How many steps passed without a look for drafts, the last time that none was worth its row.
    """

    account: float
    num_plain: int = 0
    since_plain: int = 0
    rest: int = 0
