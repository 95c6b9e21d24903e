"""Draft model: a smaller language model guesses what the larger one will say, one forward per token.

Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318). Under sampling both models choose with
the same noise of (seed, position), so that they often choose alike (Daliri et al. 2024, arXiv 2408.07978). How far to
draft follows from what the small model's own probabilities have been worth so far.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from foretoken.core.budget import Median
from foretoken.core.contracts import Scores, Step, Target
from foretoken.core.draft import Draft


class RewindableTarget(Target, Protocol):
    """A target whose cache can also go back to any earlier length."""

    @property
    def num_cached(self) -> int:
        """How many tokens the cache holds."""
        ...

    def rewind(self, num_tokens: int) -> None:
        """Leave only the first ``num_tokens`` tokens in the cache; what was scored and not kept goes too."""
        ...


class Share:
    """How often something held, of late: a mean over at most ``MEMORY`` times, begun with a belief.

    Args:
        value: What to believe at first, a share of 1.
    """

    PRIOR = 4.0  # times that the belief counts for
    MEMORY = 500.0  # times

    def __init__(self, value: float) -> None:
        self.value, self._times = value, self.PRIOR

    def add(self, held: bool) -> None:
        """It held this time, or not."""
        self._times = min(self._times + 1, self.MEMORY)
        self.value += (held - self.value) / self._times


class Calibration:
    """How often a guess of each confidence is right, learned from the guesses judged; at first as often as it says.

    >>> calibration = Calibration()
    >>> for _ in range(100):
    ...     calibration.add(0.97, False)
    >>> calibration.prob(0.97) < 0.1 and calibration.prob(0.85) > 0.8
    True
    """

    EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)

    def __init__(self) -> None:
        edges = (0.0, *self.EDGES, 1.0)
        self._shares = [Share((low + high) / 2) for low, high in pairwise(edges)]
        self._all = Share(0.5)

    @property
    def mean(self) -> float:
        """How often a guess is right whose confidence is not known yet, given that those before it were."""
        return self._all.value

    def prob(self, confidence: float) -> float:
        """The chance that a guess of this confidence is right."""
        return self._shares[bisect(self.EDGES, confidence)].value

    def add(self, confidence: float, right: bool) -> None:
        """A guess of this confidence was judged."""
        self._shares[bisect(self.EDGES, confidence)].add(right)
        self._all.add(right)


class DraftModel:
    """Draft a chain with a smaller model, as far as a further token is worth the smaller model's time.

    The draft's tokens stay in its cache, so that accepted ones are not read again.

    Args:
        target: The smaller model, of the same vocabulary. Give it the larger one's seed, temperature and processors, so
            that it chooses as that would; processors that keep a state as deep copies, since it asks them about tokens
            that never come to be. Its ``max_length`` ends the drafts.
        floor: The fewest tokens that a further forward must be expected to bring; 0 drafts as much as is asked for.
            None learns it by the clock: what the time of a forward brings without it.
    """

    FORGET = 0.1  # of the tokens and seconds of late, each step

    def __init__(self, target: RewindableTarget, *, floor: float | None = None) -> None:
        self.target, self.floor = target, floor
        self.calibration = Calibration()
        self._read: list[int] = []  # what the cache holds, and perhaps more
        self._num_agreed = 0  # how many of these are known to begin the context
        self._confidences: list[float] = []  # of the last draft
        self._forward_seconds = Median()  # of a forward of one row, with its choice
        self._tokens = self._seconds = 0.0  # of late, in steps that were drafted for
        self._started: float | None = None

    @property
    def price(self) -> float:
        """What a further forward costs: the tokens that its time brings otherwise."""
        if self.floor is not None:
            return self.floor
        return self._forward_seconds.value * self._tokens / self._seconds if self._seconds else 0.0

    def begin(self, prompt: Sequence[int]) -> None:
        self._num_agreed = 0  # the cache stays: the prompt may begin as the last sequence did
        self._started = None

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        self._started = started = time.perf_counter()
        if self.target.max_length is not None:
            max_tokens = min(max_tokens, self.target.max_length - len(context) + 1)
        tokens: list[int] = []
        probs: list[float] = []
        self._confidences = []
        path_prob = 1.0
        while len(tokens) < max_tokens:
            if not tokens:
                scores, row = self._catch_up(context)
            elif path_prob * self.calibration.mean < self.price:
                break
            else:
                started = time.perf_counter()
                scores, row = self._forward([tokens[-1]]), 0
            tokens.append(scores.choose(row))
            self._confidences.append(_confidence(scores, row, tokens[-1]))
            probs.append(self.calibration.prob(self._confidences[-1]))
            path_prob *= probs[-1]
            if len(tokens) > 1:
                self._forward_seconds.add(time.perf_counter() - started)
        return Draft.chain(tokens, probs)

    def observe(self, step: Step) -> None:
        # The step ends with the first token that was not guessed, so that what comes after it is not judged.
        for confidence, guess, token in zip(self._confidences, step.draft.tokens, step.tokens, strict=False):
            self.calibration.add(confidence, guess == token)
        if self._started is not None:
            self._tokens += len(step.tokens) - self.FORGET * self._tokens
            self._seconds += time.perf_counter() - self._started - self.FORGET * self._seconds
            self._started = None

    def _catch_up(self, context: Sequence[int]) -> tuple[Scores, int]:
        """Read what the cache lacks of the context: the scores, and the row that follows all of it."""
        start, end = self._num_agreed, min(self.target.num_cached, len(self._read), len(context) - 1)
        while start < end and self._read[start] == context[start]:
            start += 1
        self._num_agreed = start
        self.target.rewind(start)
        del self._read[start:]
        if start == 0:
            self._read = list(context)
            return self.target.prefill(context), 0
        return self._forward(context[start:]), len(context) - start - 1

    def _forward(self, tokens: Sequence[int]) -> Scores:
        """Read tokens into the cache; row i follows the i-th."""
        self._read += tokens
        scores = self.target.score(tokens[0], Draft.chain(tokens[1:]))
        self.target.keep(range(len(tokens) - 1))
        return scores


def _confidence(scores: Scores, row: int, token: int) -> float:
    """The model's own probability of ``token``, before any processor; 0 where it is below that of the lowest edge.

    That of the processed law tells no more of the acceptance, and would ask the processors twice.
    """
    top = scores.top([row], round(1 / Calibration.EDGES[0]))
    return dict(zip(top.tokens[0], top.probs[0], strict=True)).get(token, 0.0)
