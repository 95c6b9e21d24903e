"""Medusa heads (Cai et al. 2024, arXiv 2401.10774): each has residual blocks and an output projection of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foretoken.core.errors import ModelError
from foretoken.speculators.module import IndependentHeads


@dataclass(frozen=True)
class MedusaConfig:
    """The shape of Medusa heads.

    Args:
        vocab_size: Of the base.
        hidden_size: Width of the base's states.
        medusa_num_heads: How many tokens they guess beyond the base's own.
        medusa_num_layers: Residual blocks of a head.
        fc_bias: The blocks' layers have a bias.
        shared_output: All heads have one output projection, which stays as the base's was.

    Raises:
        ForetokenError: If a size is below 1.
    """

    vocab_size: int
    hidden_size: int
    medusa_num_heads: int = 5
    medusa_num_layers: int = 1
    fc_bias: bool = True
    shared_output: bool = False

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 1), ("hidden_size", 1), ("medusa_num_heads", 1), ("medusa_num_layers", 0)):
            if getattr(self, name) < least:
                raise ModelError(f"{name} of Medusa heads must be at least {least}, not {getattr(self, name)}.")


class ResidualBlocks(nn.Module):
    """Blocks x + SiLU(Linear(x)), one after the other; each starts as the identity."""

    def __init__(self, width: int, num_blocks: int, bias: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=bias) for _ in range(num_blocks))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + functional.silu(layer(x))
        return x


class MedusaHeads(IndependentHeads):
    """Residual blocks, then a projection onto the vocabulary, for each head. Its parameters have vLLM's names.

    Without training a head guesses what the base's output head chooses.

    Args:
        config: Their shape.
        output_head: The base's, a layer with a ``weight`` [vocab_size, hidden_size], from which the projections start.
            If None, they start at random.
    """

    def __init__(self, config: MedusaConfig, output_head: nn.Module | None = None) -> None:
        super().__init__(config.medusa_num_heads, config.hidden_size, config.vocab_size)
        self.config = config
        width = config.hidden_size
        self.blocks = nn.ModuleList(
            ResidualBlocks(width, config.medusa_num_layers, config.fc_bias) for _ in range(config.medusa_num_heads)
        )
        self.lm_heads = nn.ModuleList(
            nn.Linear(width, config.vocab_size, bias=False)
            for _ in range(1 if config.shared_output else config.medusa_num_heads)
        )
        if output_head is not None:
            assert isinstance(output_head.weight, Tensor)
            with torch.no_grad():
                for parameter in self.lm_heads.parameters():
                    parameter.copy_(output_head.weight)
        self.lm_heads.requires_grad_(not config.shared_output)

    def each(self, states: Tensor) -> Iterator[Tensor]:
        for i, block in enumerate(self.blocks):
            yield self.lm_heads[min(i, len(self.lm_heads) - 1)](block(states))
