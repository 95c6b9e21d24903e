"""What one answer's budget hands on to the next of its namespace, and to no other."""

from __future__ import annotations

import gc

import pytest

from foretoken import AdaptiveBudget, FixedBudget, LanguageModel
from foretoken.core.costs import CostCurve
from foretoken.memory.namespace import Namespace
from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer

COSTS = CostCurve({1: 1.0, 8: 1.2, 64: 2.0})
PROMPT = "hello, hello, hello, "


def learned(budget: AdaptiveBudget) -> tuple[object, ...]:
    return budget.discount, budget._pause, budget._gain, budget._credit, budget.costs.as_dict()


def test_the_first_answer_knows_the_costs_and_the_next_what_the_last_one_learned():
    namespace = Namespace()
    first = namespace.new_budget(COSTS)
    assert learned(first) == learned(AdaptiveBudget(costs=COSTS))
    first._kept, first._promised, first._pause = 1.0, 50.0, 3
    assert learned(namespace.new_budget(COSTS)) == learned(AdaptiveBudget(costs=COSTS)), "it has not ended yet"
    namespace.hand_back(first)
    second, third = namespace.new_budget(COSTS), namespace.new_budget(COSTS)
    assert learned(second) == learned(third) == learned(first) and len({id(one) for one in (first, second, third)}) == 3
    second._pause = 7
    assert third._pause == 3, "answers at one time do not interleave"
    assert learned(Namespace().new_budget(COSTS)) == learned(AdaptiveBudget(costs=COSTS)), "another namespace"


@pytest.fixture
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), character_tokenizer(), background=None)


@pytest.fixture
def budgets(monkeypatch) -> list[AdaptiveBudget]:
    """Every budget that a namespace gives an answer."""
    given: list[AdaptiveBudget] = []
    new_budget = Namespace.new_budget

    def noted(self: Namespace, costs: CostCurve) -> AdaptiveBudget:
        given.append(new_budget(self, costs))
        return given[-1]

    monkeypatch.setattr(Namespace, "new_budget", noted)
    return given


def test_an_answer_begins_where_the_last_one_of_its_namespace_ended(lm, budgets):
    for _ in range(2):
        lm.generate(PROMPT, max_new_tokens=40)
    first, second = budgets
    assert first is not second and first._since_plain + first._promised > 0
    assert learned(lm.budget) == learned(second) != learned(first)
    lm.generate(PROMPT, max_new_tokens=40, namespace="other")
    assert learned(lm.memories.of("default").new_budget(lm.costs)) == learned(second)


def test_an_answer_that_is_left_in_the_middle_hands_back_too(lm, budgets):
    stream = lm.stream(PROMPT, max_new_tokens=60)
    for _ in range(20):
        next(iter(stream))
    assert learned(lm.budget) == learned(AdaptiveBudget(costs=lm.costs))
    del stream
    gc.collect()
    assert learned(lm.budget) == learned(budgets[0]) != learned(AdaptiveBudget(costs=lm.costs))


def test_a_budget_of_the_callers_teaches_the_namespace_nothing(lm, budgets):
    mine = AdaptiveBudget(costs=COSTS)
    for budget in (mine, FixedBudget(3)):
        lm.generate(PROMPT, max_new_tokens=40, budget=budget)
    assert not budgets and learned(mine) != learned(AdaptiveBudget(costs=COSTS))
    assert learned(lm.budget) == learned(AdaptiveBudget(costs=lm.costs))


@pytest.mark.parametrize("drafter", ["anpd", "prompt-lookup", "none"])
def test_without_chances_that_can_be_counted_on_nothing_is_measured(lm, monkeypatch, drafter):
    def measured(*_: object) -> CostCurve:
        raise AssertionError

    monkeypatch.setattr("foretoken.api.language_model.costs_of", measured)
    lm.generate(PROMPT, max_new_tokens=10, drafter=drafter)
    with pytest.raises(AssertionError):  # the test can fail
        lm.generate(PROMPT, max_new_tokens=10, drafter="mixed")


def test_the_first_answer_drafts_from_its_first_step_on(lm):
    def asked(**options: object) -> list[bool]:
        """Whether the drafter was, in each step after the prefill."""
        steps = lm.stream(PROMPT * 4, max_new_tokens=8, **options).steps()
        return [step.propose_seconds > 0 for step, _ in steps][1:]

    assert asked()[0] and not asked(budget=AdaptiveBudget())[0]
