"""Torch modules as the heads that a drafter asks: one batch and one transfer to numpy for each depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from foretoken.core.contracts import Candidates
from foretoken.core.errors import ModelError
from foretoken.speculators.module import IndependentHeads, SequentialHeads

Noise = Callable[[int, Tensor], Tensor]
"""The choice's noise of a position and tokens int64 [n], in memory: float [n]."""


class TorchHeads:
    """Heads for one sequence at a time. Implements ``core.contracts.Heads``.

    Attributes:
        independent: Whether no head reads the tokens before its own.

    Args:
        module: The trained heads, on the device where the target's states are.
        temperature: Of the choice. If 0, the choice is greedy and the candidates' probabilities are those at 1.
        noise: What the choice adds to the logits divided by the temperature. If None, nothing.
        k: Candidates of a row, fewer if the vocabulary is smaller.
    """

    def __init__(
        self,
        module: IndependentHeads | SequentialHeads,
        temperature: float = 0.0,
        noise: Noise | None = None,
        k: int = 64,
    ) -> None:
        self.num_heads = module.num_heads
        self.independent = isinstance(module, IndependentHeads)
        self._module = module
        self._temperature = temperature or 1.0
        self._noise = noise
        self._k = min(k, module.vocab_size)
        parameter = next(module.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._head = 0
        self._position = 0
        self._states = torch.empty(0)  # of the last candidates' rows; only for stages
        self._tokens = torch.empty(0)  # the last candidates, [rows, k]; of independent heads all candidates, [heads, k]
        self._logprobs = torch.empty(0)  # theirs

    @torch.inference_mode()
    def start(self, state: Tensor, token: int, position: int) -> Candidates:
        self._head, self._position = 0, position
        state = state.to(self._device, self._dtype)
        if isinstance(self._module, IndependentHeads):
            self._look(self._module.all(state))
            return self._same(1)
        self._states = state[None]
        return self._stage(self._module, torch.tensor([token]))

    @torch.inference_mode()
    def extend(self, rows: Sequence[int], ranks: Sequence[int]) -> Candidates:
        self._head, self._position = self._head + 1, self._position + 1
        if isinstance(self._module, IndependentHeads):
            return self._same(len(rows))
        indices = torch.as_tensor(rows, dtype=torch.int64)
        self._states = self._states[indices.to(self._device)]
        return self._stage(self._module, self._tokens[indices, torch.as_tensor(ranks, dtype=torch.int64)])

    def _stage(self, module: SequentialHeads, tokens: Tensor) -> Candidates:
        """The next stage's candidates after ``tokens``, one for each of its rows."""
        self._states = module.step(self._head, self._states, tokens.to(self._device))
        self._look(module.logits(self._head, self._states))
        return self._candidates(self._tokens, self._logprobs)

    def _same(self, rows: int) -> Candidates:
        """The candidates of an independent head, ``rows`` times."""
        head = slice(self._head, self._head + 1)
        one = self._candidates(self._tokens[head], self._logprobs[head])
        return Candidates(*(np.broadcast_to(field, (rows, self._k)) for field in one))

    def _look(self, logits: Tensor) -> None:
        """Find the best tokens of ``logits`` [rows, vocab], and bring them to this machine's memory."""
        logprobs, tokens = (logits.float() / self._temperature).log_softmax(-1).topk(self._k)
        self._tokens, self._logprobs = tokens.cpu(), logprobs.cpu()
        if not math.isfinite(float(self._logprobs[:, 0].sum())):
            raise ModelError(
                "The speculator's logits are not numbers: its weights are damaged, or too large for its dtype. "
                "Try dtype float32, or another speculator."
            )

    def _candidates(self, tokens: Tensor, logprobs: Tensor) -> Candidates:
        noise = np.zeros(tokens.shape, np.float32)
        if self._noise is not None:
            noise = self._noise(self._position, tokens.flatten()).reshape(tokens.shape).numpy()
        return Candidates(tokens.numpy(), logprobs.numpy(), noise)
