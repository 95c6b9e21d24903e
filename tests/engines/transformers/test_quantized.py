"""Layers that quantize the rows of a forward together."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from foretoken import FixedBudget, decode
from foretoken.engines.transformers.target import TransformersTarget
from helpers.drafting import Oracle
from helpers.shapes import VOCAB, tiny_model

PROMPT = torch.randint(2, VOCAB, (1, 12), generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """What torch's own does, which is deprecated: eight bits for each activation, in one scale for all of them."""

    __module__ = "torch.ao.nn.quantized.dynamic.modules.linear"

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().max() / 127
        return self.layer((x / scale).round() * scale)


def test_nothing_is_drafted_where_rows_share_a_scale():
    model = copy.deepcopy(tiny_model("llama"))
    for layer in model.model.layers:
        layer.mlp.up_proj, layer.self_attn.q_proj = Linear(layer.mlp.up_proj), Linear(layer.self_attn.q_proj)
    whole, one = model(PROMPT).logits[0], model(PROMPT[:, :1]).logits[0]
    assert (whole[0] - one[0]).abs().max() > 0.01, "causal, and yet a row's logits change with those after it"

    theirs = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), max_new_tokens=60, do_sample=False)
    answer, prompt = theirs[0, 12:].tolist(), PROMPT[0].tolist()
    drafter = Oracle(0, prompt, answer, VOCAB)
    steps = list(decode(TransformersTarget(model), drafter, prompt, max_new_tokens=60, budget=FixedBudget(8)))
    assert [token for step in steps for token in step.tokens] == answer
    assert all(len(step.draft) == 0 for step in steps)
