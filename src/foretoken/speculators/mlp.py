"""The MLP speculator of Wertheimer et al. 2024 (arXiv 2404.19124): each stage reads the token that was guessed last.

Stage i turns a state and a token into the next state, from which its head guesses the token after that one:

    state = GELU(Norm_i(Proj_i(state) + emb_weight / state_weight * Emb_i(token)))
    logits = Head_i(state)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foretoken.core.errors import ModelError
from foretoken.speculators.module import SequentialHeads

EPSILON = 1e-6


@dataclass(frozen=True)
class MLPSpeculatorConfig:
    """The shape of an MLP speculator, in the names of the published ``config.json``.

    Args:
        vocab_size: Of the base.
        emb_dim: Width of the base's states.
        inner_dim: Width of the speculator's own states. 0 means ``emb_dim``.
        n_predict: How many tokens it guesses.
        tie_weights: The stages share their embedding, head and norm, and all but the first their projection.
        scale_input: The base's state is normalised before the first stage.
        top_k_tokens_per_head: How many guesses of each stage make the published candidates. If empty, 4, 3, 2, 2, …
        n_candidates: How many of the published candidates are scored.

    Raises:
        ForetokenError: If they do not fit together.
    """

    vocab_size: int
    emb_dim: int
    inner_dim: int = 0
    n_predict: int = 4
    tie_weights: bool = False
    scale_input: bool = False
    top_k_tokens_per_head: tuple[int, ...] = ()
    n_candidates: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner_dim", self.inner_dim or self.emb_dim)
        if not self.top_k_tokens_per_head:
            object.__setattr__(self, "top_k_tokens_per_head", (4, 3, *[2] * self.n_predict)[: self.n_predict])
        for name in ("vocab_size", "emb_dim", "inner_dim", "n_predict", "n_candidates"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} of an MLP speculator must be at least 1, not {getattr(self, name)}.")
        if self.tie_weights and self.n_predict == 1:
            raise ModelError("An MLP speculator of one stage has no weights to tie: set tie_weights to false.")
        if len(self.top_k_tokens_per_head) != self.n_predict or min(self.top_k_tokens_per_head) < 1:
            raise ModelError(
                f"top_k_tokens_per_head of an MLP speculator must be {self.n_predict} positive numbers, one for each "
                f"stage, not {list(self.top_k_tokens_per_head)}."
            )


def token_scale(num_stages: int, width: int) -> float:
    """What a stage multiplies a token's embedding by.

    So weighted, half of the last state's magnitude still comes from the base's state, in expectation.
    """
    state_weight = math.pow(0.5, 0.5 / num_stages)
    emb_weight = math.sqrt((1 - state_weight**2) * width / 2)
    return emb_weight / state_weight  # the norm takes care of the common factor


def scaled_input(state: Tensor) -> Tensor:
    """The base's state as ``scale_input`` has it."""
    return functional.rms_norm(state, state.shape[-1:], eps=EPSILON) / math.sqrt(2)


class RMSNormWithBias(nn.Module):
    """x / rms(x) * weight + bias over the last dimension; no mean is subtracted."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, EPSILON) + self.bias


class MLPSpeculator(SequentialHeads):
    """The stages of an MLP speculator. Its parameters have the published names.

    Tied stages share the last module of each list: one embedding, head and norm, and two projections.
    """

    def __init__(self, config: MLPSpeculatorConfig) -> None:
        super().__init__(config.n_predict, config.emb_dim, config.vocab_size)
        self.config = config
        width = config.inner_dim
        distinct = 1 if config.tie_weights else config.n_predict
        self.emb = nn.ModuleList(nn.Embedding(config.vocab_size, width) for _ in range(distinct))
        self.proj = nn.ModuleList(
            nn.Linear(width if i else config.emb_dim, width, bias=False)
            for i in range(2 if config.tie_weights else config.n_predict)
        )
        self.head = nn.ModuleList(nn.Linear(width, config.vocab_size, bias=False) for _ in range(distinct))
        self.ln = nn.ModuleList(RMSNormWithBias(width) for _ in range(distinct))
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=width**-0.5)
        self.token_scale = token_scale(config.n_predict, width)

    def step(self, stage: int, state: Tensor, tokens: Tensor) -> Tensor:
        if stage == 0 and self.config.scale_input:
            state = scaled_input(state)
        state = torch.add(_of(self.proj, stage)(state), _of(self.emb, stage)(tokens), alpha=self.token_scale)
        return functional.gelu(_of(self.ln, stage)(state))

    def logits(self, stage: int, state: Tensor) -> Tensor:
        guess: Tensor = _of(self.head, stage)(state)
        return guess


def _of(modules: nn.ModuleList, stage: int) -> nn.Module:
    return modules[min(stage, len(modules) - 1)]
