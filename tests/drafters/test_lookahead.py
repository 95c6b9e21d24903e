"""Lookahead decoding: it keeps the promise, and does step by step what its paper says."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foretoken
from foretoken import AdaptiveBudget, Draft, FixedBudget, ForetokenError, Step, decode
from foretoken.drafters import Lookahead, NgramMixer, WithWindow
from foretoken.drafters import lookahead as module
from foretoken.drafters.lookahead import LookaheadDrafter, Pool, Shape
from foretoken.engines.toy import ToyTarget
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.engines.transformers.tree_mask import tree_mask
from helpers.lookahead_reference import Moment, lookahead

ENOUGH = FixedBudget(10_000)  # for all candidates

prompts = st.lists(st.integers(0, 4), min_size=1, max_size=12)
shapes = st.tuples(st.integers(0, 9), st.integers(2, 6), st.integers(1, 6))


def penalise(tokens: Sequence[int], logits: list[float]) -> list[float]:
    """A processor that looks at the whole path."""
    return [x - 0.4 * tokens.count(token) for token, x in enumerate(logits)]


class ChainsOnly(ToyTarget):
    supports_trees = False


def answer(
    target: ToyTarget, drafter: LookaheadDrafter | None, prompt: Sequence[int], **options
) -> tuple[list[int], int]:
    """The tokens, and the number of steps."""
    steps = list(decode(target, drafter, prompt, max_new_tokens=40, **options))
    return [token for step in steps for token in step.tokens], len(steps)


@settings(max_examples=100, deadline=None)
@given(
    prompt=prompts,
    shape=shapes,
    text=st.booleans(),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 2**64 - 1),
    size=st.integers(0, 30),
    processor=st.sampled_from([None, penalise]),
    max_length=st.sampled_from([None, 20]),
    kind=st.sampled_from([ToyTarget, ChainsOnly]),
)
def test_the_tokens_are_those_of_plain_decoding(
    prompt, shape, text, temperature, seed, size, processor, max_length, kind
):
    target = kind(temperature=temperature, seed=seed, model_seed=seed % 7, processor=processor, max_length=max_length)
    plain, num_steps = answer(target, None, prompt, stop_tokens={seed % 5})
    drafter = LookaheadDrafter(*shape, text=text)
    for budget in (FixedBudget(size), AdaptiveBudget(size, {1: 1.0, 257: 1.1})):
        drafted, drafted_steps = answer(target, drafter, prompt, stop_tokens={seed % 5}, budget=budget)
        assert drafted == plain and drafted_steps <= num_steps


def compare(
    steps: Sequence[Step], pools: Sequence[dict[int, list[tuple[int, ...]]]], moments: Sequence[Moment]
) -> None:
    assert [list(step.tokens) for step in steps] == [moment.tokens for moment in moments]
    assert [step.num_accepted for step in steps] == [moment.num_accepted for moment in moments]
    assert pools == [moment.pool for moment in moments]


def pool_of(drafter: LookaheadDrafter, vocab: int) -> dict[int, list[tuple[int, ...]]]:
    return {token: list(grams)[::-1] for token in range(vocab) if (grams := drafter.pool.after(token))}


def run(target, drafter: LookaheadDrafter, prompt: Sequence[int], num_steps: int, vocab: int):
    """The first steps, and the pool after each."""
    steps, pools = [], []
    for step in islice(decode(target, drafter, prompt, max_new_tokens=900, budget=ENOUGH), num_steps):
        steps.append(step)
        pools.append(pool_of(drafter, vocab))
    return steps, pools


def initial(drafter: LookaheadDrafter, prompt: Sequence[int]) -> list[int]:
    """What the drafter begins its window with: the choice of random tokens is its own."""
    drafter.begin(prompt)
    return [column[0] for column in drafter.columns[1:]]


def reference(next_token, drafter: LookaheadDrafter, prompt: Sequence[int], num_steps: int) -> list[Moment]:
    window, ngram, guesses = drafter.shape
    first = initial(drafter, prompt)
    settings: dict[str, Any] = {"window": window, "ngram": ngram, "guesses": guesses, "text": drafter.text}
    return list(islice(lookahead(next_token, prompt, first, **settings), num_steps))


@settings(max_examples=75, deadline=None)
@given(
    prompt=prompts,
    shape=shapes.filter(lambda shape: shape[:2] != (1, 2)),  # whose window is the last token's own row
    text=st.booleans(),
    model_seed=st.integers(0, 999),
    vocab=st.integers(5, 23),
)
def test_every_step_is_the_papers(prompt, shape, text, model_seed, vocab):
    target = ToyTarget(vocab, model_seed=model_seed)
    drafter = LookaheadDrafter(*shape, text=text)
    steps, pools = run(target, drafter, prompt, 25, vocab)

    @cache
    def after(*pair: int) -> int:  # the toy looks at two tokens only
        return target.prefill(pair).choose(0)

    compare(steps, pools, reference(lambda tokens: after(*tokens[-2:]), drafter, prompt, 25))


def test_a_wrong_window_is_caught():
    """The test above must be able to fail: a column less, or one token that the window has wrong, is seen."""
    target = ToyTarget(23, model_seed=1)
    drafter = LookaheadDrafter(5, 4, 3)
    steps, pools = run(target, drafter, [1, 2, 3], 25, 23)
    right = reference(lambda tokens: target.prefill(tokens).choose(0), drafter, [1, 2, 3], 25)
    compare(steps, pools, right)
    shifted = initial(drafter, [1, 2, 3])
    shifted[-1] += 1
    for first, window in ((shifted[:-1], 4), (shifted, 5)):
        other = lookahead(
            lambda tokens: target.prefill(tokens).choose(0),
            [1, 2, 3],
            first,
            window=window,
            ngram=4,
            guesses=3,
            text=True,
        )
        assert pools != [moment.pool for moment in islice(other, 25)]


@pytest.fixture(scope="module")
def lm() -> foretoken.LanguageModel:
    return foretoken.load("tiny", dtype="float32", device="cpu", history=False)


@pytest.mark.parametrize("text", [False, True])
def test_every_step_is_the_papers_on_the_bundled_model(lm, text):
    prompt = lm.encode("It was a dark night, and the old man")
    target, drafter = TransformersTarget(lm.model), LookaheadDrafter(3, 4, 3, text=text)
    steps, pools = run(target, drafter, prompt, 16, 4096)

    @cache
    @torch.inference_mode()
    def after(*tokens: int) -> int:
        return int(lm.model(input_ids=torch.tensor([tokens]), logits_to_keep=1).logits[0, -1].argmax())

    compare(steps, pools, reference(lambda tokens: after(*tokens), drafter, prompt, 16))
    assert any(step.num_accepted for step in steps), "a window that brings nothing proves nothing"


def papers_layout(levels: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]):
    """The rows of the paper's figure: names, tokens, positions after the last token, and what each row sees.

    ``levels[0]`` has a token less than the others: its first is the last token itself, row 0.
    """
    names: list[tuple] = [("last",)]
    names += [("window", 0, column + 1) for column in range(len(levels[0]))]
    names += [("window", level, column) for level in range(1, len(levels)) for column in range(len(levels[level]))]
    names += [("candidate", g, j) for g, candidate in enumerate(candidates) for j in range(len(candidate))]

    def sees(row: tuple, other: tuple) -> bool:
        if other == ("last",) or row == other:
            return True
        if row == ("last",) or row[0] != other[0]:
            return False
        if row[0] == "candidate":
            return row[1] == other[1] and other[2] <= row[2]
        _, level, column = row
        return other[2] <= column if other[1] == 0 else other[2] == column and other[1] <= level

    positions = [
        0 if name == ("last",) else name[1] + name[2] if name[0] == "window" else name[2] + 1 for name in names
    ]
    return names, positions, {(row, other) for row in names for other in names if sees(row, other)}


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(2, 7), st.integers(1, 20)).filter(
        lambda shape: shape[:2] != (1, 2)
    ),
    num_steps=st.integers(6, 20),
    num_cached=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_the_mask_is_the_papers(shape, num_steps, num_cached, seed):
    window, ngram, _ = shape
    drafter = LookaheadDrafter(*shape)
    prompt = random.Random(seed).choices(range(9), k=30)
    context = [*prompt]
    for step in islice(decode(ToyTarget(9, model_seed=seed), drafter, prompt, max_new_tokens=99), num_steps):
        context += step.tokens
    candidates = list(drafter.pool.after(context[-1]))
    draft = drafter.propose(context, 1000)
    assert draft.num_lookahead == window * (ngram - 1) - 1
    levels = [[column[level] for column in drafter.columns] for level in range(ngram - 1)]
    del levels[0][0]

    names, positions, seen = papers_layout(levels, candidates)
    rows = {("last",): 0}
    for name in names[1:]:
        if name[0] == "window":  # row by row in the paper's order
            rows[name] = names.index(name) + draft.num_guesses
            assert draft.tokens[rows[name] - 1] == levels[name[1]][name[2] - (name[1] == 0)]
        else:  # where candidates begin alike, one row stands for several
            path = list(candidates[name[1]][: name[2] + 1])
            [rows[name]] = [node + 1 for node in range(draft.num_guesses) if draft.path(node) == path]
    assert set(rows.values()) == set(range(1 + len(draft))), "there is no other row"
    mask, places = tree_mask(draft, num_cached, None, torch.float32, torch.device("cpu"))
    assert places[0].tolist() == [
        num_cached + position
        for _, position in sorted({(rows[name], p) for name, p in zip(names, positions, strict=True)})
    ]
    sees = (mask[0, 0] == 0).tolist()
    assert all(all(row[:num_cached]) for row in sees)
    for name in names:
        expected = {rows[other] for other in names if (name, other) in seen}
        assert {row for row, yes in enumerate(sees[rows[name]][num_cached:]) if yes} == expected


@settings(max_examples=100, deadline=None)
@given(
    grams=st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3), max_size=60),
    guesses=st.integers(1, 4),
)
def test_the_pool_keeps_the_most_recent(grams, guesses):
    pool = Pool(guesses)
    for gram in grams:
        pool.add(gram, in_text=False)
    for token in range(9):
        newest = dict.fromkeys(tuple(gram[1:]) for gram in reversed(grams) if gram[0] == token)
        assert list(pool.after(token)) == list(newest)[:guesses]


def test_the_pool_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEYS", 10)
    pool = Pool(3)
    for i in range(1000):
        pool.add([i % 37, i, i], in_text=True)
        pool.add([5, i % 7, 0], in_text=True)
        assert len(pool) <= 30
    assert len(pool.after(5)) == 3, "what is seen again and again stays"


def test_guesses_share_their_beginnings_and_fit():
    drafter = LookaheadDrafter(0, 4, 5)
    drafter.begin([1, 7, 2, 3, 1, 5, 5, 5, 1, 7, 2, 4, 1])
    draft = drafter.propose([1], 100)
    assert [draft.path(node) for node in range(len(draft))] == [
        [7],
        [7, 2],
        [7, 2, 4],
        [5],
        [5, 5],
        [5, 5, 5],
        [7, 2, 3],
    ]
    assert all(0 < prob < 1 for prob in draft.probs)
    assert draft.probs[2] > draft.probs[6] and draft.probs[0] > draft.probs[3], "the more recent seems more likely"
    assert drafter.propose([1], 2).tokens == (7, 2) and drafter.propose([9], 2) == Draft()


class Dropping:
    """A budget that leaves the window out of every other step."""

    def __init__(self) -> None:
        self.rides = True

    def max_draft_tokens(self) -> int:
        return 1000

    def choose(self, draft: Draft) -> Draft:
        self.rides = not self.rides
        return draft if self.rides else draft.guesses()

    def observe(self, step: Step, seconds: float) -> None:
        pass


def test_a_window_that_did_not_ride_waits():
    drafter, before = LookaheadDrafter(4, 3, 3, text=False), None
    for step in decode(ToyTarget(23), drafter, [1, 2, 3], max_new_tokens=60, budget=Dropping()):
        # The root of column 0 is written anew in every step.
        now = [column[column is drafter.columns[0] :] for column in drafter.columns], len(drafter.pool)
        if before is not None:
            assert (now == before) == (step.draft.num_lookahead == 0)
        before = now
    assert len(drafter.pool) > 10


class Timed(AdaptiveBudget):
    """A machine on which a step over n rows takes ``cost(n)``."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        super().__init__()
        self.cost, self.clock, self.steps, self.rides = cost, 0.0, 0, 0

    def observe(self, step: Step, seconds: float) -> None:
        seconds = self.cost(1 + len(step.draft))
        self.clock += seconds
        self.steps += 1
        self.rides += step.draft.num_lookahead > 0
        super().observe(replace(step, propose_seconds=0.0, observe_seconds=0.0), seconds)


@pytest.mark.parametrize("temperature", [0.5, 5.0], ids=["predictable", "random"])
@pytest.mark.parametrize("row", [0.0, 0.3, 1.0])
def test_the_window_rides_where_it_pays(temperature, row):
    budget, num_tokens = Timed(lambda rows: 1 + row * (rows - 1)), 1200
    target = ToyTarget(11, temperature=temperature, model_seed=4)
    list(decode(target, LookaheadDrafter(5, 4, 5, text=False), [1, 2], max_new_tokens=num_tokens, budget=budget))
    if row == 0.0:
        assert budget.rides > 0.9 * budget.steps
        assert temperature > 1 or num_tokens > 1.5 * budget.clock
    else:
        assert budget.rides < 0.05 * budget.steps
        assert num_tokens > 0.95 * budget.clock


def test_a_window_that_was_given_up_is_tried_again(monkeypatch):
    def rides() -> list[float]:
        """The share of the steps in which it rides, over a text that cannot be guessed and one that can."""
        budget, drafter, shares = Timed(lambda rows: 1 + 0.02 * (rows - 1)), LookaheadDrafter(5, 4, 5, text=False), []
        for temperature in (50.0, 0.3):
            budget.steps = budget.rides = 0
            target = ToyTarget(23, temperature=temperature, model_seed=4)
            list(decode(target, drafter, [1, 2], max_new_tokens=1500, budget=budget))
            shares.append(budget.rides / budget.steps)
        return shares

    hopeless, hopeful = rides()
    assert hopeless < 0.1 and hopeful > 0.3
    monkeypatch.setattr(Timed, "CREDIT", 1.0)
    monkeypatch.setattr(Timed, "CREDIT_RATE", 0.0)
    assert rides() == [0.0, 0.0], "a budget that may risk little never tries it"


def test_a_window_that_always_rides_is_slow_there():
    """The test above must be able to fail."""
    stats = foretoken.DecodeStats()
    for step in decode(
        ToyTarget(11, temperature=0.5, model_seed=4),
        LookaheadDrafter(5, 4, 5, text=False),
        [1, 2],
        max_new_tokens=400,
        budget=ENOUGH,
    ):
        stats.add(step)
    assert stats.tokens < 0.5 * stats.steps * (1 + 0.3 * 14)


def test_estimates_are_honest():
    """Of guesses and of the window, over a text that does not loop; and they are not all alike."""
    said = right = brought = accepted = 0.0
    probs: set[float] = set()
    drafter = LookaheadDrafter(5, 4, 5, text=False)
    target = ToyTarget(11, temperature=0.5, model_seed=4)
    for step in decode(target, drafter, [1, 2], max_new_tokens=2000, budget=ENOUGH):
        draft, node = step.draft, -1
        brought += sum(draft.probs[draft.num_guesses :])
        accepted += step.num_accepted
        for token in step.tokens:
            said += sum(draft.probs[child] for child in draft.children(node))
            probs.update(round(draft.probs[child], 1) for child in draft.children(node))
            node = next((child for child in draft.children(node) if draft.tokens[child] == token), -2)
            right += node >= 0
            if node == -2:
                break
    assert said == pytest.approx(right, rel=0.1)
    assert brought == pytest.approx(accepted, rel=0.1)
    assert len(probs) > 4


def test_tokens_that_the_text_said_are_no_merit_of_the_window():
    def promised(text: bool) -> float:
        drafter = LookaheadDrafter(5, 4, 5, text=text)
        steps = list(decode(ToyTarget(5, model_seed=3), drafter, [1, 2], max_new_tokens=300, budget=ENOUGH))
        return sum(steps[-2].draft.probs[steps[-2].draft.num_guesses :])

    assert promised(text=False) > 2 > 0.1 > promised(text=True), "a toy that loops"


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((-1, 3, 3), "window is -1: give a whole number from 0 on"),
        ((3, 1, 3), "ngram is 1: give a whole number from 2 on"),
        ((3, 3, 0), "guesses is 0: give a whole number from 1 on"),
        ((600, 3, 3), "adds 1199 rows to every forward: make one of them smaller"),
    ],
)
def test_shapes_that_cannot_be_are_refused(numbers, sentence):
    for make in (LookaheadDrafter, Lookahead):
        with pytest.raises(ForetokenError, match=sentence):
            make(*numbers)


def test_the_papers_shape_is_the_default():
    assert LookaheadDrafter().shape == Shape(15, 5, 15)
    assert (Lookahead().window, Lookahead().ngram, Lookahead().guesses) == (15, 5, 15)


def test_where_rows_are_free_a_budget_that_knows_nothing_comes_to_the_window(monkeypatch):
    """The largest window costs more than may be risked at first; smaller drafts show that rows cost nothing."""
    monkeypatch.setattr("foretoken.core.contracts.time.perf_counter", lambda: 0.0)
    steps = decode(ToyTarget(vocab=40), LookaheadDrafter(), [1, 2, 3] * 4, max_new_tokens=400, budget=AdaptiveBudget())
    rides = [step.draft.num_lookahead for step in steps]
    assert rides[0] == 0 and max(rides) == Shape(15, 5, 15).num_rows


def test_the_window_rides_beside_another_drafters_guesses_and_shows_it_its_rows():
    target = ToyTarget(vocab=40, temperature=0.7, seed=2)

    def said(drafter) -> tuple[list[int], int]:
        steps = list(decode(target, drafter, [1, 2], max_new_tokens=60, budget=FixedBudget(4)))
        return [token for step in steps for token in step.tokens], max(step.draft.num_lookahead for step in steps)

    alone, beside = NgramMixer(recycle=True, floor=0.0), NgramMixer(recycle=True, floor=0.0)
    window = WithWindow(beside, LookaheadDrafter(5, 3, 1, text=False))
    assert said(window) == (said(None)[0], Shape(5, 3, 1).num_rows)
    assert said(alone) == (said(None)[0], 0)
    known, known_alone = (int(drafter.memory.recycled.entries[0, 0]) for drafter in (beside, alone))
    assert known > 1.2 * known_alone
