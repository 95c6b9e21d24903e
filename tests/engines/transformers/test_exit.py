"""Early exit: the same text, and a cache that is left as it was found."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper

from foretoken import DecodeStats, Draft, FixedBudget, ForetokenError, decode
from foretoken.drafters.draft_model import DraftModelDrafter
from foretoken.drafters.early_exit import EarlyExitDrafter
from foretoken.engines.transformers.choice import Choice
from foretoken.engines.transformers.exit import ExitTarget, first_layers
from foretoken.engines.transformers.target import TransformersTarget
from helpers.shapes import CONFIGS, LLAMA, SMALL, VOCAB, tiny_model

NOISE = 2e-4  # what rounding may move a key by, in float32

DEEPER = {
    "llama": tf.LlamaConfig(**LLAMA | {"num_hidden_layers": 4}),
    "gemma3": tf.Gemma3TextConfig(
        **LLAMA | {"num_hidden_layers": 4},
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
    ),
    "opt": tf.OPTConfig(
        **SMALL, hidden_size=16, num_hidden_layers=4, ffn_dim=32, num_attention_heads=2, word_embed_proj_dim=16
    ),
}


def deeper(shape: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(DEEPER[shape]).eval()


def answer(target, drafter, prompt, num_tokens=40) -> tuple[list[int], DecodeStats]:
    stats, tokens = DecodeStats(), []
    for step in decode(target, drafter, prompt, max_new_tokens=num_tokens):
        stats.add(step)
        tokens += step.tokens
    return tokens, stats


def check_cache(target: TransformersTarget, text: list[int]) -> None:
    """Every layer holds just what a fresh forward over all but the last token writes."""
    fresh = TransformersTarget(target.model)
    fresh.prefill(text[:-1])
    for layer, expected in zip(target.cache.states.layers, fresh.cache.states.layers, strict=True):
        torch.testing.assert_close(layer.keys, expected.keys, atol=NOISE, rtol=1e-4)
        torch.testing.assert_close(layer.values, expected.values, atol=NOISE, rtol=1e-4)


@pytest.mark.parametrize("shape", CONFIGS)
@settings(max_examples=2, deadline=None)
@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=24),
    temperature=st.sampled_from([0.0, 0.8, 1.3]),
    penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 2**64 - 1),
    floor=st.sampled_from([None, 0.0, 0.5]),
)
def test_the_text_and_the_cache_are_those_of_plain_decoding(shape, prompt, temperature, penalty, seed, floor):
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    if temperature > 0:
        processors.append(TemperatureLogitsWarper(temperature))
    target = TransformersTarget(tiny_model(shape), Choice(processors, seed if temperature > 0 else None))
    plain, _ = answer(target, None, prompt)
    drafted, _ = answer(target, EarlyExitDrafter(ExitTarget(target, 1), floor=floor), prompt)
    assert drafted == plain
    check_cache(target, [*prompt, *plain])


@pytest.mark.parametrize("shape", DEEPER)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_any_layer_may_be_the_exit(shape, num_layers):
    target = TransformersTarget(deeper(shape), Choice(seed=1))
    plain, _ = answer(target, None, [7, 3, 9])
    drafter = EarlyExitDrafter(ExitTarget(target, num_layers), floor=0.0)
    drafted, stats = answer(target, drafter, [7, 3, 9])
    assert drafted == plain and stats.accepted > 0
    check_cache(target, [7, 3, 9, *plain])


def test_an_answer_goes_on_from_the_cache_that_was_left():
    model, cache = tiny_model("llama"), tf.DynamicCache()
    whole, _ = answer(TransformersTarget(model), None, [7, 3, 9], 60)
    target = TransformersTarget(model, cache=cache)
    first, _ = answer(target, EarlyExitDrafter(ExitTarget(target, 1)), [7, 3, 9], 20)
    rest, _ = answer(TransformersTarget(model, cache=cache), None, [7, 3, 9, *first])
    assert first + rest == whole


def test_a_draft_left_in_the_cache_is_caught():
    """The tests above must be able to fail: layers that were not rewound are another cache."""

    class Careless(EarlyExitDrafter):
        def propose(self, context, max_tokens):
            self._read = list(context[:-1])
            return DraftModelDrafter.propose(self, context, max_tokens)

    target = TransformersTarget(tiny_model("llama"))
    with pytest.raises(RuntimeError, match="size"):  # the first layer holds more tokens than the mask allows for
        answer(target, Careless(ExitTarget(target, 1), floor=0.0), [7, 3, 9])


def test_layers_that_do_nothing_are_never_missed():
    """Where the last layers add nothing, the exit before them is always right, greedy and sampled."""
    model = copy.deepcopy(deeper("llama"))
    for layer in model.model.layers[2:]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    for choice in (Choice(), Choice(seed=2)):
        target = TransformersTarget(model, choice)
        _, stats = answer(target, EarlyExitDrafter(ExitTarget(target, 2), floor=0.0, trees=False), [7, 3, 9])
        assert stats.accepted == stats.drafted > 30
        other = EarlyExitDrafter(ExitTarget(target, 2, Choice(seed=3)), floor=0.0)
        assert answer(target, other, [7, 3, 9])[1].acceptance_rate < 0.5, "another choice is another draft"


@torch.inference_mode()
def test_the_first_layers_share_weights_and_leave_the_model_alone():
    model = deeper("gemma3")
    ids = torch.tensor([[7, 3, 9, 5]])
    before = model(ids).logits
    small = first_layers(model, 2)
    assert {id(p) for p in small.parameters()} < {id(p) for p in model.parameters()}
    assert len(small.model.layers) == 2 and small.config.layer_types == ["sliding_attention"] * 2
    assert len(model.model.layers) == model.config.num_hidden_layers == len(model.config.layer_types) == 4
    assert torch.equal(model(ids).logits, before)
    states = model(ids, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(small(ids).logits, model.lm_head(model.model.norm(states)))


def test_targets_that_take_only_chains_are_drafted_for():
    torch.manual_seed(0)
    bloom = tf.BloomForCausalLM(tf.BloomConfig(**SMALL, hidden_size=16, n_layer=3, n_head=2)).eval()
    target = TransformersTarget(bloom)
    assert not target.supports_trees
    drafted, _ = answer(target, EarlyExitDrafter(ExitTarget(target, 2)), [7, 3])
    assert drafted == answer(target, None, [7, 3])[0]


def test_no_draft_goes_where_the_model_has_no_place():
    """Learned positions end with the context, also where nobody says how long an answer may be."""
    torch.manual_seed(0)
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**SMALL, n_positions=24, n_embd=16, n_layer=3, n_head=2)).eval()
    target = TransformersTarget(model)

    def text(drafter):
        steps = decode(target, drafter, [7, 3, 9], max_new_tokens=21, budget=FixedBudget(32))
        return [token for step in steps for token in step.tokens]

    assert text(EarlyExitDrafter(ExitTarget(target, 1), floor=0.0)) == text(None)


def test_no_draft_moves_the_rotary_frequencies():
    """They change with the longest text that the module, which both share, has seen."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    config = tf.LlamaConfig(**LLAMA | {"max_position_embeddings": 24, "initializer_range": 0.3}, rope_parameters=rope)

    def text(drafted):
        torch.manual_seed(0)
        target = TransformersTarget(tf.AutoModelForCausalLM.from_config(config).eval())
        drafter = EarlyExitDrafter(ExitTarget(target, 1), floor=0.0) if drafted else None
        steps = decode(target, drafter, list(range(1, 11)), max_new_tokens=60, budget=FixedBudget(9))
        return [token for step in steps for token in step.tokens]

    assert text(drafted=True) == text(drafted=False)


def test_a_processor_with_a_state_is_not_asked_by_the_draft():
    class Counts:
        calls = 0

        def __call__(self, ids, scores):
            self.calls += 1
            return scores

    processor = Counts()
    target = TransformersTarget(tiny_model("llama"), Choice(LogitsProcessorList([processor])))
    tokens, _ = answer(target, EarlyExitDrafter(ExitTarget(target, 1), floor=0.0), [7, 3])
    assert processor.calls == len(tokens)


@pytest.mark.parametrize("num_layers", [-1, 0, 2, 3])
def test_an_exit_that_is_none_is_refused(num_layers):
    with pytest.raises(ForetokenError, match="the model has 2: choose from 1 to 1"):
        ExitTarget(TransformersTarget(tiny_model("llama")), num_layers)


def test_layers_out_of_reach_are_refused():
    hooked = copy.deepcopy(deeper("llama"))
    hooked.model.forward = hooked.model.forward  # as accelerate leaves it
    hidden = copy.deepcopy(deeper("llama"))
    hidden.model.layers = nn.ModuleList([nn.Sequential(*hidden.model.layers)])
    for model in (hooked, hidden):
        with pytest.raises(ForetokenError, match="does not let its layers be reached"):
            first_layers(model, 1)


def test_a_given_cache_of_windows_is_refused():
    model = tiny_model("mistral")
    target = TransformersTarget(model, cache=tf.DynamicCache(config=model.config))
    with pytest.raises(ForetokenError, match="only a window"):
        ExitTarget(target, 1)
    with pytest.raises(ForetokenError, match="only a window"):
        target.rewind(0)


def test_the_exit_draws_from_the_committed_tokens():
    """Positions count from the start of the text, or the seed's noise would be another."""
    target = TransformersTarget(tiny_model("llama"), Choice(seed=8))
    target.prefill([7, 3, 9])
    exit_target = ExitTarget(target, 1)
    exit_target.rewind(3)
    scores = exit_target.score(5, Draft())
    assert exit_target.ids.tolist() == [[7, 3, 9, 5]]
    assert scores.choose(0) == TransformersTarget(exit_target.model, Choice(seed=8)).prefill([7, 3, 9, 5]).choose(0)
    exit_target.rewind(3)
    assert {layer.get_seq_length() for layer in target.cache.states.layers} == {3}


@pytest.mark.parametrize("layer", [1, 3, 5])
def test_layers_that_share_keys_do_not_exit_early(layer):
    config = tf.Gemma3nTextConfig(
        **{**LLAMA, "num_hidden_layers": 6, "intermediate_size": [64] * 6},
        head_dim=8,
        sliding_window=16,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        layer_types=["sliding_attention", "full_attention"] * 3,
        activation_sparsity_pattern=[0.0] * 6,
        laurel_rank=4,
        altup_num_inputs=2,
    )
    model = tf.Gemma3nForCausalLM(config).eval()
    with pytest.raises(ForetokenError, match="share keys or have inputs of their own"):
        ExitTarget(TransformersTarget(model), layer)


def test_the_number_of_layers_is_a_whole_number_of_any_library():
    model = tiny_model("llama")
    assert first_layers(model, np.int64(1)).config.num_hidden_layers == 1
    for layers in (1.5, "1", True, None):
        with pytest.raises(ForetokenError, match="give a whole number"):
            first_layers(model, layers)
