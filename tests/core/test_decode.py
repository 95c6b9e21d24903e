"""The loop's own promises: what it keeps, where it ends, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import AdaptiveBudget, DecodeStats, Draft, FixedBudget, ForetokenError, decode
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
