"""The draft model's promises: same text, an equal model is always right, no token is read twice, honest chances."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from foretoken import AdaptiveBudget, DecodeStats, Draft, Drafter, FixedBudget, Step, Target, decode
from foretoken.core.noise import gumbel
from foretoken.drafters import draft_model as module
from foretoken.drafters.draft_model import Calibration, DraftModelDrafter
from foretoken.engines.toy import ToyTarget
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.target import TransformersTarget
from helpers.shapes import CONFIGS, VOCAB, tiny_model

LITTLE = 0.04  # nats of log loss; what is never learned loses 0.1 to 0.9

prompts = st.lists(st.integers(0, 4), min_size=1, max_size=12)


class ChainsOnly(ToyTarget):
    supports_trees = False


def answer(target: Target, drafter: Drafter | None, prompt: Sequence[int], num_tokens: int = 40, **options):
    """The tokens, and what they cost."""
    stats, tokens = DecodeStats(), []
    for step in decode(target, drafter, prompt, max_new_tokens=num_tokens, **options):
        stats.add(step)
        tokens += step.tokens
    return tokens, stats


def penalise(tokens: Sequence[int], logits: list[float]) -> list[float]:
    return [x - 0.4 * tokens.count(token) for token, x in enumerate(logits)]


def blur(tokens: Sequence[int], logits: list[float]) -> list[float]:
    """Makes of a model one that knows something else, too, at every position."""
    return [x + gumbel(7, len(tokens), token) for token, x in enumerate(logits)]


@settings(max_examples=60, deadline=None)
@given(
    prompt=prompts,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=st.integers(0, 2**64 - 1),
    same_model=st.booleans(),
    budget=st.integers(0, 12),
    processor=st.sampled_from([None, penalise]),
    kind=st.sampled_from([ToyTarget, ChainsOnly]),
    floor=st.sampled_from([None, 0.0, 0.5]),
    draft_length=st.sampled_from([None, 8]),
    trees=st.booleans(),
)
def test_the_text_does_not_depend_on_the_draft_model(
    prompt, temperature, seed, same_model, budget, processor, kind, floor, draft_length, trees
):
    options = {"temperature": temperature, "seed": seed, "processor": processor}
    target = kind(model_seed=3, **options)
    plain, _ = answer(target, None, prompt)
    small = ToyTarget(model_seed=3 if same_model else 4, max_length=draft_length, **options)
    drafter = DraftModelDrafter(small, floor=floor, trees=trees)
    for policy in (FixedBudget(budget), AdaptiveBudget(budget, {1: 1.0, 33: 1.1})):
        assert answer(target, drafter, prompt, budget=policy)[0] == plain


@given(prompt=prompts, temperature=st.sampled_from([0.0, 0.7, 1.5]), seed=st.integers(0, 2**32))
def test_an_equal_model_is_always_right_and_reads_nothing_twice(prompt, temperature, seed):
    class Counting(ToyTarget):
        rows = 0

        def _forward(self, tokens, draft):
            self.rows += len(tokens) + len(draft)
            return super()._forward(tokens, draft)

    target, small = (Counting(temperature=temperature, seed=seed, processor=penalise) for _ in range(2))
    _, stats = answer(target, DraftModelDrafter(small, floor=0.0, trees=False), prompt)
    assert stats.accepted == stats.drafted > 30
    assert small.rows <= len(prompt) + 40


def test_another_seed_breaks_the_coupling():
    """The test above must be able to fail: an equal model that draws other noise is often wrong."""
    rates = []
    for small_seed in (5, 6):
        drafter = DraftModelDrafter(ToyTarget(temperature=1.0, seed=small_seed), floor=0.0, trees=False)
        stats = answer(ToyTarget(temperature=1.0, seed=5), drafter, [1, 2], 200)[1]
        rates.append(stats.acceptance_rate)
    assert rates[0] == 1.0 and rates[1] < 0.3


def drafts_after_rewinds(make, vocab: int, seed: int) -> None:
    """A model whose cache went back and forth drafts as a fresh one does."""
    source = random.Random(seed)
    kept = DraftModelDrafter(make(), floor=0.0, trees=False)
    context = [source.randrange(vocab)]
    for _ in range(8):
        if source.random() < 0.3:
            context = context[: source.randint(1, len(context))]
            kept.begin(context)
        context = [*context, *(source.randrange(vocab) for _ in range(source.randint(0, 3)))]
        fresh = DraftModelDrafter(make(), floor=0.0, trees=False)
        fresh.begin(context)
        for drafter in (kept, fresh):
            draft = drafter.propose(context, 4)
            assert drafter.target.num_cached == len(context) + 3
        assert kept.propose(context, 4).tokens == fresh.propose(context, 4).tokens == draft.tokens
        context = [*context, *draft.tokens[: source.randint(0, 4)]]


@given(seed=st.integers(0, 2**32))
def test_a_rewound_toy_drafts_as_a_fresh_one(seed):
    drafts_after_rewinds(lambda: ToyTarget(temperature=1.0, processor=penalise), 5, seed)


@pytest.mark.parametrize("shape", CONFIGS)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_rewound_cache_drafts_as_a_fresh_one(shape, seed):
    drafts_after_rewinds(lambda: TransformersTarget(tiny_model(shape), Choice(seed=seed)), VOCAB, seed)


@pytest.mark.parametrize("shape", CONFIGS)
def test_rewinding_is_reading_less(shape):
    target, fresh = (TransformersTarget(tiny_model(shape)) for _ in range(2))
    text = list(range(1, 40))
    target.prefill(text)
    target.score(40, Draft.chain([41, 42]))  # and no keep
    target.rewind(25)
    assert target.num_cached == 25 and target.ids[0].tolist() == text[:25]
    logits = target.score(text[25], Draft.chain(text[26:30])).logits
    expected = fresh.prefill(text[:30]).logits
    torch.testing.assert_close(logits[-1], expected[-1], atol=2e-4, rtol=1e-4)


def test_a_rewound_toy_forgets():
    target = ToyTarget()
    target.prefill([1, 2, 3])
    target.rewind(1)
    assert target.num_cached == 1
    assert target.score(4, Draft()).choose(0) == ToyTarget().prefill([1, 4]).choose(0)


@pytest.mark.parametrize("shape", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_equal_transformers_model_is_always_right(shape, temperature):
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.2)])
    if temperature:
        processors.append(TemperatureLogitsWarper(temperature))
    choice = Choice(processors, 11 if temperature else None)
    target, small = (TransformersTarget(tiny_model(shape), choice) for _ in range(2))
    plain, _ = answer(target, None, [7, 3, 9], 50)
    drafted, stats = answer(target, DraftModelDrafter(small, floor=0.0, trees=False), [7, 3, 9], 50)
    assert drafted == plain and stats.accepted == stats.drafted


def test_the_draft_ends_where_the_small_models_context_does():
    drafter = DraftModelDrafter(ToyTarget(max_length=10), floor=0.0, trees=False)
    drafter.begin([1] * 6)
    assert [len(drafter.propose([1] * n, 7)) for n in (6, 9, 10, 11, 12)] == [5, 2, 1, 0, 0]
    assert drafter.target.num_cached <= 10


def test_a_floor_ends_unlikely_drafts():
    lengths = []
    for floor in (0.0, 0.2, 0.9, 2.0):
        drafter = DraftModelDrafter(ToyTarget(model_seed=1), floor=floor, trees=False)
        stats = answer(ToyTarget(model_seed=2), drafter, [1, 2], 100)[1]
        lengths.append(stats.drafted / stats.steps)
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] <= 1.0 and lengths[0] > 6


def test_the_clock_ends_drafts_that_cost_more_than_they_bring(monkeypatch):
    """The same models, where a draft costs next to nothing and where it costs as much as the target's forward."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    class Timed(ToyTarget):
        seconds = 1.0

        def score(self, last_token, draft):
            now[0] += self.seconds
            return super().score(last_token, draft)

    lengths = []
    for seconds in (0.01, 0.4, 1.2):
        small = Timed(model_seed=2, temperature=0.5)
        small.seconds = seconds
        drafter = DraftModelDrafter(small, trees=False)
        stats = answer(Timed(model_seed=2, temperature=0.6), drafter, [1, 2], 300)[1]
        lengths.append(stats.drafted / stats.steps)
    assert lengths[0] > 6.5 > lengths[1] > lengths[2] and lengths[2] < 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_chances_are_what_happens(temperature):
    """Along a long text, guesses and runner-ups of a model that knows half keep what they promise, likely or not."""
    promised, kept = [0.0, 0.0], [0, 0]
    target = ToyTarget(vocab=9, temperature=temperature, seed=1, processor=blur)
    drafter = DraftModelDrafter(ToyTarget(vocab=9, temperature=temperature, seed=1), floor=0.0)
    for step in decode(target, drafter, [1, 2], max_new_tokens=3000):
        draft, node = step.draft, -1
        for token in step.tokens if len(target.cache) > 1000 else []:
            right = None
            for child in draft.children(node):
                promised[draft.probs[child] > 0.4] += draft.probs[child]
                kept[draft.probs[child] > 0.4] += draft.tokens[child] == token
                right = child if draft.tokens[child] == token else right
            if right is None:
                break
            node = right
    assert all(keep > 50 and abs(promise / keep - 1) < 0.15 for promise, keep in zip(promised, kept, strict=True))


@given(bias=st.floats(-2, 2), slope=st.floats(0.2, 3), seed=st.integers(0, 99))
def test_calibration_finds_the_curve(bias, slope, seed):
    """Its log loss comes to be nearly that of the truth."""
    source, calibration, excess = random.Random(seed), Calibration(), 0.0
    for n in range(3000):
        lead = source.expovariate(0.7)
        truth = 1 / (1 + math.exp(-bias - slope * lead))
        right = source.random() < truth
        if n >= 2000:
            known = calibration.prob(lead)
            excess += math.log(truth / known if right else (1 - truth) / (1 - known)) / 1000
        calibration.add(lead, right)
    assert excess < LITTLE


def test_what_is_no_number_is_no_lead():
    calibration = Calibration()
    assert calibration.prob(math.nan) == calibration.prob(0.0) < calibration.prob(1.0) < calibration.prob(math.inf)
    calibration.add(math.nan, True)
    assert 0 < calibration.prob(1.0) < 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_runner_ups_bring_more_tokens_for_as_many_rows(temperature):
    lengths = []
    for trees in (False, True):
        small = ToyTarget(vocab=9, temperature=temperature, seed=1)
        drafter = DraftModelDrafter(small, floor=0.0, trees=trees)
        target = ToyTarget(vocab=9, temperature=temperature, seed=1, processor=blur)
        _, stats = answer(target, drafter, [1, 2], 2000, budget=FixedBudget(7))
        assert stats.drafted <= 7 * stats.steps
        lengths.append(stats.acceptance_length)
    assert lengths[1] > 1.03 * lengths[0]


@given(prompt=prompts, max_tokens=st.integers(1, 9), seed=st.integers(0, 99), floor=st.sampled_from([None, 0.0]))
def test_a_draft_is_a_chain_and_what_came_second_beside_it_the_likeliest_first(prompt, max_tokens, seed, floor):
    trees, chain = (
        DraftModelDrafter(ToyTarget(temperature=1.0, seed=seed), floor=floor, trees=trees) for trees in (True, False)
    )
    for drafter in (trees, chain):
        drafter.begin(prompt)
    draft, line = trees.propose(prompt, max_tokens), chain.propose(prompt, max_tokens)
    assert 0 < len(draft) <= max_tokens and line.is_chain
    paths = [math.prod(draft.probs[node] for node in draft.ancestors(i)) for i in range(len(draft))]
    assert paths == sorted(paths, reverse=True)
    siblings = [draft.children(node) for node in range(-1, len(draft))]
    assert all(len({draft.tokens[node] for node in nodes}) == len(nodes) <= 2 for nodes in siblings)
    assert sum(any(draft.children(node) for node in nodes) for nodes in siblings) <= max(draft.depths)
    spine = [nodes[0] for nodes in siblings if nodes and draft.probs[nodes[0]] > 0.5]
    assert all(draft.path(node) == list(line.tokens[: draft.depths[node]]) for node in spine)


def test_a_cut_answer_is_not_taken_for_a_wrong_guess():
    target = ToyTarget()
    drafter = DraftModelDrafter(ToyTarget(), floor=0.0)
    plain, _ = answer(target, None, [1, 2])
    drafter.calibration.add = lambda lead, right: judged.append(right)
    judged: list[bool] = []
    answer(target, drafter, [1, 2], stop_tokens={plain[4]})
    assert judged and all(judged)


def test_the_first_step_is_not_judged():
    drafter = DraftModelDrafter(ToyTarget(), floor=0.0)
    drafter.begin([1])
    drafter.observe(Step(Draft(), (2,), ToyTarget().prefill([1])))
    assert drafter.calibration.mean == 0.5
