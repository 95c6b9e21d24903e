"""The promise: whatever drafts, the tokens are those of plain decoding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from foretoken import AdaptiveBudget, DecodeStats, Drafter, FixedBudget, Scores, Target, Verdict, decode
from foretoken.core.contracts import Heads
from foretoken.core.draft import Draft
from foretoken.core.verify import Commit
from foretoken.drafters import (
    AdaptiveNgram,
    HeadsDrafter,
    MixedHeadsDrafter,
    NgramMixer,
    PromptLookupDrafter,
    RefinedDrafter,
    SharedNgrams,
)
from foretoken.drafters.head_trees import BestFirst, read_shape
from foretoken.drafters.lookahead import LookaheadDrafter
from foretoken.drafters.recycle import RecycleDrafter
from foretoken.engines.toy import ToyHeads, ToyTarget
from foretoken.engines.transformers.cache import Mark
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.recurrent import RecurrentCache, StateLayer
from foretoken.engines.transformers.target import TransformersTarget
from foretoken.memory.corpus.build import build
from foretoken.ngrams.background import Background
from helpers.drafting import Oracle, RandomTrees
from helpers.heads import KINDS, torch_heads
from helpers.shapes import CONFIGS, RECURRENT, VOCAB, tiny_model

prompts = st.lists(st.integers(0, 4), min_size=1, max_size=12)
seeds = st.integers(0, 2**64 - 1)


def run(target: Target, drafter: Drafter | None, prompt: Sequence[int], **options) -> tuple[list[int], DecodeStats]:
    stats, tokens = DecodeStats(), []
    for step in decode(target, drafter, prompt, **options):
        stats.add(step)
        tokens += step.tokens
        assert step.num_accepted <= len(step.draft)
    assert stats.tokens == len(tokens)
    return tokens, stats


def drafters(seed: int, prompt: Sequence[int], answer: Sequence[int], vocab: int) -> list[Drafter]:
    oracle = Oracle(seed, prompt, answer, vocab)
    ngrams: list[Drafter] = [AdaptiveNgram(), AdaptiveNgram(max_order=2), PromptLookupDrafter(), mixed(prompt, answer)]
    shown: list[Drafter] = [RecycleDrafter(), LookaheadDrafter(3, 3, 3), mixed(prompt, answer, recycle=True)]
    return [*ngrams, *shown, RandomTrees(seed, vocab), oracle]


def heads(guessers: Heads) -> list[Drafter]:
    """Trained heads in each shape of tree; the chain without noise."""
    texts = "3x2x1", "paths", "[[0], [0, 0], [1], [0, 0, 1], [0, 0, 0]]"
    shapes = [BestFirst(0.01, 8), *(read_shape(text, 4) for text in texts)]
    return [HeadsDrafter(guessers, BestFirst(0.0, 1), noise=False), *(HeadsDrafter(guessers, one) for one in shapes)]


def with_ngrams(guessers: Heads, prompt: Sequence[int], answer: Sequence[int]) -> list[Drafter]:
    """Trained heads beside the n-gram core, and rescored by it."""
    both = MixedHeadsDrafter(mixed(prompt, answer, recycle=True), HeadsDrafter(guessers))
    shapes = BestFirst(0.01, 8), read_shape("paths", 4)
    return [both, *(RefinedDrafter(guessers, mixed(prompt, answer), shape=shape) for shape in shapes)]


def mixed(prompt: Sequence[int], answer: Sequence[int], recycle: bool = False) -> NgramMixer:
    """The n-gram core with all that it can draft from, some of it right and some not."""
    memory = SharedNgrams(corpus())
    half = len(answer) // 2
    memory.add([*prompt, *answer[:half], *answer[half + 2 :]])
    return NgramMixer(memory, references=[answer[half:], [], [1, 2, 1, 3]], recycle=recycle)


@cache
def corpus() -> Background:
    """A background corpus of small tokens, and one that no model here has."""
    with TemporaryDirectory() as folder:
        documents = [[i % 5, i * i % 5, i * i * i % 61, i % 3] * 2 for i in range(40)] + [[1, 2, 2**20 - 1]]
        build(documents, None, "any", folder)
        opened = Background.open(folder)
        return Background(opened.meta, opened.index.copy(), opened.rows.copy())


def penalise(tokens: Sequence[int], logits: list[float]) -> list[float]:
    """A processor that looks at the whole path: what has been said becomes less likely, then the last two are cut."""
    logits = [x - 0.4 * tokens.count(token) for token, x in enumerate(logits)]
    floor = sorted(logits)[1]
    return [x if x > floor else float("-inf") for x in logits]


@settings(max_examples=80, deadline=None)
@given(
    prompt=prompts,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    seed=seeds,
    budget=st.integers(0, 12),
    max_new_tokens=st.integers(1, 40),
    stop_tokens=st.sets(st.integers(0, 4), max_size=1),
    processor=st.sampled_from([None, penalise]),
    max_length=st.sampled_from([None, 20]),
)
def test_toy_output_does_not_depend_on_the_drafter(
    prompt, temperature, seed, budget, max_new_tokens, stop_tokens, processor, max_length
):
    target = ToyTarget(
        temperature=temperature, seed=seed, model_seed=seed % 7, processor=processor, max_length=max_length
    )
    options = {
        "max_new_tokens": max_new_tokens,
        "stop_tokens": stop_tokens,
        "stop": lambda context: context[-2:] == [1, 1],
    }
    plain, plain_stats = run(target, None, prompt, **options)
    assert plain_stats.steps == len(plain) - 1
    adaptive = AdaptiveBudget(budget, {1: 1.0, 33: 1.1})  # a machine on which drafts pay, whatever this one is
    for drafter in [
        *drafters(seed, prompt, plain, 5),
        *heads(ToyHeads(target)),
        *with_ngrams(ToyHeads(target), prompt, plain),
    ]:
        for policy in (FixedBudget(budget), adaptive):
            drafted, stats = run(target, drafter, prompt, **options, budget=policy)
            assert drafted == plain
            assert stats.steps <= plain_stats.steps


def test_a_wrong_verifier_is_caught():
    """The test above must be able to fail: a rule that believes the first guess changes the text."""

    def believe(draft: Draft, scores: Scores, commit: Commit) -> Verdict:
        path = (0,) if draft and not commit(draft.tokens[0]) else ()
        token = scores.choose(len(path))
        commit(token)
        return Verdict(path, token)

    target = ToyTarget(model_seed=3)
    plain, _ = run(target, None, [1, 2], max_new_tokens=40)
    assert run(target, RandomTrees(0, 5), [1, 2], max_new_tokens=40, verify=believe)[0] != plain


@pytest.mark.parametrize("shape", ["qwen3_next", "qwen3_5", "granite_4", "falcon_h1", "nemotron_h", "bamba", "mamba_2"])
def test_a_state_that_is_not_taken_back_is_caught(shape, monkeypatch):
    """So must the test below: a rejected guess that stays in a recurrent state changes the text."""

    def drop_the_keys_only(self: RecurrentCache, mark: Mark) -> None:
        before = [copy.copy(layer) for layer in self.states.layers]
        go_back(self, mark)
        for layer, old in zip(self.states.layers, before, strict=True):
            if isinstance(layer, StateLayer):
                layer.conv_states, layer.recurrent_states = old.conv_states, old.recurrent_states

    target = TransformersTarget(tiny_model(shape))
    plain, _ = run(target, None, [1, 2], max_new_tokens=40)
    go_back = RecurrentCache.go_back
    monkeypatch.setattr(RecurrentCache, "go_back", drop_the_keys_only)
    assert run(target, RandomTrees(0, VOCAB), [1, 2], max_new_tokens=40)[0] != plain


def processors(temperature: float, top_k: int, top_p: float, min_p: float, penalty: float) -> LogitsProcessorList:
    """The warpers of a sampled request, in transformers' order."""
    made = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    if temperature > 0:
        made.append(TemperatureLogitsWarper(temperature))
        made.append(TopKLogitsWarper(top_k))
        made.append(TopPLogitsWarper(top_p))
        made.append(MinPLogitsWarper(min_p))
    return made


requests = given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24),
    temperature=st.sampled_from([0.0, 0.8, 1.3]),
    top_k=st.integers(1, VOCAB),
    top_p=st.floats(0.3, 1.0),
    min_p=st.floats(0.0, 0.3),
    penalty=st.sampled_from([1.0, 1.3]),
    seed=seeds,
)


@pytest.mark.parametrize("shape", CONFIGS)
@settings(max_examples=3, deadline=None)
@requests
def test_float32_models_give_the_same_tokens(shape, **request):
    assert_the_same_tokens(shape, KINDS, **request)


@pytest.mark.parametrize("shape", RECURRENT)
@settings(max_examples=2, deadline=None)
@requests
def test_float32_models_with_a_recurrent_state_give_the_same_tokens(shape, **request):
    assert_the_same_tokens(shape, KINDS[:1], **request)


def assert_the_same_tokens(shape, kinds, prompt, temperature, top_k, top_p, min_p, penalty, seed):
    choice = Choice(processors(temperature, top_k, top_p, min_p, penalty), seed if temperature > 0 else None)
    target = TransformersTarget(tiny_model(shape), choice)
    assert target.supports_trees == (shape in CONFIGS)
    options = {"max_new_tokens": 32, "stop_tokens": {3}}
    plain, _ = run(target, None, prompt, **options)
    trees = NgramMixer(SharedNgrams(corpus()))
    assert run(target, trees, prompt, **options, budget=AdaptiveBudget(costs={1: 1.0, 33: 1.1}))[0] == plain
    trained = [one for kind in kinds for one in heads(torch_heads(tiny_model(shape), kind, choice))]
    trained += with_ngrams(torch_heads(tiny_model(shape), "mlp", choice), prompt, plain)
    for drafter in [*drafters(seed, prompt, plain, VOCAB), *trained]:
        drafted, stats = run(target, drafter, prompt, **options)
        assert drafted == plain
        if isinstance(drafter, Oracle) and len(plain) > 8 and target.supports_trees:
            assert stats.acceptance_length > 2, "the right path is in the tree, so it must be found"


@pytest.mark.parametrize(
    ("shape", "attention"),
    [
        *((shape, "sdpa") for shape in [*CONFIGS, *RECURRENT]),
        ("llama", "eager"),
        ("gemma3", "eager"),
        ("bamba", "eager"),
    ],
)
def test_greedy_equals_transformers_own_generate(shape, attention):
    model = tiny_model(shape, attention)
    target = TransformersTarget(model)
    said: set[int] = set()
    for length in (1, 7, 40):
        prompt = torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(prompt)
        theirs = model.generate(prompt, attention_mask=mask, max_new_tokens=32, do_sample=False)[0, length:].tolist()
        said.update(theirs)
        plain, _ = run(target, None, prompt[0].tolist(), max_new_tokens=32)
        assert plain == theirs
        for drafter in drafters(0, prompt[0].tolist(), plain, VOCAB):
            assert run(target, drafter, prompt[0].tolist(), max_new_tokens=32)[0] == theirs
    assert len(said) > 10, "a model that repeats one token proves nothing"
