"""A small recurrent language model that rescores drafts: local refinement in Kim et al. 2024 (arXiv 2404.09221).

The paper rescores each head's guess by a small neural language model that has read the guesses before it. This one
reads tokens alone. Its cell is a stage of an MLP speculator whose input is its own last state, so that it starts,
learns and is saved as that does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foretoken.core.contracts import Step
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig
from foretoken.speculators.module import SpeculatorModule

READ = 64  # tokens of a prompt that it begins with: as long as its training's segments


def cell_shape(vocab_size: int, inner_dim: int) -> MLPSpeculatorConfig:
    """The shape of a rescorer's cell: one stage, as wide before it as after it."""
    return MLPSpeculatorConfig(vocab_size, inner_dim, inner_dim, n_predict=1)


class RecurrentRescorer(SpeculatorModule):
    """state = GELU(Norm(Proj(state) + scale * Emb(token))), logits = Head(state), from a state of zeros on.

    Args:
        cell: Its weights, of ``cell_shape``.
    """

    def __init__(self, cell: MLPSpeculator) -> None:
        super().__init__(1, cell.base_width, cell.vocab_size)
        self.cell = cell

    @property
    def width(self) -> int:
        """Of its state."""
        return self.cell.base_width

    def head_logits(self, states: Tensor, tokens: Tensor) -> Iterator[Tensor]:
        """One head, which reads all ``tokens`` before the one that it guesses, and no state of the base."""
        length = states.shape[1]
        state = torch.zeros(len(tokens), self.width, dtype=states.dtype, device=states.device)
        read = []
        for place in range(length + 1):
            state = self.cell.step(0, state, tokens[:, place])
            read.append(state)
        yield self.cell.logits(0, torch.stack(read[1:], dim=1))


class TorchRescorer:
    """A rescorer for one sequence. Implements ``core.contracts.Rescorer``.

    Args:
        module: The language model, on any device.
    """

    def __init__(self, module: RecurrentRescorer) -> None:
        self._cell = module.cell
        weight = next(module.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._state = torch.zeros(1, module.width, dtype=self._dtype, device=self._device)

    def begin(self, prompt: Sequence[int]) -> None:
        self._state = torch.zeros_like(self._state)
        self._read(prompt[-READ:])

    def observe(self, step: Step) -> None:
        self._read(step.tokens)

    @torch.inference_mode()
    def chances(self, paths: NDArray[Any], tokens: NDArray[Any]) -> NDArray[np.float32]:
        state = self._state.expand(len(paths), -1)
        for guesses in torch.from_numpy(np.ascontiguousarray(paths.T)).to(self._device):
            state = self._cell.step(0, state, guesses)
        logprobs = self._cell.logits(0, state).float().log_softmax(-1)
        named = logprobs.gather(1, torch.from_numpy(tokens).to(self._device, torch.int64)).exp()
        # It has a chance for every token, so that nothing is left for tokens without one.
        return np.column_stack([named.cpu().numpy(), np.zeros(len(tokens), np.float32)])

    @torch.inference_mode()
    def _read(self, tokens: Sequence[int]) -> None:
        """Go on over committed tokens."""
        for token in torch.tensor([tokens], device=self._device).T:
            self._state = self._cell.step(0, self._state, token)
