"""The adaptive budget against machines and drafters whose every number is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import AdaptiveBudget, Budget, Draft, FixedBudget, ForetokenError, Step, decode
from foretoken.core.budget import _with_rereading
from foretoken.core.costs import CostCurve, LearnedCosts
from foretoken.engines.replay import ReplayTarget
from foretoken.engines.toy import ToyTarget
from helpers.drafting import Oracle, RandomTrees

Cost = Callable[[int, int], float]  # seconds of step number s over n rows
Chances = Callable[[random.Random, int], tuple[float, float]]  # of each token: what the drafter says, and what is so
LONGEST = 32


def simulate(
    budget: Budget, cost: Cost, chances: Chances, steps: int = 2500, overhead: float = 0.0, start: int = 0
) -> float:
    """Tokens for each simulated second of a drafter of chains; asking it takes ``overhead``."""
    rng, clock, tokens = random.Random(3), 0.0, 0
    for step in range(start, start + steps):
        said, true = chances(rng, step)
        luck = [rng.random() < true for _ in range(LONGEST)]
        draft, drafting = Draft(), 0.0
        if most := budget.max_draft_tokens():
            length = min(most, LONGEST) if said else 0
            draft = budget.choose(Draft.chain(range(length), [said] * length))
            drafting = overhead
        seconds = drafting + cost(1 + len(draft), step)
        accepted = [*luck[: len(draft)], False].index(False)
        budget.observe(told(draft, accepted, drafting), seconds)
        clock += seconds
        tokens += 1 + accepted
    return tokens / clock


@cache
def best_fixed(cost: Cost, chances: Chances, steps: int = 1000, overhead: float = 0.0) -> float:
    """As ``simulate`` with the best of the fixed budgets, which meet the same luck and are counted side by side."""
    rng, clocks, tokens = random.Random(3), dict.fromkeys(FIXED, 0.0), dict.fromkeys(FIXED, 0)
    for step in range(steps):
        said, true = chances(rng, step)
        right = [*(rng.random() < true for _ in range(LONGEST)), False].index(False)
        for size in FIXED:
            drafted = size if said else 0
            clocks[size] += cost(1 + drafted, step) + (overhead if size else 0.0)
            tokens[size] += 1 + min(right, drafted)
    return max(tokens[size] / clocks[size] for size in FIXED)


def told(draft: Draft, num_accepted: int, propose_seconds: float = 0.0) -> Step:
    """A step as a budget is told of it, which cares for no tokens."""
    return Step(draft, (), path=tuple(range(num_accepted)), propose_seconds=propose_seconds)


def linear(c: float) -> Cost:
    return lambda rows, step: 1 + c * (rows - 1)


def jump(rows: int, step: int) -> float:
    """As a CPU: a second row costs much, the next ones little."""
    return 1 if rows == 1 else 1.5 + 0.02 * (rows - 2)


def tiles(rows: int, step: int) -> float:
    """As a GPU: sixteen rows for the price of one."""
    return 1 + 0.4 * ((rows - 1) // 16)


def always(prob: float) -> Chances:
    return lambda rng, step: (prob, prob)


def mixed(rng: random.Random, step: int) -> tuple[float, float]:
    prob = rng.choice([0.05, 0.3, 0.6, 0.9, 0.97])
    return prob, prob


def liar(rng: random.Random, step: int) -> tuple[float, float]:
    return 0.95, 0.0


def silent(rng: random.Random, step: int) -> tuple[float, float]:
    return 0.0, 0.0


COSTS = {f"linear {c}": linear(c) for c in (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)} | {"jump": jump, "tiles": tiles}
FIXED = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 32)


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize(
    "chances", [always(0.5), always(0.8), always(0.95), mixed], ids=["half", "good", "best", "mix"]
)
def test_it_is_about_as_good_as_the_best_fixed_budget(cost, chances):
    assert simulate(AdaptiveBudget(), cost, chances) > 0.95 * best_fixed(cost, chances)


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("chances", [always(0.01), liar, silent], ids=["hopeless", "liar", "silent"])
@pytest.mark.parametrize("overhead", [0.0, 0.05])
def test_it_is_never_slower_than_plain_decoding_where_nothing_pays(cost, chances, overhead):
    assert simulate(AdaptiveBudget(), cost, chances, overhead=overhead) > 0.98


def test_a_fixed_budget_is_slower_there():
    """The tests above must be able to fail, and what they compare with must be right."""
    for cost, chances, overhead in ((linear(0.2), mixed, 0.0), (jump, always(0.8), 0.05), (tiles, silent, 0.05)):
        each = [simulate(FixedBudget(size), cost, chances, 200, overhead) for size in FIXED]
        assert best_fixed(cost, chances, 200, overhead) == pytest.approx(max(each))
    assert simulate(FixedBudget(7), linear(0.2), always(0.01)) < 0.5
    assert simulate(FixedBudget(7), linear(0.2), mixed) < 0.8 * simulate(AdaptiveBudget(), linear(0.2), mixed)


@pytest.mark.parametrize("before", [liar, silent, always(0.01)])
def test_it_recovers_when_the_text_becomes_predictable(before):
    budget = AdaptiveBudget()
    simulate(budget, linear(0.05), before, 1000, overhead=0.05)
    simulate(budget, linear(0.05), always(0.9), 1500, overhead=0.05)
    best = best_fixed(linear(0.05), always(0.9), overhead=0.05)
    assert simulate(budget, linear(0.05), always(0.9), 1000, overhead=0.05) > 0.93 * best


@pytest.mark.parametrize("first", [linear(1.0), lambda rows, step: 5 * (1 + 0.2 * (rows - 1)), linear(0.0)])
@pytest.mark.parametrize("then", [linear(0.02), linear(0.6), lambda rows, step: 4 * (1 + 0.02 * (rows - 1))])
def test_it_recovers_when_the_machine_changes(first, then):
    budget = AdaptiveBudget()
    simulate(budget, first, always(0.8), 1000)
    simulate(budget, then, always(0.8), 900)
    assert simulate(budget, then, always(0.8), 1000) > 0.94 * best_fixed(then, always(0.8))


def test_slow_steps_now_and_then_do_not_mislead_it():
    """Garbage is collected, a kernel is compiled in the first draft, somebody else's program runs for a moment."""

    def hiccups(rows: int, step: int) -> float:
        first_draft = rows > 1 and not compiled
        compiled.append(first_draft) if first_draft else None
        return linear(0.05)(rows, step) + (500 if first_draft else 30 if step % 97 == 50 else 0)

    compiled: list[bool] = []
    budget = AdaptiveBudget()
    simulate(budget, hiccups, always(0.8), 1000)
    assert len(compiled) == 1
    best = best_fixed(linear(0.05), always(0.8))
    assert simulate(budget, linear(0.05), always(0.8), 1000) > 0.95 * best


def test_a_drafter_in_vain_is_asked_less_often_only_where_asking_costs():
    def asked(overhead: float) -> int:
        budget, count = AdaptiveBudget(), 0
        for _ in range(400):
            if most := budget.max_draft_tokens():
                count += 1
                budget.choose(Draft.chain(range(most), [0.01] * most))
            drafting = overhead if most else 0.0
            budget.observe(told(Draft(), 0, drafting), 1 + drafting)
        return count

    assert asked(0.0) > 350 and asked(0.2) < 60


def test_what_a_draft_has_cost_already_speaks_for_verifying_more_of_it():
    """A draft model's time is spent before the budget chooses; rows that would not pay without it then do."""
    draft = Draft.chain(range(4), [0.5] * 4)

    def verified(drafting: float) -> int:
        budget = AdaptiveBudget(costs={1: 1.0, 33: 9.0})
        for _ in range(5):
            size = len(budget.choose(draft))
            budget.observe(told(draft, 2, drafting), 2.0 + drafting)
        return size

    assert verified(0.0) < verified(8.0) == 4


def test_promises_are_discounted_as_they_are_broken():
    budget = AdaptiveBudget(costs={1: 1.0, 33: 1.3})
    draft = Draft.chain(range(8), [0.9] * 8)
    for _ in range(100):
        budget.observe(told(draft, 2), 1.1)
    assert budget.discount == pytest.approx(2 / sum(0.9**i for i in range(1, 9)), rel=0.05)


@pytest.mark.parametrize("costs", [{1: 1.0}, {1: 1.0, 33: 1.1}, {1: 1.0, 2: 1.9, 33: 30.0}, {4: 2.0}, {}])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_numbers_give_a_draft_that_can_be_verified(costs, data):
    """Trees of any chances, and clocks that stand still, run back or have no number."""
    numbers = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 2.0, math.nan, math.inf, 1e-300]), st.floats(0, 1))
    budget = AdaptiveBudget(12, costs)
    for _ in range(data.draw(st.integers(1, 12))):
        size = data.draw(st.integers(0, 12))
        parents = [data.draw(st.integers(-1, node - 1)) for node in range(size)]
        probs = tuple(data.draw(numbers) for _ in range(size)) if data.draw(st.booleans()) else ()
        assert budget.max_draft_tokens() in (0, 12)
        drafted = Draft(tuple(range(size)), tuple(parents), probs)
        chosen = budget.choose(drafted)
        assert [drafted.path(token) for token in chosen.tokens] == [chosen.path(i) for i in range(len(chosen))]
        clock = st.sampled_from([0.0, -1.0, math.nan, 1e-12, 1.0, 1e9])
        step = told(chosen, data.draw(st.integers(0, len(chosen))), data.draw(clock))
        budget.observe(step, data.draw(clock))
        assert 0 <= budget.discount <= 1.5


def test_the_most_probable_paths_are_chosen_with_their_parents():
    draft = Draft((4, 1, 7, 8), (-1, 0, 0, -1), (0.6, 0.3, 0.5, 0.2))
    assert AdaptiveBudget(costs={1: 0.020, 33: 0.148}).choose(draft).tokens == (4, 7)


def test_no_tokens_at_all_is_a_budget():
    budget = AdaptiveBudget(0)
    assert simulate(budget, linear(0.0), always(0.9), 100) == 1


@pytest.mark.parametrize("budget", [FixedBudget, AdaptiveBudget])
def test_a_budget_is_a_whole_number_of_any_library(budget):
    assert type(budget(np.int64(3)).max_draft_tokens()) is int
    for wrong in (-1, 2.5, 3.0, np.float32(2), float("nan"), True, "7", None):
        with pytest.raises(ForetokenError, match=r"tokens is .*: give a whole number from 0 on"):
            budget(wrong)


class ChainsOnly(ToyTarget):
    supports_trees = False


class NoDepth(ToyTarget):
    max_draft_depth = 0


@pytest.mark.parametrize("make", [ToyTarget, ChainsOnly, NoDepth])
def test_the_loop_takes_it_on_any_target(make):
    plain = [token for step in decode(make(), None, [1, 2], max_new_tokens=80) for token in step.tokens]
    budget = AdaptiveBudget(costs={1: 1e-3, 33: 1.1e-3})
    for drafter in (RandomTrees(5, 5), Oracle(5, [1, 2], plain, 5), None):
        steps = list(decode(make(), drafter, [1, 2], max_new_tokens=80, budget=budget))
        assert [token for step in steps for token in step.tokens] == plain
        if make is NoDepth or drafter is None:
            assert not any(step.draft for step in steps)
    steps = list(decode(ReplayTarget(plain), Oracle(5, [1, 2], plain, 5), [1, 2], max_new_tokens=80, budget=budget))
    assert [token for step in steps for token in step.tokens] == plain


def test_a_copy_knows_as_much_and_learns_apart():
    budget = AdaptiveBudget()
    simulate(budget, linear(0.05), always(0.8), 300)
    copy, again = budget.copy(), budget.copy()
    assert (copy.discount, copy.costs.as_dict()) == (budget.discount, budget.costs.as_dict())
    simulate(copy, linear(0.9), liar, 300, overhead=0.5)
    assert (copy.discount, copy.costs.as_dict()) != (budget.discount, budget.costs.as_dict())
    assert (again.discount, again.costs.as_dict()) == (budget.discount, budget.costs.as_dict())


def test_with_known_costs_the_first_step_drafts_already():
    assert AdaptiveBudget().max_draft_tokens() == 0, "the test can fail"
    assert AdaptiveBudget(costs=CostCurve({1: 1.0, 8: 1.2})).max_draft_tokens() == 64


def test_what_was_learned_can_be_given_to_another():
    costs = LearnedCosts(CostCurve())
    assert costs.seconds(3) == 0 and costs.num_plain == 0
    for step in range(40):
        rows = (1, 2, 4, 8)[step % 4]
        costs.add(rows, 1 + 0.1 * rows)
    again = CostCurve(costs.as_dict())
    assert [again.seconds(n) for n in (1, 3, 8, 20)] == pytest.approx([costs.seconds(n) for n in (1, 3, 8, 20)])


@pytest.mark.parametrize("extra", [5.0, 200.0])
@pytest.mark.parametrize("chances", [always(0.5), always(0.8), mixed], ids=["half", "good", "mix"])
def test_what_a_library_prepares_once_for_a_number_of_rows_is_not_taken_for_their_price(chances, extra):
    """A library such as oneDNN compiles a matrix product for each new shape, in the time of many forwards."""

    def speed_after(extra: float) -> float:
        met: set[int] = set()

        def cost(rows: int, step: int) -> float:
            surcharge = 0.0 if rows in met else extra
            met.add(rows)
            return 1 + 0.05 * rows + surcharge

        budget = AdaptiveBudget()
        simulate(budget, cost, chances, 150)
        return simulate(budget, lambda rows, step: 1 + 0.05 * rows, chances, 150)

    assert speed_after(extra) > 0.95 * speed_after(0.0)


@st.composite
def drafts_with_windows(draw) -> Draft:
    """Any tree of guesses, and lookahead rows that hang anywhere on it and on each other."""
    num_guesses, num_rows = draw(st.integers(0, 8)), draw(st.integers(0, 6))
    size = num_guesses + num_rows
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    chances = st.one_of(st.floats(0, 1), st.sampled_from([math.nan, math.inf, -1.0]))
    probs = tuple(draw(chances) for _ in range(size)) if draw(st.booleans()) else ()
    return Draft(tuple(range(size)), tuple(parents), probs, num_lookahead=num_rows)


def assert_part_of(chosen: Draft, draft: Draft) -> None:
    """Every node has its own path still, and lookahead rows are all there or none is."""
    for node, token in enumerate(chosen.tokens):  # a token is its node in ``draft``
        assert chosen.path(node) == draft.path(token)
        assert (node >= chosen.num_guesses) == (token >= draft.num_guesses)
    assert chosen.num_lookahead in (0, draft.num_lookahead)


@settings(max_examples=200, deadline=None)
@given(drafts_with_windows(), st.integers(0, 8), st.integers(0, 6))
def test_a_window_under_guesses_goes_with_them(draft, most, max_depth):
    fixed = FixedBudget(most).choose(draft)
    assert_part_of(fixed, draft)
    assert fixed.num_guesses == min(most, draft.num_guesses)
    needed = {node for row in range(draft.num_guesses, len(draft)) for node in draft.path(row)}
    assert (fixed.num_lookahead == draft.num_lookahead) == all(
        node < most or node >= draft.num_guesses for node in needed
    )
    for costs in ({1: 1.0}, {1: 1.0, 33: 1.01}, {1: 1.0, 33: 9.0}, {1: 1.0, 2: 1.9, 33: 30.0}):
        assert_part_of(AdaptiveBudget(costs=costs).choose(draft), draft)
    assert_part_of(draft.within(max_depth), draft)


def test_a_window_under_an_unlikely_guess_pays_for_that_guess_too():
    draft = Draft((0, 1, 2, 3), (-1, -1, 1, 2), (0.9, 0.01, 0.3, 0.3), num_lookahead=2)
    assert AdaptiveBudget(costs={1: 1.0, 33: 1.1}).choose(draft).tokens == (0, 1, 2, 3)
    assert AdaptiveBudget(costs={1: 1.0, 33: 17.0}).choose(draft).tokens == (0,)


def rereading(budget: Budget, cost: Cost, chances: Chances, steps: int = 2500) -> float:
    """As ``simulate`` on a target that reads accepted tokens again after a rejection."""
    rng, clock, tokens, num_reread = random.Random(3), 0.0, 0, 0
    for step in range(steps):
        said, true = chances(rng, step)
        luck = [rng.random() < true for _ in range(LONGEST)]
        draft = Draft()
        if most := budget.max_draft_tokens():
            length = min(most, LONGEST)
            draft = budget.choose(Draft.chain(range(length), [said] * length), num_reread)
        seconds = cost(num_reread + 1 + len(draft), step)
        accepted = [*luck[: len(draft)], False].index(False)
        budget.observe(replace(told(draft, accepted), num_reread=num_reread), seconds)
        num_reread = num_reread + 1 + accepted if accepted < len(draft) else 0
        clock += seconds
        tokens += 1 + accepted
    return tokens / clock


@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("chances", [always(0.01), liar, mixed, always(0.8), always(0.97)])
def test_where_rejections_are_read_again_it_never_loses_much(cost, chances):
    plain = rereading(FixedBudget(0), cost, chances)
    assert rereading(AdaptiveBudget(), cost, chances) > 0.95 * plain


@pytest.mark.parametrize("cost", [linear(0.2), linear(0.5), jump])
def test_to_know_what_is_read_again_pays(cost):
    """Against a budget that is told nothing of it, where a row costs something and guesses are rejected."""

    class Ignorant(AdaptiveBudget):
        def choose(self, draft, num_reread=None):
            return super().choose(draft)

    knowing, ignorant = (rereading(kind(), cost, always(0.6)) for kind in (AdaptiveBudget, Ignorant))
    assert knowing > ignorant


def test_a_draft_must_be_worth_what_its_rejection_has_read_again():
    """At half a forward a row, a guess that is right three times in five pays only where its rejection is free."""
    draft, costs = Draft.chain([1], [0.6]), {1: 1.0, 33: 17.0}
    assert len(AdaptiveBudget(costs=costs).choose(draft)) == 1
    assert len(AdaptiveBudget(costs=costs).choose(draft, 0)) == 0
    assert len(AdaptiveBudget(costs=costs).choose(Draft.chain([1], [0.9]), 0)) == 1


@given(
    probs=st.lists(st.floats(0, 1), min_size=1, max_size=8),
    num_reread=st.integers(0, 9),
    line=st.lists(st.floats(0.1, 9), min_size=18, max_size=18),
)
def test_the_price_of_rereading_is_the_expectation_over_where_a_chain_goes_wrong(probs, num_reread, line):
    line = sorted(line)
    values = list(np.cumprod(probs))
    found = _with_rereading(line, values, num_reread)
    for size in range(1 + len(values)):
        later = sum(
            math.prod(probs[:right]) * (1 - probs[right]) * (line[num_reread + 1 + right] - line[0])
            for right in range(size)
        )
        now = line[num_reread + size] - line[num_reread]
        assert found[size] == pytest.approx(line[0] + now + later)
