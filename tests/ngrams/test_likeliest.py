"""The likeliest tokens of rows of logits, beside a whole sort and a softmax in float64."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from foretoken.ngrams.likeliest import BLOCK, FEW, GROUPS, compile_likeliest, likeliest

SOME_LOGITS = st.floats(-60, 60, width=32) | st.sampled_from([-np.inf, -1e30, 0.0])


@pytest.fixture(autouse=True, scope="module")
def compiled():
    compile_likeliest()  # in no example's time


def sorted_and_summed(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return tokens, np.take_along_axis(powers / powers.sum(axis=1, keepdims=True), tokens, axis=1)


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 3 * BLOCK)), elements=SOME_LOGITS))
def test_a_row_names_what_a_sort_does_and_the_first_of_equals(logits):
    logits[:, -1] = 1.0  # one that is finite
    for k in (1, 8):
        tokens, logprobs = likeliest(logits, k)
        expected, exact = sorted_and_summed(logits, k)
        assert_array_equal(tokens, expected)
        assert_allclose(np.exp(logprobs), exact, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("vocab", [BLOCK - 1, BLOCK, BLOCK + 1, 4096, 32_003])
@pytest.mark.parametrize("shift", [0, 1, -1])
def test_the_largest_may_lie_side_by_side_anywhere(vocab, shift):
    logits = np.stack([np.roll(np.arange(vocab), shift), np.arange(vocab)[::-1]]).astype(np.float32) / vocab
    tokens, logprobs = likeliest(logits, 8)
    expected, exact = sorted_and_summed(logits, 8)
    assert_array_equal(tokens, expected)
    assert_allclose(np.exp(logprobs), exact, rtol=1e-5)


@pytest.mark.parametrize("vocab", [GROUPS, GROUPS + 1, 4096, 5000])
@pytest.mark.parametrize("k", [FEW + 1, 64, GROUPS, GROUPS + 1])
def test_many_are_found_among_more_and_at_any_temperature(vocab, k):
    rng = np.random.default_rng(vocab + k)
    logits = np.stack([rng.normal(0, 3, vocab).round(1), np.zeros(vocab), np.arange(vocab) / vocab, rng.random(vocab)])
    logits = logits.astype(np.float32)
    logits[3, 7:] = -np.inf
    for temperature in (1.0, 0.7):
        tokens, logprobs = likeliest(logits, k, temperature)
        _, exact = sorted_and_summed(logits / temperature, k)
        assert_array_equal(tokens, np.argsort(-logits, axis=1, kind="stable")[:, :k])
        assert_allclose(np.exp(logprobs), exact, rtol=1e-5)


def test_what_is_not_a_number_names_tokens_all_the_same():
    logits = np.full((2, 100), np.nan, np.float32)
    logits[1, 7:] = 0.0
    tokens, _ = likeliest(logits, 8)
    assert tokens.min() >= 0 and tokens.max() < 100
