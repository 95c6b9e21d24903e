"""An MLP speculator as it drafts on a CPU: what its stages say, in few operations.

On a few rows of some hundred numbers, each of torch's operations takes longer to begin than to compute. So a stage is
one compiled loop and the product with its head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from foretoken.ngrams import compiling
from foretoken.speculators.mlp import EPSILON, MLPSpeculator

F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float32]

FAST = {"nnan", "nsz", "arcp", "contract", "reassoc"}  # vectors need sums in any order
HALF, ONE, ROOT_OF_HALF = np.float32(0.5), np.float32(1.0), np.float32(math.sqrt(0.5))


class Stage(NamedTuple):
    """The weights of a stage, but for its head.

    Args:
        projection: [width, width of the states before].
        scales: Whether the states before are normalised first, as ``mlp.scaled_input`` does.
        embedding: [vocab, width], multiplied by the weight that a token has.
        weight: [width], of the norm.
        bias: [width], of the norm.
    """

    projection: Floats
    scales: bool
    embedding: Floats
    weight: Floats
    bias: Floats


class MLPStagesOnCPU:
    """Implements ``heads.Stages``.

    Args:
        module: The speculator, on a CPU and in float32. Its weights shall not change afterwards.
    """

    def __init__(self, module: MLPSpeculator) -> None:
        self.num_heads, self.vocab_size = module.num_heads, module.vocab_size
        # What stages share is made once, and stays in the processor's cache from one to the next.
        projections = [np.ascontiguousarray(_weight(layer).numpy()) for layer in module.proj]
        embeddings = [_weight(layer).numpy() * np.float32(module.token_scale) for layer in module.emb]
        norms = [(_weight(norm).numpy(), _weight(norm, "bias").numpy()) for norm in module.ln]
        heads = [_weight(layer).T.contiguous().T for layer in module.head]  # in memory as few rows' product reads it
        stages = range(module.num_heads)
        scales = [module.config.scale_input, False]
        self._stages = [Stage(_of(projections, i), _of(scales, i), _of(embeddings, i), *_of(norms, i)) for i in stages]
        self._heads = [_of(heads, i) for i in stages]
        self.step(0, self.begin(torch.zeros(module.base_width)), [0], np.zeros(1, np.int32))  # compiles the loop

    def begin(self, state: Tensor) -> Floats:
        """The first stage's states: one row."""
        states: Floats = state.float().numpy()[None]
        return states

    def step(self, stage: int, states: Floats, rows: Sequence[int], tokens: NDArray[Any]) -> tuple[Floats, Tensor]:
        """The states and the logits after a stage, of rows of ``states`` and a token for each."""
        found = np.empty((len(rows), len(self._stages[stage].weight)), np.float32)
        _run(self._stages[stage], states, np.array(rows), tokens, found)
        return found, functional.linear(torch.from_numpy(found), self._heads[stage])


def _weight(module: nn.Module, name: str = "weight") -> Tensor:
    return module.get_parameter(name).detach()


def _of(of_stages: list[Any], stage: int) -> Any:
    return of_stages[min(stage, len(of_stages) - 1)]


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


@_compiled
def _run(stage: Stage, states: Floats, rows: NDArray[Any], tokens: NDArray[Any], found: Floats) -> None:
    """Fill in ``found`` [rows, width], the states after a stage."""
    width, inputs = stage.projection.shape
    for o in range(width):
        for r in range(rows.size):
            total = np.float32(0.0)
            for i in range(inputs):
                total += states[rows[r], i] * stage.projection[o, i]
            found[r, o] = total
    for r in range(rows.size):
        state = found[r]
        scale = ROOT_OF_HALF * _over_rms(states[rows[r]]) if stage.scales else ONE
        token = tokens[r] if tokens[r] < len(stage.embedding) else 0  # no choice has another, and memory ends there
        for i in range(width):
            state[i] = scale * state[i] + stage.embedding[token, i]
        factor = _over_rms(state)
        for i in range(width):
            x = factor * state[i] * stage.weight[i] + stage.bias[i]
            state[i] = HALF * x * (ONE + math.erf(x * ROOT_OF_HALF))
