"""How the target's own token is chosen from a row of logits: processors, then argmax or the seed's noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretoken.core.contracts import Top
from foretoken.core.errors import LogitsError, RequestError
from foretoken.core.noise import position_key, random_bits, signed

# Gumbel noise from 52-bit uniforms lies in (-3.6, 36.8): a logit this far below the best one cannot win.
NOISE_RANGE = 41.0


Processors = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Choice:
    """A decision rule on logits, the same for every row whatever was drafted.

    Args:
        processors: A ``LogitsProcessorList``, or anything called with token ids [1, length] and float32 logits
            [1, vocab] that returns logits [1, vocab]. If None, the logits stay as they are.
        seed: Decides the token at each position under sampling. If None, decoding is greedy.
    """

    processors: Processors | None = None
    seed: int | None = None

    @property
    def is_argmax(self) -> bool:
        """Whether rows need no ids: a batched argmax will do."""
        return self.processors is None and self.seed is None

    def process(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The logits to choose from, float32 [vocab], for ``ids`` [1, length] and ``logits`` [vocab]."""
        # A copy, as processors may write into what they are given.
        scores = logits.to(torch.float32, copy=True)
        return scores if self.processors is None else self.processors(ids, scores[None])[0]

    def choose(self, ids: Tensor, logits: Tensor) -> int:
        """The token that follows ``ids``, and stands at position ``ids.shape[1]``.

        Raises:
            ForetokenError: If none can be chosen, as the logits are not numbers.
        """
        return self.compare(ids, logits).best

    def compare(self, ids: Tensor, logits: Tensor) -> Compared:
        """What ``choose`` takes the argmax of."""
        scores = self.process(ids, logits)
        if self.seed is None:
            return Compared(scores, argmax(scores))
        candidates = (scores >= _best(scores) - NOISE_RANGE).nonzero()[:, 0]
        scores = scores[candidates].double() + gumbel(self.seed, ids.shape[1], candidates)
        return Compared(scores, argmax(scores), candidates)


@dataclass(frozen=True)
class Compared:
    """The numbers whose largest is chosen.

    Args:
        scores: [candidates].
        index: Of the largest.
        tokens: The candidates; None where they are all tokens.
    """

    scores: Tensor
    index: int
    tokens: Tensor | None = None

    @property
    def best(self) -> int:
        """The token that is chosen."""
        return self._token(self.index)

    @property
    def runner_up(self) -> tuple[int, float]:
        """The token that came second, and by how much it lost."""
        others = self.scores.clone()
        others[self.index] = -torch.inf
        second = argmax(others)
        return self._token(second), float(self.scores[self.index].double() - others[second])

    def _token(self, index: int) -> int:
        return index if self.tokens is None else int(self.tokens[index])


def argmax(logits: Tensor) -> int:
    """The index of the largest of ``logits`` [vocab], the first where several are.

    On a CPU numpy finds it ten times faster than torch, and torch's max four times faster than its argmax: that counts
    with 150,000 of them.

    Raises:
        LogitsError: If one of them is not a number: both take that for the largest.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        numbers = logits.numpy()
        index = int(numbers.argmax())
        largest = float(numbers[index])
    else:
        found = logits.max(dim=0)
        index, largest = int(found.indices), float(found.values)
    if math.isnan(largest):
        raise LogitsError
    return index


def _best(scores: Tensor) -> Tensor:
    """The largest of what a token is drawn from, float32 [vocab].

    Raises:
        ForetokenError: If it has no distribution.
    """
    best = scores.max()
    number = float(best)
    if number == -math.inf:
        raise RequestError("The logits processors leave no token to draw: loosen the options of sampling.")
    if not math.isfinite(number):
        raise LogitsError
    return best


def top(logits: Tensor, k: int) -> Top:
    """The tokens of the ``k`` largest ``logits`` [rows, vocab], best first, and their probabilities."""
    logits = logits.float()
    if logits.device.type == "cpu":
        from foretoken.ngrams.likeliest import likeliest  # not before there are logits: it takes time to import

        tokens, logprobs = likeliest(logits.contiguous().numpy(), k)
        return Top(tokens, np.exp(logprobs))
    largest, indices = logits.topk(min(k, logits.shape[1]))
    return Top(indices.cpu().numpy(), (largest - logits.logsumexp(-1, keepdim=True)).exp().cpu().numpy())


def gumbel(seed: int, position: int, tokens: Tensor) -> Tensor:
    """``core.noise.gumbel`` of many tokens: int64 [n] to float64 [n], on their device."""
    uniform = (random_bits(signed(position_key(seed, position)), tokens).double() + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))
