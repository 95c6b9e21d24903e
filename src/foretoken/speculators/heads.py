"""Torch modules as the heads that a drafter asks: one batch and one transfer to this machine's memory a depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foretoken.core.contracts import Candidates
from foretoken.core.errors import ModelError
from foretoken.ngrams.likeliest import likeliest
from foretoken.speculators.mlp import MLPSpeculator
from foretoken.speculators.mlp_on_cpu import MLPStagesOnCPU
from foretoken.speculators.module import IndependentHeads, SequentialHeads

Ints = NDArray[Any]
Floats = NDArray[Any]
SMALL = 1 << 22  # weights of a head: a product with more gains from torch's threads

Noise = Callable[[int, Ints], Floats]
"""The choice's noise of a position and tokens, int to float, in any shape."""


class Stages(Protocol):
    """The stages of sequential heads, whose states only they read."""

    @property
    def num_heads(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    def begin(self, state: Tensor) -> Any:
        """The states before the first stage, one row, of the base's ``state`` [base_width]."""
        ...

    def step(
        self, stage: int, states: Any, rows: Sequence[int], tokens: Ints, k: int, temperature: float
    ) -> tuple[Any, Ints, Floats]:
        """What a stage makes of some rows of the states before it and a token for each.

        Args:
            stage: Counted from 0.
            states: What ``begin`` or the last ``step`` returned.
            rows: Which of them; one may come several times.
            tokens: int32 [rows].
            k: How many tokens to name.
            temperature: By which the logits are divided.

        Returns:
            The states after it; its likeliest tokens, int32 [rows, k], and their log-probabilities, float32 [rows, k].
        """
        ...


class TorchStages:
    """The stages of a torch module."""

    def __init__(self, module: SequentialHeads) -> None:
        self.num_heads, self.vocab_size = module.num_heads, module.vocab_size
        self._module = module
        self._device, self._dtype = _where(module)

    @torch.inference_mode()
    def begin(self, state: Tensor) -> Tensor:
        return state.to(self._device, self._dtype)[None]

    @torch.inference_mode()
    def step(
        self, stage: int, states: Tensor, rows: Sequence[int], tokens: Ints, k: int, temperature: float
    ) -> tuple[Tensor, Ints, Floats]:
        before = states[torch.tensor(rows, device=self._device)]
        after = self._module.step(stage, before, torch.from_numpy(tokens).to(self._device))
        return after, *best_of(self._module.logits(stage, after), k, temperature)


def ready(
    module: IndependentHeads | SequentialHeads, device: torch.device, dtype: torch.dtype
) -> IndependentHeads | Stages:
    """Heads on a device as they draft fastest, by torch in the model's dtype."""
    if (
        isinstance(module, MLPSpeculator)
        and device.type == "cpu"
        and module.vocab_size * module.config.inner_dim <= SMALL
    ):
        return MLPStagesOnCPU(module.to(device, torch.float32))
    module.to(device, dtype)
    return TorchStages(module) if isinstance(module, SequentialHeads) else module


def best_of(logits: Tensor, k: int, temperature: float) -> tuple[Ints, Floats]:
    """The likeliest tokens of ``logits`` [rows, vocab], best first, and their log-probabilities, in memory.

    Args:
        logits: [rows, vocab].
        k: How many, fewer if the vocabulary is smaller.
        temperature: By which the logits are divided.

    Returns:
        int32 [rows, k] and float32 [rows, k].
    """
    logits = logits.float()
    if logits.device.type == "cpu":
        return likeliest(logits.numpy(), k, temperature)
    logprobs, tokens = (logits / temperature).log_softmax(-1).topk(k)
    both = torch.stack([tokens.double(), logprobs.double()]).cpu().numpy()  # in one transfer
    return both[0].astype(np.int32), both[1].astype(np.float32)


def _where(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(module.parameters())
    return parameter.device, parameter.dtype


class TorchHeads:
    """Heads for one sequence at a time. Implements ``core.contracts.Heads``.

    Attributes:
        independent: Whether no head reads the tokens before its own.

    Args:
        heads: The trained heads, where the target's states are.
        temperature: Of the choice. If 0, the choice is greedy and the candidates' probabilities are those at 1.
        noise: What the choice adds to the logits divided by the temperature. If None, nothing.
        k: Candidates of a row, fewer if the vocabulary is smaller.
    """

    def __init__(
        self,
        heads: IndependentHeads | Stages,
        temperature: float = 0.0,
        noise: Noise | None = None,
        k: int = 64,
    ) -> None:
        self.num_heads = heads.num_heads
        self.independent = isinstance(heads, IndependentHeads)
        self._heads = heads
        self._temperature = temperature or 1.0
        self._noise = noise
        self._k = min(k, heads.vocab_size)
        self._head = 0
        self._position = 0
        self._states: Any = None  # of the last candidates' rows; only for stages
        self._tokens = np.empty((0, 0), np.int32)  # the last candidates, [rows, k]; of independent heads [heads, k]
        self._logprobs = np.empty((0, 0), np.float32)  # theirs

    def start(self, state: Tensor, token: int, position: int) -> Candidates:
        self._head, self._position = 0, position
        if isinstance(self._heads, IndependentHeads):
            self._tokens, self._logprobs = self._all(self._heads, state)
            return self._same(1)
        return self._step(self._heads, self._heads.begin(state), [0], np.array([token], np.int32))

    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        self._head, self._position = self._head + 1, self._position + 1
        if isinstance(self._heads, IndependentHeads):
            return self._same(len(rows))
        return self._step(self._heads, self._states, rows, self._tokens[rows, ranks])

    def _step(self, stages: Stages, states: Any, rows: Sequence[int], tokens: Ints) -> Candidates:
        """The next stage's candidates after ``tokens``, one for each of its rows."""
        self._states, self._tokens, self._logprobs = stages.step(
            self._head, states, rows, tokens, self._k, self._temperature
        )
        return self._candidates(self._tokens, self._logprobs)

    @torch.inference_mode()
    def _all(self, heads: IndependentHeads, state: Tensor) -> tuple[Ints, Floats]:
        """The candidates of all independent heads, [heads, k]."""
        return best_of(heads.all(state.to(*_where(heads))), self._k, self._temperature)

    def _same(self, rows: int) -> Candidates:
        """The candidates of an independent head, ``rows`` times."""
        head = [self._head] * rows
        return self._candidates(self._tokens[head], self._logprobs[head])

    def _candidates(self, tokens: Ints, logprobs: Floats) -> Candidates:
        if not math.isfinite(logprobs[0, 0]):
            raise ModelError(
                "The speculator's logits are not numbers: its weights are damaged, or too large for its dtype. "
                "Try dtype float32, or another speculator."
            )
        noise = np.zeros(tokens.shape, np.float32) if self._noise is None else self._noise(self._position, tokens)
        return Candidates(tokens, logprobs, noise)
