"""ArcticInference's LSTM speculator: the stages of an MLP speculator as the steps of an LSTM with the same weights.

Stage i reads a state h, a cell c, zero at first, and a token, as method ``sum_lstm`` of ArcticInference does:

    f, i, o = sigmoid(W h + s * E(token)) for each gate
    c = f * c + i * GELU(CellNorm(W h + s * E(token)))
    h = o * GELU(StateNorm(c))
    logits = Head(h)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foretoken.core.errors import ModelError
from foretoken.speculators.mlp import RMSNormWithBias, scaled_input, token_scale
from foretoken.speculators.module import SequentialHeads

GATES = "forget", "input", "output", "cell"  # in the order of the rows of a projection


@dataclass(frozen=True)
class LSTMSpeculatorConfig:
    """The shape of an LSTM speculator.

    Args:
        vocab_size: Of the base.
        input_hidden_dim: Width of the base's states.
        inner_dim: Width of the state, the cell and the embedding.
        n_predict: How many tokens it guesses.
        scale_input: The base's state is normalised before the first stage.

    Raises:
        ForetokenError: If a size is below 1.
    """

    vocab_size: int
    input_hidden_dim: int
    inner_dim: int
    n_predict: int = 3
    scale_input: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "input_hidden_dim", "inner_dim", "n_predict"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} of an LSTM speculator must be at least 1, not {getattr(self, name)}.")


class LSTMSpeculator(SequentialHeads):
    """The stages of an LSTM speculator. Only the projection of the base's state differs from stage to stage.

    A stage's state has h in its first half and c in its second, [..., 2 * inner_dim].
    """

    def __init__(self, config: LSTMSpeculatorConfig) -> None:
        super().__init__(config.n_predict, config.input_hidden_dim, config.vocab_size)
        self.config = config
        width = config.inner_dim
        self.emb = nn.Embedding(config.vocab_size, width)
        self.proj = nn.ModuleList(
            nn.Linear(inputs, len(GATES) * width, bias=False) for inputs in (config.input_hidden_dim, width)
        )
        self.cell_ln, self.state_ln = RMSNormWithBias(width), RMSNormWithBias(width)
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=1 / math.sqrt(width))
        self.token_scale = token_scale(config.n_predict, width)

    def step(self, stage: int, state: Tensor, tokens: Tensor) -> Tensor:
        if stage == 0:
            hidden = scaled_input(state) if self.config.scale_input else state
        else:
            hidden, cell = state.chunk(2, -1)
        sums = self.proj[min(stage, 1)](hidden).unflatten(-1, (len(GATES), self.config.inner_dim))
        sums = torch.add(sums, self.emb(tokens).unsqueeze(-2), alpha=self.token_scale)
        forget, new, output = sums[..., :3, :].sigmoid().unbind(-2)
        change = new * functional.gelu(self.cell_ln(sums[..., 3, :]))
        cell = change if stage == 0 else forget * cell + change
        return torch.cat([output * functional.gelu(self.state_ln(cell)), cell], -1)

    def logits(self, stage: int, state: Tensor) -> Tensor:
        guess: Tensor = self.head(state.chunk(2, -1)[0])
        return guess
