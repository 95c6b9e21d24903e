"""The choice's noise of a few tokens in this machine's memory: torch begins longer than it computes there."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.noise import position_key, random_bits, signed
from foretoken.ngrams import compiling


def gumbel(seed: int, position: int, tokens: NDArray[Any]) -> NDArray[np.float64]:
    """``core.noise.gumbel`` of tokens int32 [rows, k]."""
    noise = np.empty(tokens.shape)
    _fill(signed(position_key(seed, position)), tokens, noise)
    return noise


_bits = compiling.helper(random_bits)


@compiling.compiled
def _fill(key: int, tokens: NDArray[Any], noise: NDArray[Any]) -> None:
    for r in range(tokens.shape[0]):
        for i in range(tokens.shape[1]):
            uniform = (_bits(key, np.int64(tokens[r, i])) + 0.5) * 2.0**-52
            noise[r, i] = -np.log(-np.log(uniform))
