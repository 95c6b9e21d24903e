"""How much to draft: a fixed number of tokens, or just what pays."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from foretoken.core.draft import Draft

MIN_SECONDS = 1e-9  # of a step, where the clock stands still


class Budget(Protocol):
    """A policy of its own, neither the drafter's nor the loop's."""

    def max_draft_tokens(self) -> int:
        """The most guesses that the next draft may have; 0 for no draft at all."""
        ...

    def choose(self, draft: Draft) -> Draft:
        """The nodes of a draft that are worth a row of the forward; lookahead rows all together or not at all."""
        ...

    def observe(self, draft: Draft, num_accepted: int, seconds: float, draft_seconds: float) -> None:
        """Learn from a step.

        Args:
            draft: What was verified.
            num_accepted: How much of it was right.
            seconds: How long the step took in all.
            draft_seconds: How much of that the drafter took, to propose and to observe.
        """
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

    def choose(self, draft: Draft) -> Draft:
        guesses = range(draft.num_guesses)
        if len(guesses) <= self.num_tokens:
            return draft
        return draft.select([*guesses[: self.num_tokens], *range(draft.num_guesses, len(draft))])

    def observe(self, draft: Draft, num_accepted: int, seconds: float, draft_seconds: float) -> None:
        pass


class Median:
    """The median of the latest numbers: one that stands out, such as a collection of garbage, does not move it."""

    SAMPLES = 7

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=self.SAMPLES)
        self.value = 0.0

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, number: float) -> None:
        """Take one more."""
        self._latest.append(number)
        self.value = sorted(self._latest)[(len(self._latest) - 1) // 2]


class CostCurve:
    """Seconds of a step over n rows, learned from the steps themselves.

    Steps of 1, 2, 3-4, 5-8, ... rows are taken together, and lines drawn between their medians. Beyond the most rows
    that were tried the last line goes on; from single rows alone, each further row is taken to cost as much. What was
    not tried for long, or before the time of a single row changed, is forgotten.

    Args:
        seconds: What is known already, rows to seconds.

    >>> curve = CostCurve({1: 0.010, 9: 0.014})
    >>> round(curve.seconds(5), 4), round(curve.seconds(17), 4)
    (0.012, 0.018)
    """

    ENOUGH = 3  # samples, below which a slow one may mislead
    MAX_AGE = 400  # steps

    def __init__(self, seconds: Mapping[int, float] | None = None) -> None:
        self._groups: dict[int, tuple[Median, Median]] = {}  # rows and seconds
        self._last: dict[int, int] = {}  # step in which a group was tried
        self._step = 0
        for rows, value in (seconds or {}).items():
            for _ in range(self.ENOUGH):
                self.add(rows, value)

    def add(self, num_rows: int, seconds: float) -> None:
        """A step over so many rows took so long."""
        self._step += 1
        group = (num_rows - 1).bit_length()
        if group not in self._groups:
            self._groups[group] = Median(), Median()
        rows, times = self._groups[group]
        before = times.value
        rows.add(num_rows)
        times.add(seconds if seconds > MIN_SECONDS else MIN_SECONDS)
        self._last[group] = self._step
        # Where single rows take another time than before, so do all others.
        changed = group == 0 and before and not 2 / 3 < times.value / before < 3 / 2
        oldest = self._step if changed else self._step - self.MAX_AGE
        for other in [old for old, step in self._last.items() if step < oldest and old]:
            del self._groups[other], self._last[other]

    @property
    def num_plain(self) -> int:
        """How many of the samples are of a single row."""
        return len(self._groups[0][1]) if 0 in self._groups else 0

    @property
    def most_rows(self) -> int:
        """The most rows that were tried; 0 for none."""
        return int(self._groups[max(self._groups)][0].value) if self._groups else 0

    def seconds(self, num_rows: int) -> float:
        """The expected time of a step; 0 where nothing was tried."""
        return self.bounds(num_rows)[0][-1]

    def median(self, num_rows: int) -> float:
        """The median of the steps that are taken together with those of so many rows; 0 for none."""
        group = self._groups.get((num_rows - 1).bit_length())
        return group[1].value if group else 0.0

    def bounds(self, num_rows: int) -> tuple[list[float], list[float]]:
        """For 1, 2, .. ``num_rows`` rows the expected time, and the least that it may turn out to be.

        The two differ where there are too few samples.
        """
        if not self._groups:
            return [0.0] * num_rows, [0.0] * num_rows
        before, time, floor, slope = 0, 0.0, 0.0, 0.0
        expected: list[float] = []
        least: list[float] = []
        for group in sorted(self._groups):
            rows, at_rows = int(self._groups[group][0].value), self._groups[group][1].value
            slope = (at_rows - time) / (rows - before)
            line = [*(time + slope * i for i in range(1, rows - before)), at_rows]
            enough = len(self._groups[group][1]) >= self.ENOUGH
            floor = at_rows if enough or not floor else min(floor, at_rows)
            expected += line
            least += line if enough else [floor] * len(line)
            before, time = rows, at_rows
            if before >= num_rows:
                break
        slope = max(0.0, slope)
        expected += [time + slope * i for i in range(1, num_rows - before + 1)]
        least += [floor] * (num_rows - before)
        return expected[:num_rows], least[:num_rows]

    def as_dict(self) -> dict[int, float]:
        """Rows to seconds, to be stored and given to another curve."""
        return {int(rows.value): times.value for rows, times in self._groups.values()}


class AdaptiveBudget:
    """Draft just what pays, so that drafting is not slower than plain decoding but for the little that trying costs.

    A step over n rows takes t(n), learned from the steps, and the time of the draft, which is spent by then; the tokens
    that it is expected to commit are 1 and the sum of the path probabilities of the nodes. Nodes join in order of path
    probability as far as the expected tokens per second rise, which may be not at all.

    - Where drafts keep less than they promise, promises are discounted.
    - A size that was hardly tried may be cheaper than it seems. It is tried at a risk that a small share of the time
      pays for, at most twice as large as any before.
    - Lookahead rows join together, where what they are expected to bring in later steps pays for them now.
    - Where the drafter's answers are not worth its own time, it is asked less often.
    - Now and then a step is plain, so that t(1) stays known.

    Several threads may share one; what a forward costs is then what it costs among the others.

    Args:
        max_tokens: The most guesses of a draft.
        costs: What is known of t(n) already.
    """

    MARGIN = 1.02  # by which a draft must beat a plain step, since times are noisy
    UNKNOWN_PROB = 0.6  # of a node whose drafter says nothing
    FORGET = 0.02  # of what drafts promised and kept, each time that the drafter is asked
    PRIOR = 2.0  # tokens that count as promised and kept before any was
    PLAIN_STEPS = 3  # that t(1) is first learned from
    PLAIN_EVERY = 50  # steps
    MAX_PAUSE = 15  # steps between two questions
    PRICED_ROWS = 8  # that must have been tried before a price is named: the second may cost as much as ten more
    CREDIT = 8.0  # plain steps that may at once be risked on trying a size
    CREDIT_RATE = 0.01  # share of the time that may be so in the long run

    def __init__(self, max_tokens: int = 64, costs: Mapping[int, float] | None = None) -> None:
        if max_tokens < 0:
            raise ValueError(f"a budget of {max_tokens} tokens is negative")
        self.max_tokens = max_tokens
        self.costs = CostCurve(costs)
        self._lock = threading.Lock()
        self._promised = self._kept = 0.0  # tokens, of late
        self._credit = self.CREDIT
        self._since_plain = 0  # steps
        self._asked = False  # whether the drafter was, in this step
        self._drafting = Median()  # seconds that the drafter takes where it is asked
        self._gain = 0.05  # what asking saves of late, in plain steps
        self._pause = self._paused = 0  # steps between two questions, and how many of them have passed

    @property
    def discount(self) -> float:
        """What drafts keep of what they promise."""
        return min(1.5, (self.PRIOR + self._kept) / (self.PRIOR + self._promised))

    def seconds(self, num_rows: int) -> float:
        """What a forward over so many rows is expected to take; 0 where nothing was tried."""
        with self._lock:
            return self.costs.seconds(num_rows)

    def row_price(self) -> float | None:
        """What a further row costs, as a share of a forward over one; None where too few were tried to say."""
        with self._lock:
            rows = self.costs.most_rows
            if rows < self.PRICED_ROWS:
                return None
            return (self.costs.seconds(rows) / self.costs.seconds(1) - 1) / (rows - 1)

    def learn_cost(self, num_rows: int, seconds: float) -> None:
        """A forward over so many rows took so long."""
        with self._lock:
            self.costs.add(num_rows, seconds)

    def max_draft_tokens(self) -> int:
        with self._lock:
            self._since_plain += 1
            if self.costs.num_plain < self.PLAIN_STEPS or self._since_plain > self.PLAIN_EVERY:
                return 0
            if self._paused < self._pause:
                self._paused += 1
                return 0
            self._paused = 0
            return self.max_tokens

    def choose(self, draft: Draft) -> Draft:
        with self._lock:
            self._asked = True
            if not draft or not self.costs.num_plain:
                return Draft()
            values = self._values(draft)
            # A guess comes after its parent: it is no more probable, and of equals the first stays first.
            order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
            size = self._best_size([values[node] for node in order], self._sizes(draft, order))
        return draft if size == len(draft) else draft.select(sorted(order[:size]))

    def _sizes(self, draft: Draft, order: list[int]) -> list[int]:
        """How many of the nodes, in this order, may be verified: a few more than ever, and no part of the window."""
        most = min(len(order), 2 * self.costs.most_rows - 1)
        if not draft.num_lookahead:
            return list(range(1, most + 1))
        start = order.index(draft.num_guesses)  # the first lookahead row, and the others follow it
        end = start + draft.num_lookahead
        sizes = [size for size in range(1, most + 1) if not start < size < end]
        # A window is tried whole, however large, once it seems cheap enough for that.
        affordable = self.costs.seconds(1 + end) <= (1 + self._credit) * self.costs.seconds(1)
        return [*sizes, end] if most < end and affordable else sizes

    def _best_size(self, values: list[float], sizes: list[int]) -> int:
        """How many of the nodes, the most valuable first, are worth a row."""
        drafting = self._drafting.value
        expected, least = ([time + drafting for time in line] for line in self.costs.bounds(1 + len(values)))
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
            # No forward costs more than one for each row, so that where it seems to, it was something else.
            most = min(expected[hope_size] / plain, 1.0 + hope_size)
            price = most - tokens[hope_size] / (best_rate * plain)
            if price <= self._credit:
                self._credit -= max(0.0, price)
                return hope_size
        return best_size

    def observe(self, draft: Draft, num_accepted: int, seconds: float, draft_seconds: float) -> None:
        with self._lock:
            asked, self._asked = self._asked, False
            rows, forward = 1 + len(draft), seconds - draft_seconds
            before = self.costs.median(rows)
            self.costs.add(rows, forward)
            if before and abs(forward - before) > before / 3:
                self._since_plain += self.PLAIN_EVERY // 10  # the machine has changed: see what t(1) is now
            if not draft:
                self._since_plain = 0
            plain = self.costs.median(1)
            if not plain:
                return
            self._credit = min(self.CREDIT, self._credit + self.CREDIT_RATE * min(4.0, seconds / plain))
            if asked:
                self._drafting.add(draft_seconds if draft_seconds > 0 else 0.0)  # whatever the clock says
            if asked or draft:
                self._learn(draft, num_accepted, (self.costs.median(rows) + self._drafting.value) / plain)

    def _learn(self, draft: Draft, num_accepted: int, cost: float) -> None:
        """Learn from a step in which the drafter was asked, and which cost as much as so many plain ones."""
        self._promised -= self.FORGET * self._promised
        self._kept -= self.FORGET * self._kept
        if draft:
            self._promised += sum(self._path_probs(draft))
            self._kept += num_accepted
        gain = max(-1.0, 1 + num_accepted - cost)
        self._gain = min(0.5, max(-0.1, 0.95 * self._gain + 0.05 * gain))
        self._pause = min(self.MAX_PAUSE, 2 * self._pause + 1) if self._gain < 0 else 0

    def _values(self, draft: Draft) -> list[float]:
        """For each node, the tokens that its row is expected to bring; a lookahead row, what all of them do on average.

        In a step a guess brings one token if it and all before it are right.
        """
        num, discount = draft.num_guesses, self.discount
        later = sum(draft.probs[num:]) / max(1, draft.num_lookahead)
        return [path * discount for path in self._path_probs(draft)] + [later] * draft.num_lookahead

    def _path_probs(self, draft: Draft) -> list[float]:
        """For each guess, how likely it and all before it are right.

        Where the nodes were sampled their own chances must not decide, or other tokens would come than the target's.
        """
        probs = draft.probs if draft.probs and not draft.laws else (self.UNKNOWN_PROB,) * len(draft)
        paths: list[float] = []
        for prob, parent in zip(probs[: draft.num_guesses], draft.parents, strict=False):
            if not 0.0 <= prob <= 1.0:  # not a number, for one
                prob = 1.0 if prob > 1.0 else 0.0
            paths.append(prob * paths[parent] if parent >= 0 else prob)
        return paths
