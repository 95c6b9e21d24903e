"""An attention function that nobody knows is asked for one row at a time."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import foretoken
from foretoken import DecodeStats, FixedBudget, ForetokenError
from shapes import tiny_model

PROMPT = torch.tensor([[5, 9, 4, 1, 5, 9, 4, 1]])
OPTIONS = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 40, "do_sample": False}


def mine(*args, **kwargs):
    return sdpa_attention_forward(*args, **kwargs)


@pytest.fixture
def registered(monkeypatch):
    """Names of attention and mask functions that last for one test."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        monkeypatch.setattr(interface, "_global_mapping", dict(interface._global_mapping))


def with_attention(name: str) -> tf.PreTrainedModel:
    model = tiny_model.__wrapped__("llama")
    model.set_attn_implementation(name)
    return model


@pytest.mark.parametrize("name", ["mine", "sdpa", "eager"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_the_text_is_transformers_own_and_nothing_is_drafted(registered, name, with_mask):
    AttentionInterface.register(name, mine)
    if with_mask:
        AttentionMaskInterface.register(name, sdpa_mask)
    model = with_attention(name)
    theirs = model.generate(PROMPT, **OPTIONS)
    for drafter in ("none", "mixed", "prompt-lookup", "early-exit"):
        stats = DecodeStats()
        options = {"drafter": drafter, "budget": FixedBudget(6), "stats": stats}
        assert torch.equal(model.generate(PROMPT, **OPTIONS, custom_generate=foretoken.generate, **options), theirs)
        assert stats.drafted == 0
    with pytest.raises(ForetokenError, match="lookahead decoding needs them"):
        model.generate(PROMPT, **OPTIONS, custom_generate=foretoken.generate, drafter="lookahead")


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_transformers_own_functions_are_drafted_with(name):
    stats = DecodeStats()
    options = {"custom_generate": foretoken.generate, "drafter": "prompt-lookup", "stats": stats}
    with_attention(name).generate(PROMPT, **OPTIONS, **options)
    assert stats.drafted > 0
