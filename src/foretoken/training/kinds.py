"""The kinds of speculators: how each starts on a base, and what is saved of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn

from foretoken.speculators.blockwise import BlockwiseConfig, BlockwiseHeads
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from foretoken.speculators.mlp import MLPSpeculatorConfig
from foretoken.speculators.module import SpeculatorModule
from foretoken.speculators.rescorer import RecurrentRescorer, cell_shape
from foretoken.training.base import FrozenBase
from foretoken.training.factored import FactoredMLPSpeculator

Kind = Literal["mlp-speculator", "blockwise", "medusa", "rescorer"]
START = 0.1  # of the random weights that a residual layer starts with: small, and not zero


@dataclass(frozen=True)
class Shape:
    """The shape of a speculator.

    Args:
        kind: Which.
        heads: How many tokens it guesses.
        inner: Width of the MLP speculator's or the rescorer's states, or of the blockwise heads' hidden layer for each
            head. If None, the base's width.
    """

    kind: Kind
    heads: int = 4
    inner: int | None = None


def start(shape: Shape, base: FrozenBase) -> SpeculatorModule:
    """A speculator to train, in float32 on the base's device."""
    inner = shape.inner or base.width
    module: SpeculatorModule
    if shape.kind == "mlp-speculator":
        tied = shape.heads > 1
        config = MLPSpeculatorConfig(
            base.vocab_size, base.width, inner, shape.heads, tie_weights=tied, scale_input=True
        )
        module = FactoredMLPSpeculator(config, base.embedding.weight, base.head.weight)
    elif shape.kind == "blockwise":
        module = BlockwiseHeads(BlockwiseConfig(base.vocab_size, base.width, shape.heads, inner), _float32(base.head))
        # At zero a head would guess the base's next token again, and be very sure of it.
        nn.init.normal_(module.down.weight, std=START * module.down.in_features**-0.5)
    elif shape.kind == "rescorer":
        config = cell_shape(base.vocab_size, inner)
        module = RecurrentRescorer(FactoredMLPSpeculator(config, base.embedding.weight, base.head.weight))
    else:
        module = MedusaHeads(MedusaConfig(base.vocab_size, base.width, shape.heads), base.head)
    return module.float().to(base.device)


def finished(module: SpeculatorModule) -> nn.Module:
    """A copy in the published tensors and in float16, as it is saved."""
    plain = unfactored(module)
    return (copy.deepcopy(module) if plain is module else plain).half()


def unfactored(module: SpeculatorModule) -> SpeculatorModule:
    """The same function in the published tensors; the module itself where it has no others."""
    if isinstance(module, FactoredMLPSpeculator):
        return module.folded()
    if isinstance(module, RecurrentRescorer) and isinstance(module.cell, FactoredMLPSpeculator):
        return RecurrentRescorer(module.cell.folded())
    return module


def _float32(head: nn.Linear) -> nn.Linear:
    """The base's output head in the dtype that is trained in."""
    same = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device=head.weight.device)
    same.load_state_dict(head.state_dict())
    return same.requires_grad_(False)
