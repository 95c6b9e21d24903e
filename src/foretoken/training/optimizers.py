"""Muon in float32 for the inner matrices, AdamW for the rest, and how the rate goes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 0.05  # of the steps, 2,000 at most
QUINTIC = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal (Jordan et al. 2024), in float32.

    ``torch.optim.Muon`` computes in bfloat16, which takes four times as long on a CPU without its arithmetic.

    Args:
        parameters: Matrices.
        lr: The rate. An update's mean square root is 0.2 of it, as AdamW's is about.
        momentum: Of the gradients.
        weight_decay: Share of a weight that a rate of 1 takes away.
    """

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state: dict[str, Any] = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                update = orthogonal(weight.grad + group["momentum"] * state["momentum"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all 1, by Newton and Schulz's iteration."""
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * (square @ square)) @ x
    nearest: Tensor = x.T if tall else x
    return nearest.to(matrix.dtype)


def optimizers_of(module: nn.Module, vocab_size: int, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices between states, AdamW for vectors and for matrices with a row for each token."""
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    inner: list[Tensor] = [weight for weight in trained if weight.ndim == 2 and vocab_size not in weight.shape]
    others = [weight for weight in trained if not any(weight is one for one in inner)]
    made: list[torch.optim.Optimizer] = [Muon(inner, rate)]
    if others:
        made.append(torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0))
    return made


def share_of_rate(step: int, steps: int, last: float) -> float:
    """Share of the peak rate: up on a parabola, then down on a cosine to ``last``, as published."""
    warm_up = max(1, min(2000, int(WARM_UP * steps)))
    if step < warm_up:
        return 1 - (1 - (step + 1) / warm_up) ** 2
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
