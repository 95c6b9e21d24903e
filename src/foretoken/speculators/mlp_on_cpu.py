"""A small MLP speculator as it drafts on a CPU: what its stages say, in one compiled loop.

On a few rows of some hundred numbers, each of torch's operations takes longer to begin than to compute. What takes time
is to read the weights of the head, which have half their bits here, so that they stay in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foretoken.ngrams import compiling
from foretoken.ngrams.likeliest import fill_likeliest
from foretoken.speculators.mlp import EPSILON, MLPSpeculator

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Floats = NDArray[np.float32]
Ints = NDArray[Any]

FAST = {"nnan", "nsz", "arcp", "contract", "reassoc"}  # vectors need sums in any order
SIXTEEN = np.uint32(16)
HALF, ONE, ROOT_OF_HALF = np.float32(0.5), np.float32(1.0), np.float32(math.sqrt(0.5))


class Stage(NamedTuple):
    """The weights of a stage.

    Args:
        projection: [width, width of the states before].
        scales: Whether the states before are normalised first, as ``mlp.scaled_input`` does.
        embedding: [vocab, width], multiplied by the weight that a token has.
        weight: [width], of the norm.
        bias: [width], of the norm.
        head: [vocab, width], the upper 16 bits of float32.
    """

    projection: Floats
    scales: bool
    embedding: Floats
    weight: Floats
    bias: Floats
    head: NDArray[np.uint16]


class MLPStagesOnCPU:
    """Implements ``heads.Stages``.

    Args:
        module: The speculator, on a CPU and in float32. Its weights shall not change afterwards.
    """

    def __init__(self, module: MLPSpeculator) -> None:
        self.num_heads, self.vocab_size = module.num_heads, module.vocab_size
        # What stages share is made once, and stays in the processor's cache from one to the next.
        projections = [np.ascontiguousarray(_numbers(layer)) for layer in module.proj]
        embeddings = [_numbers(layer) * np.float32(module.token_scale) for layer in module.emb]
        weights, biases = [_numbers(norm) for norm in module.ln], [_numbers(norm, "bias") for norm in module.ln]
        heads = [_upper_bits(_numbers(layer)) for layer in module.head]
        scales = [module.config.scale_input, False]
        self._stages = [
            Stage(
                projection=_of(projections, i),
                scales=_of(scales, i),
                embedding=_of(embeddings, i),
                weight=_of(weights, i),
                bias=_of(biases, i),
                head=_of(heads, i),
            )
            for i in range(module.num_heads)
        ]
        self.step(0, self.begin(torch.zeros(module.base_width)), [0], np.zeros(1, np.int32), 1, 1.0)  # compiles it

    def begin(self, state: Tensor) -> Floats:
        """The first stage's states: one row."""
        states: Floats = state.float().numpy()[None]
        return states

    def step(
        self, stage: int, states: Floats, rows: Sequence[int], tokens: Ints, k: int, temperature: float
    ) -> tuple[Floats, Ints, Floats]:
        """See ``heads.Stages``."""
        weights = self._stages[stage]
        after = np.empty((len(rows), weights.weight.size), np.float32)
        best = np.zeros((len(rows), k), np.int32)
        logprobs = np.empty((len(rows), k), np.float32)
        _run(weights, states, np.array(rows), tokens, np.float32(1 / temperature), after, best, logprobs)
        return after, best, logprobs


def _of(of_stages: Sequence[T], stage: int) -> T:
    return of_stages[min(stage, len(of_stages) - 1)]


def _numbers(module: nn.Module, name: str = "weight") -> Floats:
    numbers: Floats = module.get_parameter(name).detach().numpy()
    return numbers


def _upper_bits(numbers: Floats) -> Ints:
    """Half the bits of each float32, the nearest that there are: bfloat16."""
    return ((np.ascontiguousarray(numbers).view(np.uint32) + np.uint32(1 << 15)) >> SIXTEEN).astype(np.uint16)


def _compiled(function: F) -> F:
    return compiling.compiled(function, error_model="numpy", fastmath=FAST)


def _part(function: F) -> F:
    return compiling.helper(function, error_model="numpy", fastmath=FAST)


@_part
def _over_rms(numbers: Floats) -> np.float32:
    """1 / rms(numbers)."""
    squares = np.float32(0.0)
    for i in range(numbers.size):
        squares += numbers[i] * numbers[i]
    over_rms: np.float32 = ONE / np.sqrt(squares / np.float32(numbers.size) + np.float32(EPSILON))
    return over_rms


@_part
def _advance(stage: Stage, states: Floats, rows: Ints, tokens: Ints, after: Floats) -> None:
    """Fill in the states ``after`` a stage, [rows, width]."""
    width, inputs = stage.projection.shape
    for o in range(width):
        for r in range(rows.size):
            total = np.float32(0.0)
            for i in range(inputs):
                total += states[rows[r], i] * stage.projection[o, i]
            after[r, o] = total
    for r in range(rows.size):
        state = after[r]
        scale = ROOT_OF_HALF * _over_rms(states[rows[r]]) if stage.scales else ONE
        token = tokens[r] if tokens[r] < len(stage.embedding) else 0  # no choice has another, and memory ends there
        for i in range(width):
            state[i] = scale * state[i] + stage.embedding[token, i]
        factor = _over_rms(state)
        for i in range(width):
            x = factor * state[i] * stage.weight[i] + stage.bias[i]
            state[i] = HALF * x * (ONE + math.erf(x * ROOT_OF_HALF))


@_part
def _number(bits: np.uint16) -> np.float32:
    """The float32 whose upper 16 bits these are."""
    return np.uint32(np.uint32(bits) << SIXTEEN).view(np.float32)


@_part
def _multiply(states: Floats, head: Ints, logits: Floats) -> None:
    """Fill in ``logits`` [rows, vocab]. Four rows at a time share what is read of the head."""
    vocab, width = head.shape
    last = len(states) - 1
    if last == 0:
        for o in range(vocab):
            total = np.float32(0.0)
            for i in range(width):
                total += states[0, i] * _number(head[o, i])
            logits[0, o] = total
        return
    for r0 in range(0, last + 1, 4):
        r1, r2, r3 = min(r0 + 1, last), min(r0 + 2, last), min(r0 + 3, last)
        for o in range(vocab):
            a, b, c, d = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for i in range(width):
                weight = _number(head[o, i])
                a += states[r0, i] * weight
                b += states[r1, i] * weight
                c += states[r2, i] * weight
                d += states[r3, i] * weight
            logits[r0, o], logits[r1, o], logits[r2, o], logits[r3, o] = a, b, c, d


@_compiled
def _run(
    stage: Stage,
    states: Floats,
    rows: Ints,
    tokens: Ints,
    scale: np.float32,
    after: Floats,
    best: Ints,
    logprobs: Floats,
) -> None:
    """Fill in what a stage returns."""
    _advance(stage, states, rows, tokens, after)
    logits = np.empty((rows.size, len(stage.head)), np.float32)
    _multiply(after, stage.head, logits)
    fill_likeliest(logits, scale, best, logprobs)
