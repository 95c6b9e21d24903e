"""The rule against exact distributions, with a rule that is known to be wrong as a control."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from scipy.stats import chisquare

from foretoken import Draft, Scores, Verdict, verify_match
from foretoken.core.noise import gumbel

SAMPLES = 20_000
# A target over three tokens: the first token's distribution, and the second's after each first.
FIRST = (0.5, 0.3, 0.2)
SECOND = ((0.6, 0.3, 0.1), (0.1, 0.1, 0.8), (0.34, 0.33, 0.33))


class TableScores:
    """The two-token target above; its own choices are drawn by ``choose_at(position, probs)``."""

    def __init__(self, draft: Draft, choose_at: Callable[[int, Sequence[float]], int]) -> None:
        self.draft, self.choose_at = draft, choose_at

    def probs(self, row: int) -> Sequence[float]:
        path = self.draft.path(row - 1)
        return FIRST if not path else SECOND[path[0]]

    def choose(self, row: int) -> int:
        return self.choose_at(len(self.draft.path(row - 1)), self.probs(row))


def two_tokens(verdict: Verdict, draft: Draft, choose_at: Callable[[int, Sequence[float]], int]) -> tuple[int, int]:
    """The first two tokens that a decode would emit after this verdict."""
    tokens = [*(draft.tokens[node] for node in verdict.path), verdict.next_token]
    if len(tokens) == 1:
        tokens.append(choose_at(1, SECOND[tokens[0]]))
    return tokens[0], tokens[1]


def draws(rng: random.Random) -> Callable[[int, Sequence[float]], int]:
    return lambda position, probs: rng.choices(range(3), probs)[0]


def keyed(seed: int) -> Callable[[int, Sequence[float]], int]:
    """The product's own choice: Gumbel noise of (seed, position, token) as if the logits were log-probabilities."""
    import math

    def choose(position: int, probs: Sequence[float]) -> int:
        return max(range(3), key=lambda token: math.log(probs[token]) + gumbel(seed, position, token))

    return choose


def p_value(pairs: list[tuple[int, int]]) -> float:
    counts = Counter(pairs)
    cells = list(itertools.product(range(3), range(3)))
    return chisquare([counts[a, b] for a, b in cells], [SAMPLES * FIRST[a] * SECOND[a][b] for a, b in cells]).pvalue


DETERMINISTIC = [
    Draft(),
    Draft.chain([0, 2]),
    Draft.chain([2, 0]),
    Draft((0, 1, 0), (-1, -1, 0)),
    Draft((1, 0, 2, 2, 0), (-1, -1, -1, 0, 1)),
]


@pytest.mark.parametrize("draft", DETERMINISTIC)
def test_match_keeps_the_distribution(draft):
    pairs = []
    for seed in range(SAMPLES):
        choose_at = keyed(seed)
        pairs.append(two_tokens(verify_match(draft, TableScores(draft, choose_at)), draft, choose_at))
    assert p_value(pairs) > 1e-4


def longest_branch(draft: Draft, scores: Scores) -> Verdict:
    """Known to be wrong: every branch compares with a choice of its own, and the longest match wins."""
    best: list[int] = []
    for leaf in range(len(draft)):
        path: list[int] = []
        for node in draft.ancestors(leaf):
            if scores.choose((path[-1] if path else -1) + 1) != draft.tokens[node]:
                break
            path.append(node)
        best = max(best, path, key=len)
    return Verdict(tuple(best), scores.choose((best[-1] if best else -1) + 1))


def test_a_wrong_rule_fails_the_same_test():
    rng, pairs = random.Random(0), []
    draft = Draft((1, 0, 2, 2, 0), (-1, -1, -1, 0, 1))
    for _ in range(SAMPLES):
        choose_at = draws(rng)  # of no memory: asked again it says something else
        pairs.append(two_tokens(longest_branch(draft, TableScores(draft, choose_at)), draft, choose_at))
    assert p_value(pairs) < 1e-6
