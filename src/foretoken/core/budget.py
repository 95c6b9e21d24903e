"""How much to draft: a fixed number of tokens, or just what pays."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from foretoken.core.draft import Draft


class Budget(Protocol):
    """A policy of its own, neither the drafter's nor the loop's."""

    def max_draft_tokens(self) -> int:
        """The most nodes that the next draft may have; 0 for no draft at all."""
        ...

    def choose(self, draft: Draft) -> Draft:
        """The nodes of a draft that are worth a row of the forward."""
        ...

    def observe(self, draft: Draft, num_accepted: int, seconds: float) -> None:
        """Learn from a step: what was verified, how much of it was right, how long the step took in all."""
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
        return draft if len(draft) <= self.num_tokens else draft.select(range(self.num_tokens))

    def observe(self, draft: Draft, num_accepted: int, seconds: float) -> None:
        pass


class CostCurve:
    """Seconds of a step over n rows, learned from the steps themselves.

    Steps of 1, 2, 3-4, 5-8, ... rows are taken together: the median of the latest, and lines between those. Beyond what
    was tried the time is taken to stay the same, and what was not tried for long is forgotten: so it is tried again.

    Args:
        seconds: What is known already, rows to seconds.

    >>> curve = CostCurve({1: 0.010, 9: 0.014})
    >>> curve.seconds(5), curve.seconds(100)
    (0.012, 0.014)
    """

    SAMPLES = 9  # that a median is taken of
    MAX_AGE = 400  # steps

    def __init__(self, seconds: Mapping[int, float] | None = None) -> None:
        self._samples: dict[int, deque[tuple[int, float]]] = {}
        self._points: list[tuple[float, float]] = []  # rows and seconds of each group, by rows
        self._last: dict[int, int] = {}  # step in which a group was tried
        self._step = 0
        for rows, value in (seconds or {}).items():
            self.add(rows, value)

    def add(self, num_rows: int, seconds: float) -> None:
        """A step over so many rows took so long."""
        self._step += 1
        group = (num_rows - 1).bit_length()
        self._samples.setdefault(group, deque(maxlen=self.SAMPLES)).append((num_rows, seconds))
        self._last[group] = self._step
        for other in [old for old, step in self._last.items() if self._step - step > self.MAX_AGE]:
            del self._samples[other], self._last[other]
        self._points = sorted(
            (statistics.fmean(rows for rows, _ in samples), statistics.median(time for _, time in samples))
            for samples in self._samples.values()
        )

    @property
    def num_plain(self) -> int:
        """How many of the samples are of a single row."""
        return len(self._samples.get(0, ()))

    def seconds(self, num_rows: int) -> float:
        """The expected time of a step.

        Raises:
            IndexError: If nothing was tried yet.
        """
        points = self._points
        i = bisect_left(points, (num_rows, 0.0))
        if i == len(points):
            return points[-1][1]
        if i == 0:
            return points[0][1]
        (below, low), (above, high) = points[i - 1], points[i]
        return low + (high - low) * (num_rows - below) / (above - below)

    def as_dict(self) -> dict[int, float]:
        """Rows to seconds, to be stored and given to another curve."""
        return {round(rows): seconds for rows, seconds in self._points}


class AdaptiveBudget:
    """Draft just what pays: never slower than plain decoding, on any text and any machine.

    A step over n rows takes t(n), learned from the steps; the tokens that it is expected to commit are 1 and the sum of
    the path probabilities of the nodes. Nodes join in order of path probability as far as the expected tokens per
    second rise, which may be not at all. Where drafts keep less than they promise, promises are discounted; where
    nothing pays for long, the drafter is asked less often. Now and then a step is plain, so that t(1) stays known.

    Args:
        max_tokens: The most nodes of a draft.
        costs: What is known of t(n) already.
    """

    MARGIN = 1.02  # by which a draft must beat a plain step, since times are noisy
    UNKNOWN_PROB = 0.6  # of a node whose drafter says nothing
    LEARNING_RATE = 0.02  # of the discount
    PLAIN_STEPS = 3  # that t(1) is first learned from
    PLAIN_EVERY = 50  # steps
    PATIENCE = 8  # steps in which nothing paid, after which the drafter is asked only every other time, and so on
    MAX_PAUSE = 8  # steps between two questions

    def __init__(self, max_tokens: int = 32, costs: Mapping[int, float] | None = None) -> None:
        if max_tokens < 0:
            raise ValueError(f"a budget of {max_tokens} tokens is negative")
        self.max_tokens = max_tokens
        self.costs = CostCurve(costs)
        self.discount = 1.0
        self._since_plain = 0  # steps
        self._unpaid = 0  # drafts in a row of which nothing was worth a row
        self._pause = 0  # steps until the drafter is asked again

    def max_draft_tokens(self) -> int:
        self._since_plain += 1
        if self.costs.num_plain < self.PLAIN_STEPS or self._since_plain > self.PLAIN_EVERY:
            return 0
        if self._pause > 0:
            self._pause -= 1
            return 0
        return self.max_tokens

    def choose(self, draft: Draft) -> Draft:
        paths = self._path_probs(draft)
        order = sorted(range(len(paths)), key=lambda node: (-paths[node], node))
        best_rate, best_size, tokens = self.MARGIN / self.costs.seconds(1), 0, 0.0
        for size, node in enumerate(order, start=1):
            tokens += paths[node] * self.discount
            rate = (1 + tokens) / self.costs.seconds(1 + size)
            if rate > best_rate:
                best_rate, best_size = rate, size
        self._unpaid = 0 if best_size else self._unpaid + 1
        self._pause = min(self.MAX_PAUSE, self._unpaid // self.PATIENCE)
        return draft if best_size == len(draft) else draft.select(sorted(order[:best_size]))

    def observe(self, draft: Draft, num_accepted: int, seconds: float) -> None:
        self.costs.add(1 + len(draft), seconds)
        if draft:
            promised = sum(self._path_probs(draft))
            self.discount += self.LEARNING_RATE * (num_accepted - self.discount * promised)
            self.discount = min(1.5, max(0.1, self.discount))
        else:
            self._since_plain = 0
            self.discount += self.LEARNING_RATE / 4 * (1 - self.discount)

    def _path_probs(self, draft: Draft) -> list[float]:
        """For each node, how likely it and all nodes before it are right."""
        paths: list[float] = []
        for node, parent in enumerate(draft.parents):
            prob = draft.probs[node] if draft.probs else self.UNKNOWN_PROB
            paths.append(prob * paths[parent] if parent >= 0 else prob)
        return paths
