"""An MLP speculator that starts from the base's own embedding and output head.

With the published start, a small speculator first learns how frequent tokens are, and slowly. Here its embedding is a
linear map of the base's, and its head the base's output head after a linear map: few weights, all of them used by every
token. ``folded`` writes the same function in the published tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig


class FactoredMLPSpeculator(MLPSpeculator):
    """The function of an MLP speculator, with fewer weights to train.

    Args:
        config: Its shape.
        embedding: The base's, [vocab, width].
        head: The weight of the base's output head, [vocab, width].
    """

    def __init__(self, config: MLPSpeculatorConfig, embedding: Tensor, head: Tensor) -> None:
        super().__init__(config)
        # The published start gives embeddings this scale, which the token's weight in a stage is made for.
        scaled = embedding.float() / (embedding.float().std() * config.inner_dim**0.5)
        self.emb = nn.ModuleList(_MappedEmbedding(scaled, config.inner_dim) for _ in self.emb)
        self.head = nn.ModuleList(_MappedHead(head.float(), config.inner_dim) for _ in self.head)
        for layer in self.proj:
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight)

    @torch.no_grad()
    def folded(self) -> MLPSpeculator:
        """The same function in the published tensors."""
        plain = MLPSpeculator(self.config).to(next(self.parameters()).device)
        plain.proj.load_state_dict(self.proj.state_dict())
        plain.ln.load_state_dict(self.ln.state_dict())
        for ours, theirs in ((self.emb, plain.emb), (self.head, plain.head)):
            for mapped, layer in zip(ours, theirs, strict=True):
                assert isinstance(mapped, _MappedEmbedding | _MappedHead) and isinstance(layer.weight, Tensor)
                layer.weight.copy_(mapped.product())
        return plain


class _MappedEmbedding(nn.Module):
    """The base's embedding after a linear map."""

    def __init__(self, table: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor
        self.map = nn.Linear(table.shape[1], width, bias=False)
        nn.init.orthogonal_(self.map.weight)

    def product(self) -> Tensor:
        return self.table @ self.map.weight.T

    def forward(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = self.map(self.table[tokens])
        return mapped


class _MappedHead(nn.Module):
    """A linear map before the base's output head."""

    def __init__(self, table: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.table: Tensor
        self.map = nn.Linear(width, table.shape[1], bias=False)
        nn.init.normal_(self.map.weight, std=width**-0.5)

    def product(self) -> Tensor:
        return self.table @ self.map.weight

    def forward(self, states: Tensor) -> Tensor:
        return functional.linear(self.map(states), self.table)
