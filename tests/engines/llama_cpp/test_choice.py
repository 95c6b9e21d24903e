"""The choice in numpy is that of transformers' own processors and of the noise as it is defined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from foretoken import ForetokenError
from foretoken.core.noise import gumbel
from foretoken.core.sampling import Sampling
from foretoken.engines.llama_cpp.choice import NOISE_RANGE, Choice, argmax
from foretoken.engines.llama_cpp.choice import gumbel as gumbel_of
from foretoken.engines.transformers.processors import CountPenalties

VOCAB, PROMPT = 40, 3


def by_transformers(sampling: Sampling, tokens: list[int], logits: np.ndarray) -> np.ndarray:
    """The scores that transformers' processors leave, and the noise added one token at a time."""
    penalties = sampling.presence_penalty or 0.0, sampling.frequency_penalty or 0.0
    asked: Any = tf.LogitsProcessorList([CountPenalties(*penalties, PROMPT)])
    asked.append(tf.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty or 1.0))
    if sampling.samples:
        asked.append(tf.TemperatureLogitsWarper(sampling.temperature or 1.0))
        asked += [tf.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        asked += [tf.TopPLogitsWarper(sampling.top_p)] if sampling.top_p else []
        asked += [tf.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    scores = asked(torch.tensor([tokens]), torch.tensor(logits)[None])[0].double().numpy()
    if not sampling.samples:
        return scores
    noise = [gumbel(sampling.seed or 0, len(tokens), token) for token in range(VOCAB)]
    return np.where(scores >= scores.max() - NOISE_RANGE, scores + noise, -np.inf)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    temperature=st.sampled_from([0.0, None, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 5, VOCAB]),
    top_p=st.sampled_from([None, 0.1, 0.63, 0.99]),
    min_p=st.sampled_from([None, 0.05, 0.9]),
    penalties=st.tuples(st.sampled_from([None, 0.7]), st.sampled_from([None, -0.4]), st.sampled_from([None, 1.3, 0.8])),
)
def test_scores_are_those_of_transformers(seed, temperature, top_k, top_p, min_p, penalties):
    presence, frequency, repetition = penalties
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition, presence, frequency, seed)
    rng = np.random.default_rng(seed)
    tokens, logits = rng.integers(0, VOCAB, 12).tolist(), rng.normal(0, 4, VOCAB).astype(np.float32)
    before = logits.copy()
    choice, expected = Choice(sampling, PROMPT), by_transformers(sampling, tokens, logits)
    scores = choice.scores(tokens, logits)
    found = choice.perturbed(scores, len(tokens))
    np.testing.assert_array_equal(logits, before)
    assert choice.best(scores, len(tokens)) == found.argmax()
    np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
    known = ~np.isinf(expected)
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-5, atol=1e-5)


def test_the_noise_is_that_of_the_definition_to_the_last_bit():
    for position in (0, 7, 123456):
        expected = [gumbel(2**64 - 3, position, token) for token in range(500)]
        np.testing.assert_allclose(gumbel_of(2**64 - 3, position, np.arange(500)), expected, rtol=1e-14, atol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63), st.sampled_from([0.02, 1.0, 30.0, 1e4]), st.sampled_from([0.0, 0.5, 0.99]))
def test_the_largest_sum_is_found_whatever_the_spread(seed, spread, share):
    """The loop skips what cannot win: compared with all sums, where few scores or all of them have a chance."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(0, spread, 3000), 2)  # some are equal
    scores[rng.random(3000) < share] = -math.inf
    choice = Choice(Sampling(1.0, seed=seed))
    for position in range(4):
        assert choice.best(scores, position) == choice.perturbed(scores, position).argmax()


def test_scores_that_are_not_finite():
    choice = Choice(Sampling(1.0, seed=1))
    assert choice.best(np.array([0.0, math.inf, math.inf]), 3) == 1
    assert choice.best(np.full(3, -math.inf), 3) == 0
    with pytest.raises(ForetokenError, match="The logits are not numbers"):
        choice.best(np.array([1.0, math.nan, 5.0]), 3)


def test_processors_are_called_as_those_of_llama_cpp_python_and_in_order():
    seen = []

    def forbid(ids, logits):
        seen.append((ids.dtype, ids.tolist(), logits.dtype))
        logits[3] = -math.inf
        return logits

    choice = Choice(Sampling(temperature=0.0, processors=(forbid, lambda ids, logits: logits * 2)))
    assert not choice.is_argmax
    logits = np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    assert choice.scores([1, 2], logits).tolist() == [0.0, 2.0, 4.0, -math.inf] and logits[3] == 3.0
    assert seen == [(np.dtype(np.intc), [1, 2], np.dtype(np.float32))]
    with pytest.raises(ForetokenError, match=r"gave an array of shape \[2\]: give the 4 logits"):
        Choice(Sampling(processors=(lambda ids, logits: logits[:2],))).scores([1], logits)


def test_the_first_of_equals_wins_and_what_is_no_number_is_refused():
    assert argmax(np.array([1.0, 5.0, 5.0])) == 1
    with pytest.raises(ForetokenError, match="The logits are not numbers"):
        argmax(np.array([1.0, math.nan, 5.0]))
    assert Choice(Sampling(temperature=0, repetition_penalty=1.0)).is_argmax
