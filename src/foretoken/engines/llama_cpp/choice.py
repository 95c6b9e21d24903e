"""How a token is chosen from a row of logits in numpy: processors, then the argmax or the seed's noise.

The settings mean what they mean in transformers, and are asked in its order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foretoken.core.errors import LogitsError, RequestError
from foretoken.core.noise import position_key, random_bits, signed
from foretoken.core.sampling import Sampling
from foretoken.ngrams import compiling

Floats = NDArray[np.float32]

# Gumbel noise from 52-bit uniforms lies in (-3.6, 36.8): a logit this far below the best one cannot win.
NOISE_RANGE = 41.0
LOG2_E, BITS = 1.4426950408889634, 52


@dataclass(frozen=True)
class Choice:
    """A decision rule on logits, the same for every row whatever was drafted.

    Args:
        sampling: The settings. Those that are left open change nothing; without a temperature it is 1 if tokens are
            sampled.
        num_prompt: Tokens of the prompt, which the presence and frequency penalties leave alone.
    """

    sampling: Sampling = Sampling(temperature=0.0)  # noqa: RUF009  # frozen
    num_prompt: int = 0

    @property
    def is_argmax(self) -> bool:
        """Whether the logits are taken as they are, and the best one is chosen."""
        return not self.sampling.samples and not self._penalises and not self.sampling.processors

    @property
    def _penalises(self) -> bool:
        asked = self.sampling
        return bool(asked.presence_penalty or asked.frequency_penalty or asked.repetition_penalty not in (None, 1.0))

    def scores(self, tokens: Sequence[int], logits: Floats) -> NDArray[np.float64]:
        """What a token is chosen by, before the noise; -inf where it cannot be chosen.

        Args:
            tokens: All tokens before the one that is chosen.
            logits: float32 [vocab]; they stay as they are.

        Raises:
            ForetokenError: If a processor gives something else than logits.
        """
        processed = self._processed(tokens, logits)
        return self._warped(processed) if self.sampling.samples else processed.astype(np.float64)

    def best(self, scores: NDArray[np.float64], position: int) -> int:
        """The token of the largest sum of a score and the seed's noise, or without sampling of the largest score.

        Args:
            scores: Of all tokens.
            position: How many tokens come before the chosen one.

        Raises:
            LogitsError: If a score is not a number.
        """
        if not self.sampling.samples:
            return argmax(scores)
        best = int(_best_sum(scores, signed(position_key(self.sampling.seed or 0, position))))
        if best < 0:
            raise LogitsError
        return best

    def perturbed(self, scores: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        """What ``best`` takes the largest of; -inf where a token cannot be chosen."""
        if not self.sampling.samples:
            return scores
        candidates = np.flatnonzero(scores >= scores.max() - NOISE_RANGE)
        perturbed = np.full(scores.shape, -np.inf)
        perturbed[candidates] = scores[candidates] + gumbel(self.sampling.seed or 0, position, candidates)
        return perturbed

    def _processed(self, tokens: Sequence[int], logits: Floats) -> Floats:
        """The logits after the penalties and the caller's processors."""
        asked = self.sampling
        if not self._penalises and not asked.processors:
            return logits
        logits = logits.copy()
        if asked.presence_penalty or asked.frequency_penalty:
            said, counts = np.unique(np.array(tokens[self.num_prompt :], np.int64), return_counts=True)
            logits[said] -= (asked.presence_penalty or 0.0) + (asked.frequency_penalty or 0.0) * counts
        if asked.repetition_penalty not in (None, 1.0):
            said = np.unique(np.array(tokens, np.int64))
            some = logits[said]
            logits[said] = np.where(some < 0, some * asked.repetition_penalty, some / asked.repetition_penalty)
        for processor in asked.processors:
            logits = _checked(processor(np.array(tokens, np.intc), logits), logits.size)
        return logits

    def _warped(self, logits: Floats) -> NDArray[np.float64]:
        """The logits that a token is drawn from: divided by the temperature, and -inf beyond top k, top p and min p."""
        asked = self.sampling
        scores = logits / np.float64(1.0 if asked.temperature is None else asked.temperature)
        if asked.top_k and asked.top_k < scores.size:
            scores[scores < np.partition(scores, -asked.top_k)[-asked.top_k]] = -np.inf
        if asked.top_p is not None and asked.top_p < 1:
            order = np.argsort(scores, kind="stable")
            unlikely = order[np.cumsum(_softmax(scores[order])) <= 1 - asked.top_p]
            scores[unlikely[unlikely != order[-1]]] = -np.inf
        if asked.min_p:
            probs = _softmax(scores)
            scores[probs < asked.min_p * probs.max()] = -np.inf
        return scores


def argmax(scores: NDArray[Any]) -> int:
    """The index of the largest of ``scores`` [vocab], the first where several are.

    Raises:
        LogitsError: If one of them is not a number, which numpy takes for the largest.
    """
    best = int(scores.argmax())
    if math.isnan(scores[best]):
        raise LogitsError
    return best


def gumbel(seed: int, position: int, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """``core.noise.gumbel`` of many tokens [n]."""
    uniform = (random_bits(signed(position_key(seed, position)), tokens) + 0.5) * 2.0**-52
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def compile_choice() -> None:
    """Compile the loop, or load it from the disk, so that no answer's time has that in it."""
    _best_sum(np.zeros(1), 0)


_bits = compiling.helper(random_bits)


@compiling.compiled
def _best_sum(scores: NDArray[np.float64], key: int) -> int:
    """The index of the largest sum of a score and its noise, the first where several are; -1 if one is not a number.

    For next to no token the two logarithms of the noise are taken: with u the uniform number of its bits, a sum is
    larger than another by ``-room`` only if 1 - u is below exp(room).
    """
    at = 0
    for i in range(scores.size):
        if math.isnan(scores[i]):
            return -1
        if scores[i] > scores[at]:
            at = i
    if math.isinf(scores[at]):
        return at
    best = scores[at] - math.log(-math.log((_bits(key, np.int64(at)) + 0.5) * 2.0**-BITS))
    for i in range(scores.size):
        room = scores[i] - best
        if room <= -NOISE_RANGE:
            continue
        bits = _bits(key, np.int64(i))
        power = max(0, BITS + 1 + math.floor(room * LOG2_E))  # 2**power is above exp(room) * 2**BITS
        if power < BITS and (1 << BITS) - bits > 1 << power:
            continue
        total = scores[i] - math.log(-math.log((bits + 0.5) * 2.0**-BITS))
        if total > best or (total == best and i < at):
            best, at = total, i
    return at


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    probs: NDArray[np.float64] = powers / powers.sum()
    return probs


def _checked(logits: Any, size: int) -> Floats:
    found = np.asarray(logits, np.float32)
    if found.shape != (size,):
        raise RequestError(
            f"A logits processor gave an array of shape {list(found.shape)}: give the {size} logits of the tokens."
        )
    return found
