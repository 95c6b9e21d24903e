"""Draft model: a smaller language model guesses what the larger one will say, one forward per token.

Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318). Under sampling both models choose with
the same noise of (seed, position), so that they often choose alike (Daliri et al. 2024, arXiv 2408.07978). By how
much a guess won, noise and all, tells how likely it is right; the one that came second is often right where it is not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from foretoken.core.contracts import RewindableTarget, Scores, Step, require
from foretoken.core.costs import Median
from foretoken.core.draft import Draft
from foretoken.core.errors import RequestError
from foretoken.drafters.recipe import Parts, Recipe, option


class Share:
    """How often something held lately: a mean over at most ``MEMORY`` times that starts from a belief.

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
    """How often a guess is right that won by so much: a logistic curve, learned online from the guesses judged.

    A curve and no bins, since most answers end before bins have learned anything.

    >>> calibration = Calibration()
    >>> for _ in range(300):
    ...     calibration.add(1.0, False)
    ...     calibration.add(4.0, True)
    >>> calibration.prob(1.0) < 0.3 and calibration.prob(4.0) > 0.9
    True
    """

    START = (-0.5, 1.1)  # what a model of stories tells of one ten times as large, greedy and at temperature 1
    RATE = 0.02
    MAX_LEAD = 6.0  # more tells nothing more

    def __init__(self) -> None:
        self._bias, self._slope = self.START
        self._all = Share(0.5)

    @property
    def mean(self) -> float:
        """How often a guess is right whose lead is not known yet, given that those before it were."""
        return self._all.value

    def prob(self, lead: float) -> float:
        """The chance that a guess with this lead is right."""
        return 1 / (1 + math.exp(-self._bias - self._slope * self._clipped(lead)))

    def add(self, lead: float, right: bool) -> None:
        """A guess with this lead was judged."""
        step = self.RATE * (right - self.prob(lead))  # down the gradient of the log loss
        self._bias += step
        self._slope += step * self._clipped(lead)
        self._all.add(right)

    def _clipped(self, lead: float) -> float:
        return min(max(0.0, lead), self.MAX_LEAD)  # 0 where the lead is not a number


class Guess(NamedTuple):
    """A token that the smaller model chose, the one that came second, and by how much it lost."""

    token: int
    runner_up: int
    lead: float


class Node(NamedTuple):
    """A node of a draft, the chance that it is right given that its parent is, and that all down to it are."""

    token: int
    parent: int
    prob: float
    path: float


class DraftModelDrafter:
    """Draft with a smaller model while a further token is worth the smaller model's time.

    The chain's tokens stay in the smaller model's cache, so that accepted ones are not read again. Beside them stand
    the tokens that came second, where they are likelier than what the chain would bring next: they cost no forward.

    Args:
        target: The smaller model, of the same vocabulary. Give it the larger one's seed, temperature and processors, so
            that it chooses as that would; but no processors that keep a state, since it asks them about tokens that
            never come to be. Its ``max_length`` ends the drafts.
        floor: The fewest tokens that a further forward must be expected to bring; 0 drafts as much as is asked for.
            None learns it by the clock: what the time of a forward brings without it.
        trees: Whether the larger model takes trees; a chain is drafted otherwise.

    Raises:
        ForetokenError: If the target does not say which token came second.
    """

    FORGET = 0.1  # of the tokens and seconds of late, each step

    def __init__(self, target: RewindableTarget, *, floor: float | None = None, trees: bool = True) -> None:
        require(type(self).__name__, frozenset({"runner_up"}), target)
        self.target, self.floor, self.trees = target, floor, trees
        self.calibration = Calibration()
        self.second = Share(0.5)  # how often a runner-up is right where the guess that won is not
        self._read: list[int] = []  # what the cache holds, and perhaps more
        self._num_agreed = 0  # how many of these are known to begin the context
        self._chain: list[Guess] = []  # not yet judged
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
        self._chain, self._started = [], None

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        self._started = time.perf_counter()
        max_depth = max_tokens
        if self.target.max_length is not None:
            max_depth = min(max_tokens, self.target.max_length - len(context) + 1)
        self._chain = []
        nodes: list[Node] = []
        last, path = -1, 1.0  # the chain's end, and the chance that all of it is right
        while len(self._chain) < max_depth:
            hope = path * self.calibration.mean  # of the next guess
            enough = sum(node.path > hope for node in nodes) >= max_tokens
            if self._chain and (enough or hope < self.price):
                break
            guess = self._guess(context)
            prob = self.calibration.prob(guess.lead)
            chances = [(guess.token, prob)]
            if self.trees and guess.lead < math.inf:
                chances.append((guess.runner_up, (1 - prob) * self.second.value))
            parent, last = last, len(nodes)
            nodes += [Node(token, parent, chance, path * chance) for token, chance in chances]
            path *= prob
            self._chain.append(guess)
        draft = Draft(
            tuple(node.token for node in nodes),
            tuple(node.parent for node in nodes),
            tuple(node.prob for node in nodes),
        )
        # A node comes after its parent: it is never more probable, and the sort keeps the order of equals.
        order = sorted(range(len(nodes)), key=lambda node: nodes[node].path, reverse=True)
        return draft.select(order[:max_tokens])

    def observe(self, step: Step) -> None:
        for guess, token in zip(self._chain, step.tokens, strict=False):
            self.calibration.add(guess.lead, guess.token == token)
            if guess.token != token:  # what comes after it is not judged
                self.second.add(guess.runner_up == token)
                break
        self._chain = []
        if self._started is not None:
            self._tokens += len(step.tokens) - self.FORGET * self._tokens
            self._seconds += time.perf_counter() - self._started - self.FORGET * self._seconds
            self._started = None

    def _guess(self, context: Sequence[int]) -> Guess:
        """What the smaller model says next, after the context and the chain."""
        try:
            return self._choose(context)
        except BaseException:
            self._read, self._num_agreed = [], 0  # nobody knows how far the cache's layers got
            raise

    def _choose(self, context: Sequence[int]) -> Guess:
        if not self._chain:
            scores, row = self._catch_up(context)
            return Guess(scores.choose(row), *scores.runner_up(row))
        started = time.perf_counter()
        scores = self._forward([self._chain[-1].token])
        guess = Guess(scores.choose(0), *scores.runner_up(0))
        self._forward_seconds.add(time.perf_counter() - started)
        return guess

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


@dataclass(frozen=True)
class DraftModel(Recipe):
    """Draft model: a smaller model of the same tokenizer drafts while its time pays.

    Args:
        model: The smaller model: a name that the engine loads, or a loaded model.
        floor: The fewest tokens that a further forward of it must be expected to bring. If None, it is learned by the
            clock.
        trees: Whether to draft trees if the target takes them; otherwise a chain.
    """

    name = "draft-model"
    calibrated = True
    runs_model = True
    model: Any
    floor: float | None = option(None, least=0.0)
    trees: bool = True

    def check(self, parts: Parts) -> None:
        self._target(parts)

    def make(self, parts: Parts) -> DraftModelDrafter:
        return DraftModelDrafter(
            self._target(parts), floor=self.floor, trees=self.trees and parts.target.supports_trees
        )

    def _target(self, parts: Parts) -> RewindableTarget:
        if parts.draft_target is None:
            raise RequestError("The drafter 'draft-model' runs a second model, and this engine does not: use another.")
        return parts.draft_target(self.model)
