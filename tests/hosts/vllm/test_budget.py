"""The budget of a batch on machines of several kinds, whose times are noisy: what it may lose and what it must gain."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from foretoken.hosts.vllm.budget import BatchBudget

K = 8


@dataclass
class Machine:
    """A step over n rows takes ``base + row * n``, and ``drafts`` more if some of them are drafted."""

    base: float
    row: float
    drafts: float

    def seconds(self, num_rows: int, has_drafts: bool) -> float:
        return self.base + self.row * num_rows + self.drafts * has_drafts


CHEAP, MIDDLE, DEAR = Machine(20, 0.02, 0.5), Machine(5, 0.5, 0), Machine(2, 1, 1)


def speedup(
    machine: Machine, num_requests: int, prob: float, steps: int, seed: int, honest: float = 1.0, noise: float = 0.05
) -> float:
    """Tokens per second over those of plain decoding, from the first step on.

    Drafts promise about ``prob`` for each token, and each is right ``honest`` times as often.
    """
    rng, budget = random.Random(seed), BatchBudget()
    seconds, tokens = 0.0, 0
    for _ in range(steps):
        probs = [min(0.98, max(0.02, rng.gauss(prob, 0.2))) for _ in range(num_requests)]
        chosen = np.zeros(num_requests, np.int32)
        paths = np.cumprod(np.repeat(np.array(probs, np.float32)[:, None], K, axis=1), axis=1, dtype=np.float32)
        if budget.allows(num_requests):
            paths[paths < budget.floor(num_requests, K * num_requests)] = 0
            chosen = budget.choose(paths, num_requests)
        kept = 0
        for p, num in zip(probs, chosen.tolist(), strict=True):
            kept += next((i for i in range(num) if rng.random() >= p * honest), num)
        num_drafted = int(chosen.sum())
        taken = machine.seconds(num_requests + num_drafted, num_drafted > 0)
        promised = float(paths[np.arange(K) < chosen[:, None]].sum())
        budget.observe(num_requests, num_drafted, taken * math.exp(rng.gauss(0, noise)), promised, kept)
        seconds, tokens = seconds + taken, tokens + num_requests + kept
    return tokens / seconds * machine.seconds(num_requests, False) / num_requests


def average(machine: Machine, num_requests: int, prob: float, steps: int, honest: float = 1.0) -> float:
    return float(np.mean([speedup(machine, num_requests, prob, steps, seed, honest) for seed in range(4)]))


@pytest.mark.parametrize("machine", [CHEAP, MIDDLE, DEAR])
@pytest.mark.parametrize("num_requests", [1, 4, 16, 32])
@pytest.mark.parametrize("prob", [0.1, 0.5])
def test_little_is_lost_from_the_first_batch_on(machine, num_requests, prob):
    assert average(machine, num_requests, prob, 64) > 0.965


@pytest.mark.parametrize("num_requests", [1, 4, 16, 32])
def test_drafts_that_are_never_right_cost_little(num_requests):
    assert average(MIDDLE, num_requests, 0.8, 200, honest=0.0) > 0.97


@pytest.mark.parametrize("num_requests", [1, 4, 16, 32])
def test_where_rows_are_cheap_good_drafts_gain_much(num_requests):
    assert average(CHEAP, num_requests, 0.9, 200) > 3.5


def test_a_batch_that_fills_the_machine_is_drafted_for_less_than_one_request():
    speedups = [average(MIDDLE, num, 0.9, 200) for num in (1, 4, 16, 32)]
    assert speedups == sorted(speedups, reverse=True)
    assert speedups[0] > 3 > 1.5 > speedups[-1] > 0.98


def test_the_first_steps_of_each_size_are_plain():
    budget = BatchBudget()
    for num_requests in (1, 4, 32):
        for _ in range(BatchBudget.PLAIN_SAMPLES):
            assert not budget.allows(num_requests)
            budget.observe(num_requests, 0, 0.01, 0.0, 0)
        assert budget.allows(num_requests)


@given(arrays(np.float32, (5, K), elements=st.floats(0, 1, width=32)), st.integers(0, 2**32 - 1))
def test_the_likeliest_tokens_are_chosen_and_none_without_those_before_it(probs, seed):
    paths = np.cumprod(probs, axis=1, dtype=np.float32)
    budget = BatchBudget()
    for size, seconds in ((0, 1.0), (0, 1.0), (0, 1.0), (5, 1.05), (20, 1.2)):
        budget.observe(5, size, seconds, 2.0, 2)
    chosen = budget.choose(paths, 5)
    is_chosen = np.arange(K) < chosen[:, None]
    assert np.all(chosen <= np.count_nonzero(paths, axis=1))
    if is_chosen.any() and (~is_chosen & (paths > 0)).any():
        assert paths[is_chosen].min() >= paths[~is_chosen & (paths > 0)].max()


@pytest.mark.parametrize("seconds", [4.0, 20.0])
def test_slow_first_forwards_do_not_end_drafting(seconds):
    """The first forwards over drafts may take many times as long as those that follow."""
    budget = BatchBudget()
    for _ in range(budget.PLAIN_SAMPLES):
        budget.observe(4, 0, 1.0, 0.0, 0)
    for _ in range(2):
        budget.observe(4, 8, seconds, 7.9, 8)
    assert budget.allows(4)
    if seconds == 4.0:
        assert budget.choose(np.full((4, 8), 0.99, np.float32), 4).sum() > 8
