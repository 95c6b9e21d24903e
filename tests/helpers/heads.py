"""Small trained heads for tests: random ones of every kind for a tiny model."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import nn
from transformers import PreTrainedModel

from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.speculator import temperature_of
from foretoken.engines.transformers.states import output_head
from foretoken.speculators.blockwise import BlockwiseConfig, BlockwiseHeads
from foretoken.speculators.formats import Loadable
from foretoken.speculators.heads import TorchHeads, ready
from foretoken.speculators.medusa import MedusaConfig, MedusaHeads
from foretoken.speculators.mlp import MLPSpeculator, MLPSpeculatorConfig
from foretoken.speculators.noise import gumbel

KINDS = ("mlp", "blockwise", "medusa")


@cache
def random_speculator(model: PreTrainedModel, kind: str) -> Loadable:
    """Heads that have learned nothing."""
    head = output_head(model)
    assert isinstance(head, nn.Linear)
    vocab, width = head.weight.shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "mlp":
            return MLPSpeculator(MLPSpeculatorConfig(vocab, width, 16, 3, tie_weights=True, scale_input=True)).eval()
        if kind == "blockwise":
            return BlockwiseHeads(BlockwiseConfig(vocab, width, 3, 8), head).eval()
        return MedusaHeads(MedusaConfig(vocab, width, 3), head).eval()


def torch_heads(model: PreTrainedModel, kind: str, choice: Choice) -> TorchHeads:
    """Random heads that know a choice's temperature and noise."""
    noise = None if choice.seed is None else partial(gumbel, choice.seed)
    heads = ready(random_speculator(model, kind), model.device, model.dtype)
    return TorchHeads(heads, temperature_of(choice), noise)
