"""Trained heads: they are asked as promised, shapes are as published, what is learned is right, noise helps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import DecodeStats, Drafter, FixedBudget, ForetokenError, decode
from foretoken.core.contracts import Candidates, Need, Scores, Step
from foretoken.core.costs import CostCurve
from foretoken.core.draft import Draft
from foretoken.drafters import HeadsDrafter, Mixed, MixedHeadsDrafter, NgramMixer, Parts, Speculator, heads
from foretoken.drafters.head_chances import PRIOR, START, STEPS, Chances
from foretoken.drafters.head_trees import BestFirst, RankPaths, TopKPerHead, read_shape
from foretoken.drafters.mixed import NAMES, Arms, Node, Opinion, Weighing
from foretoken.engines.parallel import ParallelTarget
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.toy import ToyHeads, ToyTarget


def acceptance_length(target: ToyTarget, drafter: Drafter, num_tokens: int = 400, budget: int = 8) -> float:
    stats = DecodeStats()
    for step in decode(target, drafter, [1, 2], max_new_tokens=num_tokens, budget=FixedBudget(budget)):
        stats.add(step)
    return stats.acceptance_length


class Asked(ToyHeads):
    """Checks that it is asked as the contract says."""

    depth = 0

    def start(self, state: Sequence[int], token: int, position: int) -> Candidates:
        context = [*self.target.cache, token]
        assert position == len(context)
        assert list(state) == [0, *context[:-1]][-2:], "of the row that chose the pending token"
        self.depth = 1
        return super().start(state, token, position)

    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        self.depth += 1
        assert rows and self.depth <= self.num_heads and max(rows) < len(self._contexts)
        assert len(set(zip(rows, ranks, strict=True))) == len(rows)
        return super().extend(rows, ranks)


SHAPES = [BestFirst(0.02, 8), BestFirst(0.0, 1), TopKPerHead((4, 3, 2, 2), 5), read_shape("[[0], [1], [0, 0]]", 1)]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    budget=st.integers(1, 20),
    num_heads=st.integers(1, 5),
    temperature=st.sampled_from([0.0, 0.8]),
    seed=st.integers(0, 2**64 - 1),
)
def test_heads_are_asked_with_the_state_that_chose_the_pending_token(shape, budget, num_heads, temperature, seed):
    target = ToyTarget(9, temperature, seed)
    drafter = HeadsDrafter(Asked(target, num_heads), shape)
    for step in decode(target, drafter, [1], max_new_tokens=30, budget=FixedBudget(budget)):
        draft = step.draft
        assert len(draft) <= budget and max(draft.depths, default=0) <= num_heads
        assert all(0 <= prob <= 1 for prob in draft.probs)
        for node in range(-1, len(draft)):
            tokens = [draft.tokens[child] for child in draft.children(node)]
            assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_heads_that_know_the_model_and_the_noise_are_always_right(temperature):
    target = ToyTarget(9, temperature, seed=3)
    assert acceptance_length(target, HeadsDrafter(ToyHeads(target, 3, wrong=10**6), BestFirst(0.0, 1)), budget=3) > 3.7


def test_the_noise_makes_guesses_better_and_its_weight_falls_where_it_tells_nothing():
    target = ToyTarget(9, 0.8, seed=3)
    with_noise, without = (acceptance_length(target, HeadsDrafter(ToyHeads(target), noise=noise)) for noise in (1, 0))
    assert with_noise > 1.1 * without

    class Misled(ToyHeads):
        def start(self, state, token, position):
            said = super().start(state, token, position)
            return said._replace(noise=np.roll(said.noise, 3, axis=1))

    drafter = HeadsDrafter(Misled(target, num_heads=1))
    acceptance_length(target, drafter, 800)
    assert drafter._chances is not None and drafter._chances.learned[0].weights[1] < 0.2


def some_candidates(rng: np.random.Generator, rows: int, k: int, *, noisy: bool = True) -> Candidates:
    """What heads may say of a vocabulary of 100 tokens; some tokens are equally likely."""
    logprobs = -np.sort(-np.log(rng.dirichlet(np.full(100, 0.3), rows)).round(1), axis=1)[:, :k]
    tokens = np.array([rng.permutation(100)[:k] for _ in range(rows)])
    return Candidates(tokens, logprobs - 0.1, rng.gumbel(size=(rows, k)).round(1) * noisy)


class PlainChances:
    """``Chances`` in plain numpy."""

    def __init__(self, num_heads: int, num_ranks: int, noisy: bool) -> None:
        self.weights = np.tile(START if noisy else (1.0, 0.0), (num_heads, 1))
        self.precision = np.full((num_heads, 2), 12.0)
        self.said, self.right = np.full((2, num_heads, num_ranks, 8), 8.0)
        self.noisy = noisy

    def evidence(self, said: Candidates) -> np.ndarray:
        """Log-probability and noise of each candidate and of all other tokens together: [2, rows, k + 1]."""
        logprobs = said.logprobs.astype(np.float32).astype(np.float64)
        rest = np.log(np.maximum(1 - np.exp(logprobs).sum(1, keepdims=True), 0.01))
        noise = said.noise.astype(np.float32).astype(np.float64)
        return np.stack([np.hstack([logprobs, rest]), np.hstack([noise, np.full_like(rest, 0.5772)])])

    def chances(self, depth: int, evidence: np.ndarray) -> np.ndarray:
        powers = np.exp(np.tensordot(self.weights[depth], evidence, 1))
        return powers / powers.sum(-1, keepdims=True)

    def level(self, depth: int, said: Candidates, children: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chances = self.chances(depth, self.evidence(said))
        order = np.argsort(-chances[:, :-1], axis=1, kind="stable")[:, :children]
        best = np.take_along_axis(chances, order, 1)
        ranks, steps = np.arange(order.shape[1]), np.searchsorted(STEPS, best)
        probs = best * self.right[depth, ranks, steps] / self.said[depth, ranks, steps]
        return order, np.take_along_axis(said.tokens, order, 1), probs / np.maximum(1, probs.sum(1, keepdims=True))

    def learn(self, depth: int, said: Candidates, order: np.ndarray, row: int, token: int) -> int:
        evidence = self.evidence(said)[:, row]
        chances = self.chances(depth, evidence)
        found = np.flatnonzero(said.tokens[row] == token)
        came = int(found[0]) if found.size else said.tokens.shape[1]
        best, ranks = chances[order[row]], np.arange(order.shape[1])
        steps = np.searchsorted(STEPS, best)
        self.said[depth, ranks, steps] += best
        self.right[depth, ranks, steps] += order[row] == came
        means = evidence @ chances
        self.precision[depth] = np.minimum(self.precision[depth] + evidence**2 @ chances - means**2, 1000.0)
        change = (evidence[:, came] - means) / self.precision[depth] * (1.0, self.noisy)
        self.weights[depth] = np.clip(self.weights[depth] + change, 0.0, 2.0)
        return came if found.size else -1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 4), k=st.integers(1, 20), noisy=st.booleans())
def test_chances_are_those_of_plain_numpy_before_and_after_learning(seed, rows, k, noisy):
    rng = np.random.default_rng(seed)
    chances, plain = Chances(2, 8, noisy), PlainChances(2, 8, noisy)
    for _ in range(20):
        depth, said = int(rng.integers(2)), some_candidates(rng, rows, k, noisy=noisy)
        level, (order, tokens, probs) = chances.level(depth, said, 8), plain.level(depth, said, 8)
        np.testing.assert_array_equal(level.order, order)
        np.testing.assert_array_equal(level.tokens, tokens)
        np.testing.assert_allclose(level.probs, probs, rtol=1e-6)
        row, token = int(rng.integers(rows)), int(rng.integers(100))
        assert chances.learn(depth, level, row, token) == plain.learn(depth, said, order, row, token)
        np.testing.assert_allclose(chances.learned[depth].weights, plain.weights[depth], rtol=1e-6)


def test_weights_are_learned_by_the_likelihood():
    rng = np.random.default_rng(0)
    chances, truth = Chances(1, 1, True), (0.5, 1.3)
    for _ in range(3000):
        said = some_candidates(rng, 1, 6)
        logprobs = np.append(said.logprobs[0], np.log(max(0.01, 1 - np.exp(said.logprobs[0]).sum())))
        scores = truth[0] * logprobs + truth[1] * np.append(said.noise[0], 0.5772)
        came = int(np.argmax(scores + rng.gumbel(size=7)))
        chances.learn(0, chances.level(0, said, 1), 0, int(said.tokens[0, came]) if came < 6 else -1)
    assert np.allclose(chances.learned[0].weights, truth, atol=0.15)


def test_chances_become_honest():
    rng, chances = np.random.default_rng(0), Chances(1, 2, False)
    said = Candidates([[4, 5]], np.log([[0.6, 0.3]]), np.zeros((1, 2)))
    level = chances.level(0, said, 2)
    assert level.tokens.tolist() == [[4, 5]] and np.allclose(level.probs, [[0.6, 0.3]])
    for _ in range(2000):
        chances.learn(0, level, 0, 4 if rng.random() < 0.3 else 6)
    probs = chances.level(0, said, 2).probs[0]
    assert abs(probs[0] - 0.3) < 0.05 and probs[1] < 0.01


def test_best_first_continues_only_what_can_be_drafted_and_drafts_the_most_probable_paths():
    target = ToyTarget(9)
    rows = []

    class Counting(Asked):
        def extend(self, of, ranks):
            rows.append(len(of))
            return super().extend(of, ranks)

    drafter = HeadsDrafter(Counting(target, 4))
    for step in decode(target, drafter, [1, 2], max_new_tokens=60, budget=FixedBudget(3)):
        paths = [1.0]
        for prob, parent in zip(step.draft.probs, step.draft.parents, strict=True):
            paths.append(prob * paths[parent + 1])
        assert paths == sorted(paths, reverse=True)
    assert max(rows) <= 3


def test_published_candidates_are_full_trees_of_which_the_best_leaves_stay():
    target = ToyTarget(9, 0.8, seed=1)
    drafter = HeadsDrafter(ToyHeads(target, 4), TopKPerHead((4, 3, 2, 2), 5))
    for step in decode(target, drafter, [1, 2], max_new_tokens=60, budget=FixedBudget(60)):
        leaves = [node for node in range(len(step.draft)) if not step.draft.children(node)]
        if step.draft and max(step.draft.depths) == 4:
            assert len(leaves) == 5 and {step.draft.depths[leaf] for leaf in leaves} == {4}


def test_a_static_tree_is_the_same_at_every_step():
    paths = read_shape("[[0], [0, 0], [1], [2], [1, 0], [0, 0, 0]]", 1)
    assert isinstance(paths, RankPaths)
    target = ToyTarget(9, 0.8, seed=1)
    drafts = [
        step.draft
        for step in decode(
            target, HeadsDrafter(ToyHeads(target), paths), [1, 2], max_new_tokens=40, budget=FixedBudget(9)
        )
    ]
    whole = [draft for draft in drafts if draft and max(draft.depths) == 3]
    assert len(whole) > 5 and {tuple(sorted(draft.depths)) for draft in whole} == {(1, 1, 1, 2, 2, 3)}


@pytest.mark.parametrize(
    "text", ["", "x", "4x", "4x0", "9999x9", "[]", "[[0, 0]]", "[[-1]]", "[[true]]", "[[64]]", "[0]", '["0"]', "{}"]
)
def test_what_is_no_tree_is_one_sentence(text):
    with pytest.raises(ForetokenError, match=r"There is no tree .*\.$"):
        Speculator(tree=text)


def test_targets_without_states_are_refused():
    target = ToyTarget()
    drafter = Speculator().make(Parts(target, heads=lambda: ToyHeads(target)))
    for other in (ReplayTarget([1, 2], target), ParallelTarget.__new__(ParallelTarget)):
        if isinstance(other, ParallelTarget):
            other.target = target
            assert "hidden" not in other.provides
            continue
        with pytest.raises(ForetokenError, match="needs the hidden states of a row"):
            decode(other, drafter, [1], max_new_tokens=2)


def test_heads_and_the_text_together_are_better_than_either():
    target = ToyTarget(9, 0.8, seed=5)
    alone = (
        acceptance_length(target, HeadsDrafter(ToyHeads(target))),
        acceptance_length(target, NgramMixer(recycle=True)),
    )
    both = MixedHeadsDrafter(NgramMixer(recycle=True), HeadsDrafter(ToyHeads(target)))
    assert acceptance_length(target, both) > 0.97 * max(alone)


def test_a_node_of_both_has_one_chance_that_learns_whom_to_believe():
    weighing, wrong = Weighing(), Opinion(NAMES, 3.0)
    both = (wrong, Opinion(NAMES, -1.0))
    before = weighing.prob(both)
    for _ in range(1000):
        weighing.learn(Node(4, -1, 1, both, before), right=False)
    assert weighing.prob(both) < 0.1 < before


def test_a_node_that_one_drafter_leaves_little_to_is_believed_less():
    core, heads = Fixed(Draft((4,), (-1,), (0.97,))), Fixed(Draft((5,), (-1,), (0.6,)))
    silent, doubting = (MixedHeadsDrafter(one, heads) for one in (Fixed(Draft()), core))  # type: ignore[arg-type]
    sure, doubted = (drafter.propose([1], 2) for drafter in (silent, doubting))
    assert dict(zip(doubted.tokens, doubted.probs, strict=True))[5] < 0.2 < sure.probs[0]


def test_a_node_is_judged_by_the_token_at_its_own_depth_if_all_before_it_are_right():
    judged = []

    class Recording(Weighing):
        def learn(self, node, right):
            judged.append((node.token, right))

    drafter = MixedHeadsDrafter(
        Fixed(Draft((4, 5, 6), (-1, 0, 1), (0.6, 0.5, 0.4))), Fixed(Draft((8, 5), (-1, 0), (0.2, 0.2)))
    )  # type: ignore[arg-type]
    drafter.weighing = Recording()
    drafter.propose([1], 9)
    drafter._judge((4, 5, 9))
    assert sorted(judged) == [(4, True), (5, True), (6, False), (8, False)], "nothing of the 5 after 8, which is wrong"


def test_the_children_of_a_node_are_not_more_than_certain_together():
    sure = Draft((4, 5, 6), (-1, -1, -1), (0.97, 0.9, 0.9))
    draft = MixedHeadsDrafter(Fixed(sure), Fixed(sure)).propose([1], 9)  # type: ignore[arg-type]
    assert sum(draft.probs) == pytest.approx(1.0)
    alone = MixedHeadsDrafter(Fixed(Draft((4,), (-1,), (0.6,))), Fixed(Draft())).propose([1], 9)  # type: ignore[arg-type]
    assert alone.probs[0] < 0.9, "what is left is for other tokens"


def test_the_heads_are_asked_while_they_give_more_tokens_a_second():
    for asked_seconds, share in ((0.5, 0.85), (1.9, 0.85), (2.1, 0.15), (40.0, 0.15)):
        arms, asked = Arms(), []
        for _ in range(400):
            asked.append(arms.choose())
            arms.add(asked[-1], *((2, asked_seconds) if asked[-1] else (1, 1.0)))
        assert (sum(asked) / 400 > share) if share > 0.5 else (0 < sum(asked) / 400 < share)


def test_a_draft_that_a_new_answer_interrupts_is_not_timed():
    drafter = MixedHeadsDrafter(NgramMixer(), HeadsDrafter(TwoBranches()), by_clock=True)  # type: ignore[arg-type]
    drafter.begin([1])
    for expected in ([0, 0], [0, 1]):
        drafter.observe(Step(drafter.propose([1], 4), (7,), Read())) if sum(expected) else drafter.propose([1], 4)
        drafter.begin([1])
        drafter.observe(Step(Draft(), (8,), Read()))
        assert drafter._arms is not None and drafter._arms._steps == expected


@pytest.mark.parametrize(
    ("heads", "seconds", "joined"),
    [(None, 0.0, 0), (None, 0.019, 0), (None, 0.021, 1), (True, 0.0, 1), (False, 1.0, 0)],
)
def test_heads_join_mixed_where_a_forward_takes_many_times_their_draft(heads, seconds, joined):
    target = ToyTarget()
    costs = CostCurve({1: seconds}) if seconds else CostCurve()
    parts = Parts(target, costs=costs, heads=lambda: ToyHeads(target))
    assert isinstance(Mixed(heads=heads).make(parts), MixedHeadsDrafter) == joined
    if heads is not False:
        assert isinstance(Mixed().make(replace(parts, heads=None)), NgramMixer)
    with pytest.raises(ForetokenError, match="heads"):
        Mixed(heads=True).make(replace(parts, heads=None))


class TwoBranches:
    """Stands for heads: 1 or 2 comes next, after 1 comes 10 or 11, and after 2 comes 20 or 21."""

    num_heads = 2

    def start(self, state, token, position):
        return self._said([[1, 2]])

    def extend(self, rows, ranks):
        return self._said([[10 * (rank + 1), 10 * (rank + 1) + 1] for rank in ranks])

    def _said(self, tokens):
        return Candidates(tokens, np.log([[0.6, 0.3]] * len(tokens)), np.zeros((len(tokens), 2)))


class Read(Scores):
    """Scores that have states of no meaning."""

    def hidden(self, rows):
        return rows


@pytest.mark.parametrize(
    ("tokens", "right"), [((2, 20), [1, 1]), ((1, 11), [1, 1]), ((2, 10), [1, 0]), ((3, 10), [0, 0]), ((2,), [1, 0])]
)
def test_what_is_learned_of_a_depth_is_learned_of_the_row_that_follows_what_came(tokens, right):
    drafter = HeadsDrafter(TwoBranches(), BestFirst(0.0, 2))  # type: ignore[arg-type]
    drafter.begin([0])
    draft = drafter.propose([0], 6)
    assert len(draft) == 6
    path = [node for node in range(6) if tuple(draft.path(node)) == tokens[: draft.depths[node]]]
    drafter.observe(Step(draft, (*tokens, 7), Read(), path=tuple(path)))
    assert drafter._chances is not None
    found = [round(learned.right.sum() - PRIOR * learned.right.size) for learned in drafter._chances.learned]
    assert found == right


def test_a_further_head_is_hoped_to_find_the_token_as_often_as_it_did():
    drafter = HeadsDrafter(TwoBranches(), BestFirst(0.0, 2))  # type: ignore[arg-type]
    drafter.begin([0])
    for last in (20, 5, 5, 5, 5, 5):
        draft = drafter.propose([0], 6)
        drafter.observe(Step(draft, (2, last), Read(), path=(draft.tokens.index(2),)))
    assert 0 < drafter._found.value < 0.5


class Fixed:
    """Stands for a drafter: it says the same every time."""

    needs: frozenset[Need] = frozenset()

    def __init__(self, draft: Draft) -> None:
        self.draft = draft

    def propose(self, context: Sequence[int], max_tokens: int) -> Draft:
        return self.draft


def test_the_tree_of_both_has_every_node_once():
    one, two = Draft((4, 5, 6), (-1, 0, -1), (0.6, 0.5, 0.2)), Draft((4, 7, 5), (-1, 0, 0), (0.5, 0.4, 0.3))
    draft = MixedHeadsDrafter(Fixed(one), Fixed(two)).propose([1], 9)  # type: ignore[arg-type]
    paths = sorted(draft.path(node) for node in range(len(draft)))
    assert paths == [[4], [4, 5], [4, 7], [6]]
    assert MixedHeadsDrafter(Fixed(one), Fixed(Draft())).propose([1], 2).tokens == (4, 5)  # type: ignore[arg-type]
    chain = MixedHeadsDrafter(Fixed(one), Fixed(two), trees=False).propose([1], 9)  # type: ignore[arg-type]
    assert chain.parents == tuple(range(-1, len(chain) - 1)) and chain.tokens[0] == 4


def test_a_further_head_is_asked_only_while_its_time_pays(monkeypatch):
    """The clock is the test's own: a forward takes a second and a further head as long as the case says."""
    now, asked = [0.0], []
    monkeypatch.setattr(heads.time, "perf_counter", lambda: now[0])

    class Timed(ToyTarget):
        def score(self, last_token, draft):
            now[0] += 1.0
            return super().score(last_token, draft)

    class Slow(ToyHeads):
        seconds = 0.0

        def extend(self, rows, ranks):
            now[0] += self.seconds
            asked.append(len(rows))
            return super().extend(rows, ranks)

    counts = []
    for seconds in (0.001, 5.0):
        target = Timed(9)
        guessers = Slow(target)
        guessers.seconds = seconds
        asked.clear()
        acceptance_length(target, HeadsDrafter(guessers, by_clock=True), 200)
        counts.append(len(asked))
    assert counts[0] > 50 and counts[1] < 5
