"""Refined drafts: the best paths are those of brute force, the n-gram core says what it says in a draft."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import DecodeStats, FixedBudget, ForetokenError, decode
from foretoken.core.contracts import Candidates
from foretoken.drafters import HeadsDrafter, NgramMixer, Parts, RefinedDrafter, RefinedSpeculator
from foretoken.drafters.head_trees import LATTICE, BestFirst, BestPaths, Shape, Tree
from foretoken.drafters.refined_heads import RefinedHeads, rescored
from foretoken.engines.toy import ToyHeads, ToyTarget


class Lattice:
    """Chances of paths through a lattice, given the paths before."""

    def __init__(self, seed: int, depth: int, k: int, sees: int) -> None:
        self.depth, self.k = depth, k
        self.chances: dict[tuple[int, ...], np.ndarray] = {
            path: np.random.default_rng([seed, len(path), *path[len(path) - min(sees, len(path)) :]]).dirichlet(
                [0.4] * k
            )
            for length in range(depth)
            for path in product(range(k), repeat=length)
        }

    def tree(self, shape: Shape) -> list[tuple[int, ...]]:
        """The whole paths that a shape drafts, the ranks being the tokens."""
        tree, nodes = Tree(), [-1]
        paths: dict[int, tuple[int, ...]] = {-1: ()}
        for depth in range(self.depth):
            if depth:
                nodes = shape.continued(tree, depth, 1000)
            children = np.tile(np.arange(self.k), (len(nodes), 1))
            tree.add(nodes, children, np.array([self.chances[paths[node]] for node in nodes]))
            paths |= {node: (*paths[tree.parents[node]], tree.tokens[node]) for node in tree.level}
        draft = tree.draft(shape.drafted(tree, 1000))
        return sorted(tuple(draft.path(leaf)) for leaf in range(len(draft)) if draft.depths[leaf] == self.depth)

    def best(self, num: int) -> list[tuple[int, ...]]:
        """The same by brute force."""
        every = product(range(self.k), repeat=self.depth)
        return sorted(sorted(every, key=self.chance, reverse=True)[:num])

    def chance(self, path: tuple[int, ...]) -> float:
        return math.prod(self.chances[path[:i]][token] for i, token in enumerate(path))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), depth=st.integers(1, 4), k=st.integers(1, 5), num=st.integers(1, 20))
def test_the_best_paths_are_those_of_brute_force(seed, depth, k, num):
    blind = Lattice(seed, depth, k, sees=0)
    assert blind.tree(BestPaths(num)) == blind.best(min(num, k**depth))
    seeing = Lattice(seed, depth, k, sees=3)
    everything = max(num, k ** (depth - 1))
    assert seeing.tree(BestPaths(everything)) == seeing.best(min(everything, k**depth))


def test_most_of_the_best_paths_are_found_where_tokens_depend_on_each_other():
    found = [
        len({*lattice.tree(BestPaths(16))} & {*lattice.best(16)})
        for lattice in (Lattice(seed, 4, 6, sees=3) for seed in range(20))
    ]
    assert sum(found) / len(found) > 14


def test_the_ngrams_are_asked_after_the_guesses_that_stand_before_a_row():
    asked, extended = [], []

    class Core:
        """Thinks that the candidate that the heads name last comes next."""

        def chances(self, paths, named):
            asked.append(paths.tolist())
            return np.tile([0.0, 0.0, 1.0, 0.0], (len(named), 1))

    class Said:
        num_heads = 3

        def start(self, state, token, position):
            return self.extend([0], [0])

        def extend(self, rows, ranks):
            extended.append((rows, ranks))
            tokens = np.array([[10 * len(asked) + i for i in range(3)]] * len(rows))
            return Candidates(tokens, np.log([[0.5, 0.3, 0.1]] * len(rows)), np.zeros(tokens.shape))

    heads = RefinedHeads(Said(), Core(), weight=1.0)  # type: ignore[arg-type]
    assert heads.start(None, 7, 20).tokens[0][0] == 2
    second = heads.extend([0, 0], [0, 1])
    heads.extend([1, 0], [0, 0])
    first, other = (int(heads.start(None, 7, 20).tokens[0][rank]) % 10 for rank in (0, 1))
    assert asked[0] == [[]] and asked[1] == [[first], [other]]
    assert asked[2] == [[other, second.tokens[1][0]], [first, second.tokens[0][0]]]
    assert extended[1] == ([0, 0], [first, other]) and extended[2] == ([1, 0], [2, 2]), "ranks as the heads have them"


def test_what_the_ngrams_do_not_know_is_left_to_the_heads():
    logprobs = np.log([[0.5, 0.3, 0.1]])
    assert np.allclose(rescored(logprobs, np.array([[0.0, 0.0, 0.0, 1.0]]), 0.5), logprobs)
    assert np.allclose(rescored(logprobs, np.array([[0.0, 0.9, 0.0, 0.1]]), 0.0), logprobs)
    sure = rescored(logprobs, np.array([[0.0, 0.9, 0.0, 0.1]]), 0.5)
    assert np.isclose(np.exp(sure).sum(), 0.9) and sure[0].argmax() == 1
    # Log-linear: among tokens that both know, the odds are the products of powers.
    both = rescored(logprobs, np.array([[0.2, 0.4, 0.4, 0.0]]), 0.25)[0]
    assert np.isclose(both[1] - both[0], 0.75 * math.log(0.3 / 0.5) + 0.25 * math.log(2))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.lists(st.integers(0, 5), max_size=8),
    st.integers(1, 20),
)
def test_chances_are_those_of_a_draft(prompt: list[int], added: list[int], size: int):
    ngrams = NgramMixer(floor=0.0)
    ngrams.memory.add(added)
    ngrams.begin(prompt)
    draft = ngrams.propose(prompt, size)
    for node in range(len(draft)):
        path = draft.path(node)
        row = ngrams.chances(np.array([path[:-1]], np.int32), np.array([[path[-1], 99]], np.int32))[0]
        assert np.isclose(row[0], draft.probs[node], atol=1e-6)
        assert row[1] == 0 <= row[2] <= 1 - row[0] + 1e-6
    assert ngrams.propose(prompt, size) == draft, "asking changes nothing"


def test_chances_follow_each_path():
    ngrams = NgramMixer()
    ngrams.begin([1, 2, 3, 9, 1, 2, 4, 8, 5, 1, 2])
    rows = ngrams.chances(np.array([[3], [4]], np.int32), np.array([[9, 8], [9, 8]], np.int32))
    assert rows[0, 0] > 0.3 > 0.1 > rows[0, 1] and rows[1, 1] > 0.3 > 0.1 > rows[1, 0]


class ShortSighted(ToyHeads):
    """Heads of which only the first knows anything: what comes later may be any token."""

    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        said, vocab = super().extend(rows, ranks), self.target.vocab
        self._candidates = Candidates([[*range(vocab)]] * len(rows), said.logprobs, said.noise)
        return self._candidates._replace(logprobs=np.full((len(rows), vocab), -math.log(vocab)))


class Recording(ToyHeads):
    """Remembers which candidates were continued."""

    def start(self, state: Sequence[int], token: int, position: int) -> Candidates:
        self.paths: list[list[int]] = [[]]
        return super().start(state, token, position)

    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        tokens = self._candidates.tokens
        self.paths = [[*self.paths[row], tokens[row][rank]] for row, rank in zip(rows, ranks, strict=True)]
        return super().extend(rows, ranks)


def test_the_heads_are_asked_for_the_very_candidates_that_are_continued():
    target = ToyTarget(9, 0.8, seed=2)
    ngrams = NgramMixer()
    ngrams.begin([1, 2, 3, 1, 2, 3, 1])
    inner = Recording(target)
    refined = RefinedHeads(inner, ngrams, 0.9)
    first = refined.start([1, 2], 3, 8)
    assert first.logprobs[0].tolist() == sorted(first.logprobs[0], reverse=True)
    second = refined.extend([0, 0], [2, 0])
    refined.extend([1, 0], [1, 3])
    expected = [
        [int(first.tokens[0, 0]), int(second.tokens[1, 1])],
        [int(first.tokens[0, 2]), int(second.tokens[0, 3])],
    ]
    assert inner.paths == expected


def acceptance_length(target: ToyTarget, drafter: HeadsDrafter) -> float:
    stats = DecodeStats()
    for step in decode(target, drafter, [1, 2], max_new_tokens=150, budget=FixedBudget(24)):
        stats.add(step)
    return stats.acceptance_length


@pytest.mark.parametrize("shape", [BestFirst(0.0, 1), BestPaths(8), BestFirst(0.003, 8)])
def test_refinement_makes_drafts_of_independent_heads_better(shape):
    target = ToyTarget(12, 0.6, seed=5)
    plain = acceptance_length(target, HeadsDrafter(ShortSighted(target), shape, noise=False))
    refined = RefinedDrafter(ShortSighted(target), NgramMixer(), shape=shape, noise=False)
    assert acceptance_length(target, refined) > 1.05 * plain


def test_the_recipe_makes_it_and_refuses_a_weight_beyond_one():
    target = ToyTarget()
    made = RefinedSpeculator(tree="paths", leaves=3, weight=0.2).make(Parts(target, heads=lambda: ToyHeads(target)))
    assert made.shape == BestPaths(3) and made.shape.children(0) == LATTICE
    assert made.needs == {"hidden"} and made.memory is made.rescorer.memory
    with pytest.raises(ForetokenError, match=r"weight is 1\.5: give a number from 0 to 1\."):
        RefinedSpeculator(weight=1.5)
    with pytest.raises(ForetokenError, match="'refined-speculator' needs trained heads"):
        RefinedSpeculator().make(Parts(target))
