"""The two rules against exact distributions, with rules that are known to be wrong as controls."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from scipy.stats import chisquare

from foretoken import Draft, Scores, Verdict, rejection_verifier, verify_match
from foretoken.core.law import ListLaw
from foretoken.core.noise import gumbel

SAMPLES = 20_000
# A target over three tokens: the first token's law, and the second's after each first.
FIRST = (0.5, 0.3, 0.2)
SECOND = ((0.6, 0.3, 0.1), (0.1, 0.1, 0.8), (0.34, 0.33, 0.33))
# What the sampled drafts are drawn from; wide of the mark on purpose, with a token of probability 0.
GUESS = ListLaw((0.2, 0.8, 0.0))


class TableScores:
    """The two-token target above; its own choices are drawn by ``choose_at(position, probs)``."""

    def __init__(self, draft: Draft, choose_at: Callable[[int, Sequence[float]], int]) -> None:
        self.draft, self.choose_at = draft, choose_at

    def probs(self, row: int) -> Sequence[float]:
        path = self.draft.path(row - 1)
        return FIRST if not path else SECOND[path[0]]

    def choose(self, row: int) -> int:
        return self.choose_at(len(self.draft.path(row - 1)), self.probs(row))

    def law(self, row: int) -> ListLaw:
        return ListLaw(self.probs(row))


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


def sampled_chain(rng: random.Random) -> Draft:
    tokens = rng.choices(range(3), GUESS.probs, k=2)
    return Draft(tuple(tokens), (-1, 0), laws=(GUESS, GUESS))


def sampled_tree(rng: random.Random) -> Draft:
    """Two guesses drawn alike for the first token, and one after each."""
    tokens = rng.choices(range(3), GUESS.probs, k=4)
    return Draft(tuple(tokens), (-1, -1, 0, 1), laws=(GUESS,) * 4)


def rejected(make: Callable[[random.Random], Draft], verifier: Callable[[random.Random], object]) -> float:
    rng = random.Random(0)
    verify = verifier(rng)
    pairs = []
    for _ in range(SAMPLES):
        draft = make(rng)
        pairs.append(two_tokens(verify(draft, TableScores(draft, draws(rng))), draft, draws(rng)))
    return p_value(pairs)


@pytest.mark.parametrize("make", [sampled_chain, sampled_tree])
def test_rejection_keeps_the_distribution(make):
    assert rejected(make, lambda rng: rejection_verifier(rng.random)) > 1e-4


def full_target_after_rejection(rng: random.Random):
    """Known to be wrong: after a rejection it draws from the target instead of the residual."""

    def verify(draft: Draft, scores: Scores) -> Verdict:
        path: list[int] = []
        node = -1
        while children := draft.children(node):
            child = children[0]
            token = draft.tokens[child]
            if rng.random() * draft.laws[child].prob(token) >= scores.law(node + 1).prob(token):
                break
            path.append(child)
            node = child
        return Verdict(tuple(path), scores.law(node + 1).draw(rng.random()))

    return verify


def independent_draw_per_branch(rng: random.Random):
    """Known to be wrong: every branch compares with a draw of its own, and the longest match wins."""

    def verify(draft: Draft, scores: Scores) -> Verdict:
        best: list[int] = []
        for leaf in range(len(draft)):
            path: list[int] = []
            for node in draft.ancestors(leaf):
                parent = path[-1] if path else -1
                if scores.law(parent + 1).draw(rng.random()) != draft.tokens[node]:
                    break
                path.append(node)
            best = max(best, path, key=len)
        return Verdict(tuple(best), scores.law((best[-1] if best else -1) + 1).draw(rng.random()))

    return verify


@pytest.mark.parametrize(
    ("make", "wrong"), [(sampled_chain, full_target_after_rejection), (sampled_tree, independent_draw_per_branch)]
)
def test_wrong_rules_fail_the_same_test(make, wrong):
    assert rejected(make, wrong) < 1e-6


def test_rejection_accepts_as_often_as_the_laws_overlap():
    rng = random.Random(1)
    verify = rejection_verifier(rng.random)
    accepted = 0
    for _ in range(SAMPLES):
        draft = Draft((rng.choices(range(3), GUESS.probs)[0],), (-1,), laws=(GUESS,))
        accepted += len(verify(draft, TableScores(draft, draws(rng))).path)
    overlap = sum(min(p, q) for p, q in zip(FIRST, GUESS.probs, strict=True))
    assert accepted / SAMPLES == pytest.approx(overlap, abs=0.015)


def test_rejection_needs_the_laws():
    with pytest.raises(ValueError, match="law"):
        rejection_verifier(random.random)(Draft.chain([1]), TableScores(Draft.chain([1]), draws(random.Random(0))))
