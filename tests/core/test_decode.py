"""The loop's own promises: what it keeps, where it ends, what it refuses."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import AdaptiveBudget, DecodeStats, Draft, FixedBudget, ForetokenError, Scores, Step, decode
from foretoken.engines.toy import ToyTarget
from helpers.drafting import Oracle, RandomTrees, Stateless


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(0, 30))
def test_the_cache_holds_all_but_the_last_token_whenever_the_caller_stops(seed, max_new_tokens, taken):
    target = ToyTarget(model_seed=seed)
    context = [1, 2]
    for step, _ in zip(
        decode(target, RandomTrees(seed, 5), [1, 2], max_new_tokens=max_new_tokens, stop_tokens={seed % 5}),
        range(1 + taken),
        strict=False,
    ):
        context += step.tokens
        assert target.cache == context[:-1]


def test_drafters_see_every_committed_token_and_nothing_else():
    seen: list[int] = []

    class Watching(RandomTrees):
        def begin(self, prompt):
            seen.extend(prompt)

        def observe(self, step):
            seen.extend(step.tokens)
            assert step.scores.choose(0) == step.tokens[0]

        def propose(self, context, max_tokens):
            assert list(context) == seen
            return super().propose(context, max_tokens)

    tokens = [t for s in decode(ToyTarget(), Watching(3, 5), [1, 2], max_new_tokens=50) for t in s.tokens]
    assert seen == [1, 2, *tokens]


def test_a_draft_larger_than_the_budget_is_cut():
    class Greedy(Stateless):
        def propose(self, context, max_tokens):
            return Draft((0, 1, 2, 3, 4), (-1, -1, 0, 0, 3))

    for step in decode(ToyTarget(), Greedy(), [1, 2], max_new_tokens=30, budget=FixedBudget(3)):
        assert len(step.draft) <= 3


def test_a_perfect_draft_takes_the_fewest_steps():
    plain = [t for s in decode(ToyTarget(), None, [1, 2], max_new_tokens=41) for t in s.tokens]
    target, stats = ToyTarget(), DecodeStats()

    class Perfect(Stateless):
        def propose(self, context, max_tokens):
            return Draft.chain(plain[len(context) - 2 :][:max_tokens])

    for step in decode(target, Perfect(), [1, 2], max_new_tokens=41, budget=FixedBudget(7)):
        stats.add(step)
    # The prefill gives one token and each step eight: 41 = 1 + 5 * 8, with nothing drafted beyond the end.
    assert (stats.steps, stats.drafted, stats.accepted, target.forwards) == (5, 35, 35, 6)
    assert stats.acceptance_length == 8 and stats.acceptance_rate == 1


def test_a_target_without_trees_is_given_chains():
    class ChainsOnly(ToyTarget):
        supports_trees = False

        def score(self, last_token, draft):
            assert draft.is_chain
            return super().score(last_token, draft)

    plain = [t for s in decode(ToyTarget(), None, [1], max_new_tokens=40) for t in s.tokens]
    drafter = Oracle(0, [1], plain, 5)
    assert [t for s in decode(ChainsOnly(), drafter, [1], max_new_tokens=40) for t in s.tokens] == plain


def test_a_target_may_limit_the_depth():
    class Shallow(ToyTarget):
        max_draft_depth = 2

        def score(self, last_token, draft):
            assert max(draft.depths, default=0) <= 2
            return super().score(last_token, draft)

    for drafter in (Oracle(0, [1], [1] * 40, 5), RandomTrees(1, 5)):
        list(decode(Shallow(), drafter, [1], max_new_tokens=40))


class Looking(RandomTrees):
    """Guesses, and a chain of five lookahead rows."""

    def propose(self, context, max_tokens):
        guesses = super().propose(context, max_tokens)
        rows = range(len(guesses), len(guesses) + 5)
        parents = (-1, *rows[:-1])
        return Draft((*guesses.tokens, *(1,) * 5), (*guesses.parents, *parents), num_lookahead=5)


def test_lookahead_rows_may_stand_beyond_the_answers_end_but_not_beyond_the_models():
    class Limited(ToyTarget):
        max_draft_depth = None

        def score(self, last_token, draft):
            deepest.append(max(draft.depths, default=0))
            return super().score(last_token, draft)

    deepest: list[int] = []
    plain = [token for step in decode(ToyTarget(), None, [1], max_new_tokens=8) for token in step.tokens]
    for limit, expected in ((None, 5), (5, 5), (4, 4)):
        Limited.max_draft_depth = limit
        deepest.clear()
        assert [t for s in decode(Limited(), Looking(1, 5), [1], max_new_tokens=8) for t in s.tokens] == plain
        # All but the answer's last token are guessed, and the window rides as long as something is.
        assert max(deepest) <= expected and (expected < 5 or deepest[-2] == 5)


class Hanging(RandomTrees):
    """Guesses, and lookahead rows below the last of them."""

    def propose(self, context, max_tokens):
        guesses = super().propose(context, max_tokens)
        last = len(guesses) - 1
        return Draft((*guesses.tokens, 1, 1), (*guesses.parents, last, last + 1), num_lookahead=2)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("depth", [None, 0, 2])
def test_lookahead_rows_may_hang_on_guesses(adaptive, depth):
    budget = AdaptiveBudget(costs={1: 1.0, 33: 1.01}) if adaptive else FixedBudget(3)

    class Limited(ToyTarget):
        max_draft_depth = depth

    plain = [token for step in decode(ToyTarget(), None, [1], max_new_tokens=40) for token in step.tokens]
    steps = list(decode(Limited(), Hanging(1, 5), [1], max_new_tokens=40, budget=budget))
    assert [token for step in steps for token in step.tokens] == plain
    if depth is None and not adaptive:
        assert {step.draft.num_lookahead for step in steps} == {0, 2}


def test_the_last_step_says_why():
    *before, last = decode(ToyTarget(), None, [1], max_new_tokens=5)
    assert [step.finish_reason for step in before] == [None] * 4 and last.finish_reason == "length"
    (only,) = decode(ToyTarget(), None, [1], max_new_tokens=5, stop_tokens=range(5))
    assert only.finish_reason == "stop"


def test_the_target_is_asked_for_nothing_after_the_end_and_in_plain_order():
    """What is asked, and what is told to the stop criterion, is what plain decoding asks and tells."""
    plain = [t for s in decode(ToyTarget(), None, [1, 2], max_new_tokens=30) for t in s.tokens]
    ends = plain[20]

    def record(drafter):
        told = []

        def processor(tokens, logits):
            told.append(("choose", len(tokens)))
            return logits

        def stop(context):
            told.append(("stop", len(context)))
            return False

        options = {"max_new_tokens": 30, "stop_tokens": {ends}, "stop": stop, "budget": FixedBudget(9)}
        answer = [t for s in decode(ToyTarget(processor=processor), drafter, [1, 2], **options) for t in s.tokens]
        return answer, told

    assert record(Oracle(0, [1, 2], plain, 5)) == record(None)


def test_tokens_are_the_targets_own_and_never_the_drafters():
    class Foreign(int):
        pass

    class Equal(Stateless):
        def propose(self, context, max_tokens):
            return Draft.chain([Foreign(token) for token in plain[len(context) - 2 :][:max_tokens]])

    plain = [t for s in decode(ToyTarget(), None, [1, 2], max_new_tokens=30) for t in s.tokens]
    steps = list(decode(ToyTarget(), Equal(), np.array([1, 2]), max_new_tokens=30))
    assert any(step.num_accepted for step in steps)
    assert {type(token) for step in steps for token in step.tokens} == {int}


def test_an_error_within_a_step_leaves_the_cache_as_it_was_before_the_step():
    class LeaveError(Exception):
        pass

    class Noting(ToyTarget):
        scored = False  # and not yet kept: guesses would stay in a real cache

        def score(self, last_token, draft):
            self.scored = True
            return super().score(last_token, draft)

        def keep(self, path):
            self.scored = False
            super().keep(path)

    plain = [t for s in decode(ToyTarget(), None, [1, 2], max_new_tokens=30) for t in s.tokens]

    def stop(context):
        if len(context) == 12:
            raise LeaveError
        return False

    target, seen = Noting(), [1, 2]
    with pytest.raises(LeaveError):
        for step in decode(target, Oracle(0, [1, 2], plain, 5), [1, 2], max_new_tokens=30, stop=stop):
            seen += step.tokens
    assert target.cache == seen and len(seen) < 12 and not target.scored


class Needing(RandomTrees):
    """Guesses, and says that it asks the target's scores for something."""

    def __init__(self, *needs):
        super().__init__(1, 5)
        self.needs = frozenset(needs)


@pytest.mark.parametrize(
    ("provides", "needs", "said"),
    [
        (None, ["top"], "the likeliest tokens of a row"),
        (["top"], ["hidden"], "the hidden states of a row"),
        (["top"], ["top", "runner_up", "hidden"], "the hidden states of a row and the second choice of a row"),
        (["top"], ["top"], None),
        (["top", "hidden"], ["top"], None),
        (None, [], None),
    ],
)
def test_a_drafter_that_needs_more_than_the_target_provides_is_refused_before_the_prefill(provides, needs, said):
    class Poor(ToyTarget):
        @property
        def provides(self):
            if provides is None:
                raise AttributeError  # an engine that knows nothing of this
            return frozenset(provides)

    target, drafter = Poor(), Needing(*needs)
    if said is None:
        list(decode(target, drafter, [1, 2], max_new_tokens=5))
        assert target.forwards > 0
    else:
        sentence = f"The drafter Needing needs {said}, which the target Poor does not provide: use a drafter"
        with pytest.raises(ForetokenError, match=sentence):
            decode(target, drafter, [1, 2], max_new_tokens=5)
        assert target.forwards == 0


def test_a_drafter_with_three_methods_and_nothing_else_is_a_drafter():
    assert not hasattr(RandomTrees(1, 5), "needs")
    assert list(decode(ToyTarget(), RandomTrees(1, 5), [1, 2], max_new_tokens=20))


def test_what_a_target_does_not_provide_is_no_attribute_error():
    class Least(Scores):
        def choose(self, row):
            return 1

    for ask in (lambda: Least().top([0], 1), lambda: Least().runner_up(0), lambda: Least().hidden([0])):
        with pytest.raises(RuntimeError, match="does not provide"):
            ask()


@settings(deadline=None)
@given(st.integers(0, 99))
def test_the_path_is_the_accepted_nodes_root_first(seed):
    plain = [t for s in decode(ToyTarget(model_seed=seed), None, [1, 2], max_new_tokens=40) for t in s.tokens]
    accepted = 0
    for drafter in (RandomTrees(seed, 5), Oracle(seed, [1, 2], plain, 5), Looking(seed, 5)):
        for step in decode(ToyTarget(model_seed=seed), drafter, [1, 2], max_new_tokens=40):
            assert len(step.path) == step.num_accepted == len(step.tokens) - 1
            assert step.path == tuple(step.draft.ancestors(step.path[-1]) if step.path else ())
            assert tuple(step.draft.tokens[node] for node in step.path) == step.tokens[:-1]
            assert all(node < step.draft.num_guesses for node in step.path)
            accepted += step.num_accepted
    assert accepted > 10


def test_a_step_says_what_the_drafter_took():
    slow = 0.002

    class Slow(RandomTrees):
        def propose(self, context, max_tokens):
            time.sleep(slow)
            return super().propose(context, max_tokens)

        def observe(self, step):
            assert step.observe_seconds == 0 and (step.propose_seconds > 0) == bool(seen)
            seen.append(step)
            time.sleep(2 * slow)

    seen: list[Step] = []
    first, *steps = decode(ToyTarget(), Slow(1, 5), [1, 2], max_new_tokens=8)
    assert first.propose_seconds == 0 and first.draft_seconds == first.observe_seconds >= 2 * slow
    *before, last = steps
    assert all(step.propose_seconds >= slow and step.observe_seconds >= 2 * slow for step in before)
    assert all(step.draft_seconds == step.propose_seconds + step.observe_seconds for step in steps)
    assert last.finish_reason == "length" and DecodeStats.of([first, *steps]).draft_seconds == pytest.approx(
        sum(step.draft_seconds for step in steps)
    )
    plain = decode(ToyTarget(), None, [1, 2], max_new_tokens=8)
    assert {step.draft_seconds for step in plain} == {0.0}


def test_where_nothing_may_be_drafted_the_drafter_took_nothing_to_propose():
    *_, last = decode(ToyTarget(), RandomTrees(1, 5), [1, 2], max_new_tokens=2)
    assert last.propose_seconds == 0


def test_a_budget_learns_of_a_step_once_the_caller_comes_back():
    class Noting(FixedBudget):
        def observe(self, step, seconds):
            told.append((step, seconds))

    told: list[tuple[Step, float]] = []
    seen = []
    for step in decode(ToyTarget(), RandomTrees(1, 5), [1, 2], max_new_tokens=20, budget=Noting()):
        assert [told_step for told_step, _ in told] == seen[1:], "of the prefill it learns nothing"
        seen.append(step)
    assert [told_step for told_step, _ in told] == seen[1:]
    assert all(step.draft_seconds <= seconds for step, seconds in told)


def test_stats_count_what_was_accepted_at_each_position():
    steps = list(decode(ToyTarget(), RandomTrees(3, 5), [1, 2], max_new_tokens=200, budget=FixedBudget(9)))
    stats = DecodeStats.of(steps)
    assert stats.accepted_per_position == [
        sum(step.num_accepted > position for step in steps) for position in range(max(s.num_accepted for s in steps))
    ]
    assert sum(stats.accepted_per_position) == stats.accepted > 0 and len(stats.accepted_per_position) > 1
    assert stats.as_dict()["accepted_per_position"] == stats.accepted_per_position


def test_stats_of_several_decodes_add_up():
    parts = [
        DecodeStats.of(decode(ToyTarget(), drafter, [1, 2], max_new_tokens=60))
        for drafter in (None, RandomTrees(3, 5), RandomTrees(4, 5))
    ]
    whole = DecodeStats.total(parts)
    for name in ("tokens", "steps", "drafted", "accepted", "draft_seconds", "prefill_seconds", "seconds"):
        assert getattr(whole, name) == pytest.approx(sum(getattr(part, name) for part in parts))
    assert sum(whole.accepted_per_position) == whole.accepted > 0
    assert DecodeStats.total([]).as_dict()["tokens"] == 0


@pytest.mark.parametrize("max_new_tokens", [2.5, 3.0, "3", None, float("nan"), float("inf"), True, np.float64(2)])
def test_a_length_that_is_no_whole_number_is_refused(max_new_tokens):
    with pytest.raises(ForetokenError, match=r"max_new_tokens is .*whole number"):
        decode(ToyTarget(), None, [1, 2], max_new_tokens=max_new_tokens)


def test_numpys_whole_numbers_are_numbers():
    answers = [
        [token for step in decode(ToyTarget(), None, [1, 2], max_new_tokens=length) for token in step.tokens]
        for length in (4, np.int64(4), np.uint8(4))
    ]
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) == 4


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "said"),
    [([], 5, "prompt is empty"), ([1], 0, "max_new_tokens is 0"), ([1] * 10, 5, "10 tokens .* holds 10")],
)
def test_requests_that_cannot_be_answered_are_refused_before_any_forward(prompt, max_new_tokens, said):
    target = ToyTarget(max_length=10)
    with pytest.raises(ForetokenError, match=said):
        decode(target, None, prompt, max_new_tokens=max_new_tokens)
    assert target.forwards == 0


def test_steps_are_timed_by_the_targets_own_clock():
    """As a target in the calling thread has one that other programs do not disturb."""
    ticks, told = itertools.count(), []

    class Watching(FixedBudget):
        def observe(self, step, seconds):
            told.append((seconds, step.propose_seconds))

    target = ToyTarget()
    target.clock = lambda: float(next(ticks))  # type: ignore[attr-defined]
    for step in decode(target, RandomTrees(0, 5), [1, 2], max_new_tokens=9, budget=Watching(3)):
        assert step.observe_seconds in (0.0, 1.0)
    assert told and all(seconds > proposing and seconds == int(seconds) for seconds, proposing in told)
