"""The choice under sampling: Gumbel noise keyed by (seed, position, token).

Adding independent Gumbel noise to the logits and taking the argmax draws from their softmax. Here the noise is a
function of the seed, the position and the token, so a token is chosen at a position whatever was drafted before it,
and two models that share a seed choose alike where their distributions are close.

The generator is SplitMix64 (Steele et al. 2014) as a hash; ``engines.transformers.choice`` computes the same numbers in
torch, and ``speculators.noise`` compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(x: int) -> int:
    """SplitMix64's finaliser: a bijection of 64-bit integers whose every output bit depends on every input bit."""
    x = ((x ^ (x >> 30)) * MIX_1) & MASK
    x = ((x ^ (x >> 27)) * MIX_2) & MASK
    return x ^ (x >> 31)


def position_key(seed: int, position: int) -> int:
    """The 64-bit key that a seed gives a position."""
    return mix((mix((seed + GOLDEN) & MASK) + position * GOLDEN) & MASK)


def uniform(key: int, index: int) -> float:
    """A number in (0, 1) for ``index`` under ``key``."""
    # 52 bits and a half: with 53 the largest would round to 1.
    return ((mix((key + (index + 1) * GOLDEN) & MASK) >> 12) + 0.5) * 2.0**-52


def gumbel(seed: int, position: int, token: int) -> float:
    """Standard Gumbel noise of a token at a position.

    >>> gumbel(0, 5, 1) == gumbel(0, 5, 1) != gumbel(0, 6, 1)
    True
    """
    return -math.log(-math.log(uniform(position_key(seed, position), token)))


def signed(x: int) -> int:
    """The signed 64-bit integer with the bits of an unsigned one."""
    return x - (1 << 64) if x >= 1 << 63 else x


SIGNED_GOLDEN, SIGNED_MIX_1, SIGNED_MIX_2 = signed(GOLDEN), signed(MIX_1), signed(MIX_2)


def random_bits(key: Any, tokens: Any) -> Any:
    """The 52 bits that ``uniform`` makes a number of, where 64-bit integers wrap: in arrays, and where it is compiled.

    Args:
        key: A position's, ``signed``.
        tokens: int64, of any array library; or one token, where this is compiled.
    """
    # Shifts to the right copy the sign, which the masks take away.
    x = (tokens + 1) * SIGNED_GOLDEN + key
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * SIGNED_MIX_1
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * SIGNED_MIX_2
    return ((x ^ ((x >> 31) & ((1 << 33) - 1))) >> 12) & ((1 << 52) - 1)


def perturbed(logits: Sequence[float], temperature: float, seed: int, position: int) -> list[float]:
    """What the choice at a position is the argmax of.

    Args:
        logits: [vocab], after every processor.
        temperature: If 0, the logits stay as they are: the choice is greedy.
        seed: Decides the choice at a temperature above 0.
        position: How many tokens come before the chosen one.
    """
    if temperature == 0:
        return list(logits)
    return [x / temperature + gumbel(seed, position, token) for token, x in enumerate(logits)]
