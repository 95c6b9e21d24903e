"""Models whose weights lie elsewhere than where they run."""

from __future__ import annotations

import accelerate
import pytest
import torch

import foretoken
from foretoken import ForetokenError, LanguageModel
from foretoken.engines.transformers.inputs import input_device
from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer

PROMPT = torch.tensor([[5, 9, 4, 1, 5, 9, 4, 1]])
OPTIONS = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 40, "do_sample": False}


@pytest.fixture(params=["cpu", "disk"])
def offloaded(request, tmp_path):
    model = tiny_model.__wrapped__("llama")
    if request.param == "cpu":
        return accelerate.cpu_offload(model, execution_device="cpu")
    return accelerate.disk_offload(model, tmp_path, execution_device="cpu")


@pytest.mark.parametrize("drafter", ["none", "mixed", "recycle", "prompt-lookup"])
def test_offloaded_weights_give_the_same_text(offloaded, drafter):
    assert offloaded.device.type == "meta" and input_device(offloaded).type == "cpu"
    ours = offloaded.generate(PROMPT, **OPTIONS, custom_generate=foretoken.generate, drafter=drafter)
    assert torch.equal(ours, tiny_model("llama").generate(PROMPT, **OPTIONS))


def test_offloaded_layers_do_not_exit_early(offloaded):
    with pytest.raises(ForetokenError, match="cannot exit early"):
        offloaded.generate(PROMPT, **OPTIONS, custom_generate=foretoken.generate, drafter="early-exit")


def test_text_in_text_out(offloaded):
    tokenizer = character_tokenizer()
    results = [
        LanguageModel(model, tokenizer, background=None).generate("abcabc", max_new_tokens=20, temperature=0)
        for model in (offloaded, tiny_model("llama"))
    ]
    assert results[0].tokens == results[1].tokens
