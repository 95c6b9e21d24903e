"""What a model prepares in its own way reaches our forwards, or is refused."""

from __future__ import annotations

import peft
import pytest
import torch
import transformers as tf

import foretoken
from foretoken import ForetokenError
from foretoken.engines.transformers.target import TransformersTarget
from helpers.shapes import CONFIGS, VOCAB, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own use of it
PROMPT = torch.tensor([[5, 9, 4, 1, 5, 9]])
OPTIONS = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 30, "do_sample": False}


def adapted(config: peft.PeftConfig) -> peft.PeftModel:
    """A model of its own with an adapter that changes its text."""
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model.__wrapped__("llama"), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt" in name and parameter.ndim == 2:
                parameter.normal_()
    return model


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"]),
        peft.IA3Config(
            task_type="CAUSAL_LM",
            init_ia3_weights=False,
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        ),
    ],
)
@pytest.mark.parametrize("drafter", ["none", "mixed", "early-exit"])
def test_adapters_within_the_layers_give_their_own_text(config, drafter):
    model = adapted(config)
    theirs = model.generate(input_ids=PROMPT, **OPTIONS)
    ours = model.generate(input_ids=PROMPT, **OPTIONS, custom_generate=foretoken.generate, drafter=drafter)
    assert torch.equal(ours, theirs)
    assert not torch.equal(theirs, tiny_model("llama").generate(PROMPT, **OPTIONS))  # the adapter says something


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, encoder_hidden_size=16),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6),
    ],
)
def test_learned_prompts_are_refused(config):
    with pytest.raises(ForetokenError, match="prepare_inputs_for_generation"):
        adapted(config).generate(input_ids=PROMPT, **OPTIONS, custom_generate=foretoken.generate)


def test_an_adapters_wrapper_is_refused_with_advice_that_works():
    model = adapted(
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    )
    with pytest.raises(ForetokenError, match="merge_and_unload"):
        TransformersTarget(model)
    theirs = model.generate(input_ids=PROMPT, **OPTIONS)
    merged = model.merge_and_unload()
    assert torch.equal(merged.generate(PROMPT, **OPTIONS, custom_generate=foretoken.generate), theirs)


def test_a_model_that_adds_to_its_inputs_is_refused():
    class WithToken(tf.LlamaForCausalLM):
        def prepare_inputs_for_generation(self, input_ids, **rest):
            inputs = super().prepare_inputs_for_generation(input_ids, **rest)
            return inputs | {"input_ids": torch.nn.functional.pad(inputs["input_ids"], (0, 1))}

    with pytest.raises(ForetokenError, match="WithToken"):
        TransformersTarget(WithToken(CONFIGS["llama"]()))
    cpm = tf.CpmAntForCausalLM(
        tf.CpmAntConfig(
            vocab_size=VOCAB, hidden_size=32, num_attention_heads=4, dim_head=8, dim_ff=64, num_hidden_layers=1
        )
    )
    with pytest.raises(ForetokenError, match="CpmAntForCausalLM"):
        TransformersTarget(cpm)


def test_a_model_that_carries_something_from_step_to_step_is_refused():
    class Carrying(tf.LlamaForCausalLM):
        def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **rest):
            return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **rest)

    with pytest.raises(ForetokenError, match="Carrying"):
        TransformersTarget(Carrying(CONFIGS["llama"]()))


def test_a_model_that_prepares_what_all_others_do_is_taken():
    class Alike(tf.LlamaForCausalLM):
        def prepare_inputs_for_generation(self, input_ids, **rest):
            return super().prepare_inputs_for_generation(input_ids, **rest)

    TransformersTarget(Alike(CONFIGS["llama"]()))
