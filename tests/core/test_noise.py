from __future__ import annotations

import math

import pytest
from scipy.stats import kstest

from foretoken.core.noise import MASK, gumbel, mix, position_key, uniform


@pytest.mark.parametrize("vary", ["seed", "position", "token"])
def test_noise_is_gumbel_along_every_axis(vary):
    fixed = {"seed": 3, "position": 17, "token": 5}
    draws = [gumbel(**(fixed | {vary: i})) for i in range(20_000)]
    assert kstest(draws, "gumbel_r").pvalue > 1e-3


def test_neighbouring_draws_are_independent():
    pairs = [(gumbel(0, i, 1), gumbel(0, i + 1, 1)) for i in range(20_000)]
    mean = sum(x for x, _ in pairs) / len(pairs)
    covariance = sum((x - mean) * (y - mean) for x, y in pairs) / len(pairs)
    assert abs(covariance) < 4 * (math.pi**2 / 6) / math.sqrt(len(pairs))


def test_mix_is_splitmix64():
    """The published first outputs of SplitMix64 with seed 1234567."""
    state, out = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        out.append(mix(state))
    assert out == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniforms_never_reach_the_ends():
    """The largest and the smallest hash still give finite noise."""
    for x in (0, MASK):
        value = ((x >> 12) + 0.5) * 2.0**-52
        assert 0 < value < 1 and math.isfinite(-math.log(-math.log(value)))
    assert 0 < uniform(position_key(2**64 - 1, 10**9), 200_000) < 1
