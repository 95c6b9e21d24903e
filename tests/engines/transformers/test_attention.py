"""An attention function that nobody knows is asked for one row at a time."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import transformers as tf
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask, sdpa_mask
from transformers.models.llama import modeling_llama

import foretoken
from foretoken import DecodeStats, FixedBudget, ForetokenError
from helpers.shapes import tiny_model

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
    with pytest.raises(ForetokenError, match="the drafter 'lookahead' needs them"):
        model.generate(PROMPT, **OPTIONS, custom_generate=foretoken.generate, drafter="lookahead")


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_transformers_own_functions_are_drafted_with(name):
    stats = DecodeStats()
    options = {"custom_generate": foretoken.generate, "drafter": "prompt-lookup", "stats": stats}
    with_attention(name).generate(PROMPT, **OPTIONS, **options)
    assert stats.drafted > 0


@functools.wraps(sdpa_attention_forward)
def without_a_mask(module, query, key, value, attention_mask, **rest):
    """Right for one row; several see what comes after them."""
    return sdpa_attention_forward(module, query, key, value, None, **rest)


def wrapped(model, monkeypatch):
    """It bears the names of transformers' own."""
    AttentionInterface.register("mine", without_a_mask)
    AttentionMaskInterface.register("mine", sdpa_mask)
    model.set_attn_implementation("mine")


def with_another_mask(model, monkeypatch):
    """Function and mask are transformers', but not made for each other."""
    AttentionInterface.register("mine", sdpa_attention_forward)
    AttentionMaskInterface.register("mine", flash_attention_mask)
    model.set_attn_implementation("mine")


def in_one_layer(model, monkeypatch):
    AttentionInterface.register("mine", without_a_mask)
    attention = model.model.layers[1].self_attn
    attention.config = copy.deepcopy(model.config)
    attention.config._attn_implementation = "mine"


def in_the_place_of_eager(model, monkeypatch):
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", without_a_mask)
    model.set_attn_implementation("eager")


def on_an_object(model, monkeypatch):
    attention = model.model.layers[1].self_attn
    theirs = attention.forward
    attention.forward = lambda **given: theirs(**given | {"attention_mask": None})


def in_the_class(model, monkeypatch):
    theirs = modeling_llama.LlamaAttention.forward
    without = {"attention_mask": None}
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", lambda *own, **given: theirs(*own, **given | without))


WAYS = [wrapped, with_another_mask, in_one_layer, in_the_place_of_eager, on_an_object, in_the_class]


@pytest.mark.parametrize("way", WAYS)
def test_one_that_bears_a_known_name_is_found(registered, monkeypatch, way):
    model = tiny_model.__wrapped__("llama")
    way(model, monkeypatch)
    theirs = model.generate(PROMPT, **OPTIONS)
    stats = DecodeStats()
    options = {"drafter": "prompt-lookup", "budget": FixedBudget(6), "stats": stats}
    assert torch.equal(model.generate(PROMPT, **OPTIONS, custom_generate=foretoken.generate, **options), theirs)
    assert stats.drafted == 0
