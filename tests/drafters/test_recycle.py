"""Token recycling against what it promises, and against a table kept with dictionaries."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import DecodeStats, Draft, FixedBudget, ForetokenError, decode
from foretoken.core.contracts import Scores, Top
from foretoken.drafters.recycle import RecycleDrafter
from foretoken.engines.toy import ToyTarget
from helpers.drafting import verified


class Named(Scores):
    """Scores whose row i names ``rows[i]``, as tokens from the likeliest on."""

    PROBS = (0.5, 0.25, 0.125, 0.0625)

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def choose(self, row: int) -> int:
        return self.rows[row][0]

    def top(self, rows, k) -> Top:
        return Top([self.rows[row][:k] for row in rows], [list(self.PROBS[:k]) for row in rows])


def observe(drafter: RecycleDrafter, draft: Draft, tokens: list[int], rows: list[list[int]]) -> None:
    drafter.propose([0], 1)
    drafter.observe(verified(tokens, draft, Named(rows)))


@settings(deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 30))
def test_the_table_holds_what_was_named_last_for_every_row(data, k, max_tokens):
    drafter, table, last = RecycleDrafter(k=k, floor=0.0), {}, 3
    drafter.begin([1, last])
    token = st.integers(0, 9)
    for _ in range(data.draw(st.integers(1, 6))):
        size = data.draw(st.integers(0, 5))
        parents = tuple(data.draw(st.integers(-1, node - 1)) for node in range(size))
        draft = Draft(tuple(data.draw(token) for _ in range(size)), parents, num_lookahead=size // 2)
        rows = [data.draw(st.permutations(range(4))) for _ in range(size + 1)]
        for row_token, named in reversed(list(zip([last, *draft.tokens], rows, strict=True))):
            table[row_token] = named[:k]
        last = data.draw(token)
        observe(drafter, draft, [last], rows)
    proposed = drafter.propose([last], max_tokens)
    assert len(proposed) <= max_tokens
    paths = [math.prod(proposed.probs[node] for node in proposed.ancestors(node)) for node in range(len(proposed))]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(paths))
    for node in range(-1, len(proposed)):
        children = [proposed.tokens[child] for child in proposed.children(node)]
        known = table.get(proposed.tokens[node] if node >= 0 else last, [])
        assert set(children) <= set(known) and len(set(children)) == len(children)
        assert len(proposed) == max_tokens or set(children) == set(known)
        assert sum(proposed.probs[child] for child in proposed.children(node)) <= 1 + 1e-9


def answer(drafter: RecycleDrafter | None, target: ToyTarget, num: int = 200) -> tuple[list[int], DecodeStats]:
    stats, tokens = DecodeStats(), []
    for step in decode(target, drafter, [1, 2], max_new_tokens=num, budget=FixedBudget(8)):
        stats.add(step)
        tokens += step.tokens
    return tokens, stats


def test_successors_that_were_rejected_are_drafted_later():
    """A sampled toy model over five tokens: with all five kept, a tree of eight nodes finds more than one a step."""
    target = ToyTarget(temperature=1.0, seed=3)
    plain, _ = answer(None, target)
    drafted, stats = answer(RecycleDrafter(), target)
    assert drafted == plain
    assert stats.acceptance_length > 1.5
    one_successor = answer(RecycleDrafter(k=1), target)[1]
    assert one_successor.acceptance_length < stats.acceptance_length


def test_chances_are_learned():
    """A target that always says what it holds for the second likeliest."""
    drafter = RecycleDrafter()
    drafter.begin([0])
    for _ in range(100):
        observe(drafter, Draft(), [0], [[1, 0, 2, 3]])
    draft = drafter.propose([0], 2)
    assert draft.tokens[0] == 0 and draft.probs[0] > 0.9


def test_probabilities_mean_what_they_say():
    target, drafter = ToyTarget(temperature=1.5, seed=5, vocab=7), RecycleDrafter()
    said = right = 0.0
    for step in decode(target, drafter, [1, 2], max_new_tokens=2000, budget=FixedBudget(8)):
        path = [-1]
        for token in step.tokens[: step.num_accepted]:
            path.append(next(c for c in step.draft.children(path[-1]) if step.draft.tokens[c] == token))
        for node in path:
            said += sum(step.draft.probs[child] for child in step.draft.children(node))
        right += step.num_accepted
    assert said == pytest.approx(right, rel=0.1)


def test_an_answer_begins_warm():
    target, drafter = ToyTarget(model_seed=4, vocab=40), RecycleDrafter()
    prompts = [[random.Random(i).randrange(40) for _ in range(3)] for i in range(30)]
    lengths = []
    for prompt in prompts:
        stats = DecodeStats()
        for step in decode(target, drafter, prompt, max_new_tokens=12, budget=FixedBudget(8)):
            stats.add(step)
        lengths.append(stats.acceptance_length)
    assert sum(lengths[-5:]) > sum(lengths[:5])


def test_while_the_budget_pauses_no_scores_are_asked():
    class Silent:
        def top(self, rows, k):
            raise AssertionError

    drafter = RecycleDrafter()
    drafter.begin([1])
    observe(drafter, Draft(), [2], [[3, 2, 1, 0]])
    drafter.observe(verified([3], scores=Silent()))
    with pytest.raises(AssertionError):  # the test can fail
        drafter.propose([1, 2, 3], 4)
        drafter.observe(verified([3], scores=Silent()))


def test_no_successor_is_refused():
    with pytest.raises(ForetokenError, match=r"k is .*: give a whole number from 1 on"):
        RecycleDrafter(k=0)
