"""What trained heads say, made into chances that mean what they say: compiled loops, and what they learn of a text.

A candidate's chance is softmax(a * logprob + b * noise) over the candidates of its row and all other tokens together.
It is corrected by how often such candidates were right. Both are learned while the answer comes, at each depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from foretoken.core.contracts import Candidates
from foretoken.ngrams import compiling

F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[Any]
Ints = NDArray[Any]

LEAST_REST = 0.01  # what the tokens that are no candidates have together, at least
MEAN_NOISE = 0.5772  # of the noise that the largest of several tokens has, beyond what they have together
START = (0.9, 0.75)  # the weights a and b, fitted to an MLP speculator of the bundled model, at temperature 0.8
FIRST, MOST = 12.0, 1000.0  # what is believed of the start, and how much is never forgotten: sums of variances
STEPS = np.array([0.02, 0.06, 0.15, 0.35, 0.6, 0.85, 0.97])  # between which chances are taken together
PRIOR = 8.0  # times that a chance counts as having been right as often as it says


class Level(NamedTuple):
    """What a head said of some rows, and what was made of it.

    Args:
        candidates: int32 [rows, k].
        logprobs: float32 [rows, k].
        noise: float32 [rows, k].
        order: int64 [rows, children], the ranks of the likeliest candidates, best first.
        tokens: int32 [rows, children], these.
        probs: float64 [rows, children], and their chances.
    """

    candidates: Ints
    logprobs: Floats
    noise: Floats
    order: Ints
    tokens: Ints
    probs: Floats


class Learned(NamedTuple):
    """What is learned of a depth.

    Args:
        weights: [2], a and b.
        precision: [2], how much is known of them: the sums of variances of what they tell apart.
        said: [ranks, steps], the chances of candidates by rank and step, added up.
        right: [ranks, steps], how often they were right.
    """

    weights: Floats
    precision: Floats
    said: Floats
    right: Floats


class Chances:
    """Makes chances of what heads say, and learns from what came.

    The weights are a belief around where they start, which every judged token moves up the gradient of its
    log-likelihood; the more it has seen of what they tell apart, the less.

    Args:
        num_heads: How many depths there are.
        num_ranks: Most children of a node.
        noisy: Whether the noise says anything.
    """

    def __init__(self, num_heads: int, num_ranks: int, noisy: bool) -> None:
        prior = np.full((num_ranks, len(STEPS) + 1), PRIOR)
        self.learned = [
            Learned(np.array(START if noisy else (1.0, 0.0)), np.full(2, FIRST), prior.copy(), prior.copy())
            for _ in range(num_heads)
        ]
        self._noisy = noisy

    def level(self, depth: int, said: Candidates, num_children: int) -> Level:
        """The likeliest candidates of each row and their chances, of which a row's sum is at most 1."""
        candidates = np.ascontiguousarray(said.tokens, np.int32)  # of one type, so that the loops are compiled once
        logprobs, noise = np.ascontiguousarray(said.logprobs, np.float32), np.ascontiguousarray(said.noise, np.float32)
        shape = len(candidates), min(num_children, candidates.shape[1])
        level = Level(
            candidates, logprobs, noise, np.empty(shape, np.int64), np.empty(shape, np.int32), np.empty(shape)
        )
        _rank(level, self.learned[depth])
        return level

    def learn(self, depth: int, level: Level, row: int, token: int) -> int:
        """A token came after a row: which candidate it was, -1 for none."""
        return _learn(level, row, token, self.learned[depth], self._noisy)


def compile_levels() -> None:
    """Compile the loops, or load them from the disk, so that no answer's time has that in it."""
    chances = Chances(1, 1, True)
    chances.learn(0, chances.level(0, Candidates([[0]], [[0.0]], [[0.0]]), 1), 0, 0)


def _compiled(function: F) -> F:
    return compiling.compiled(function, error_model="numpy")


def _part(function: F) -> F:
    return compiling.helper(function, error_model="numpy")


@_part
def _softmax(logprobs: Floats, noise: Floats, weights: Floats, chances: Floats) -> float:
    """Fill in the chance of each of a row's candidates and of all other tokens together.

    Args:
        logprobs: [k].
        noise: [k].
        weights: [2].
        chances: [k + 1].

    Returns:
        The log-probability of the other tokens.
    """
    k, a, b = logprobs.size, weights[0], weights[1]
    rest = 1.0
    for i in range(k):
        rest -= np.exp(np.float64(logprobs[i]))
        chances[i] = a * logprobs[i] + b * noise[i]
    rest = np.log(max(rest, LEAST_REST))
    chances[k] = a * rest + b * MEAN_NOISE
    largest = chances.max()
    total = 0.0
    for i in range(k + 1):
        chances[i] = np.exp(chances[i] - largest)
        total += chances[i]
    for i in range(k + 1):
        chances[i] /= total
    return float(rest)


@_part
def _step(chance: float) -> int:
    """Which chances this one is taken together with."""
    step = 0
    while step < STEPS.size and STEPS[step] < chance:
        step += 1
    return step


@_compiled
def _rank(level: Level, learned: Learned) -> None:
    """Fill in a level's ``order``, ``tokens`` and ``probs``; of equal chances the first stays first."""
    rows, k = level.logprobs.shape
    num_children = level.order.shape[1]
    chances = np.empty(k + 1)
    for r in range(rows):
        _softmax(level.logprobs[r], level.noise[r], learned.weights, chances)
        order, found = level.order[r], 0
        for i in range(k):
            if found == num_children and chances[i] <= chances[order[found - 1]]:
                continue
            place = min(found, num_children - 1)
            while place > 0 and chances[order[place - 1]] < chances[i]:
                order[place] = order[place - 1]
                place -= 1
            order[place] = i
            found = min(found + 1, num_children)
        probs, total = level.probs[r], 0.0
        for rank in range(num_children):
            level.tokens[r, rank] = level.candidates[r, order[rank]]
            chance = chances[order[rank]]
            step = _step(chance)
            probs[rank] = chance * learned.right[rank, step] / learned.said[rank, step]
            total += probs[rank]
        if total > 1.0:
            for rank in range(num_children):
                probs[rank] /= total


@_compiled
def _learn(level: Level, row: int, token: int, learned: Learned, noisy: bool) -> int:
    """Learn that ``token`` came after a row, and return its place among the candidates, -1 for none."""
    k = level.logprobs.shape[1]
    chances, evidence = np.empty(k + 1), np.empty((2, k + 1))
    evidence[0, :k], evidence[1, :k] = level.logprobs[row], level.noise[row]
    evidence[0, k] = _softmax(level.logprobs[row], level.noise[row], learned.weights, chances)
    evidence[1, k] = MEAN_NOISE
    came = k
    for i in range(k):
        if level.candidates[row, i] == token:
            came = i
    for rank in range(level.order.shape[1]):
        i = level.order[row, rank]
        step = _step(chances[i])
        learned.said[rank, step] += chances[i]
        learned.right[rank, step] += i == came
    for w in range(1 + noisy):  # without noise its weight stays 0
        mean = square = 0.0
        for i in range(k + 1):
            mean += evidence[w, i] * chances[i]
            square += evidence[w, i] ** 2 * chances[i]
        learned.precision[w] = min(learned.precision[w] + square - mean * mean, MOST)
        weight = learned.weights[w] + (evidence[w, came] - mean) / learned.precision[w]
        learned.weights[w] = min(max(weight, 0.0), 2.0)
    return came if came < k else -1
