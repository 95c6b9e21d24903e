"""Every argument of transformers' generate is used, with transformers' own text, or refused with a sentence."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StaticCache,
    WatermarkingConfig,
)
from transformers.generation.stopping_criteria import MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils.generic import TransformersKwargs

import foretoken
from foretoken import ForetokenError
from helpers.shapes import VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer

PROMPT = torch.tensor([[43, 6, 42, 18, 5, 9, 4, 1, 5, 9]])
OURS = Path(foretoken.__file__).parent
LENGTH = PROMPT.shape[1]
ENDS = {"eos_token_id": 7, "pad_token_id": 0}


class Streamer(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


# For each argument, a call in which it matters wherever that can be shown: then transformers' text is another one
# than without it. The others change no text of transformers' own loop, or ask for another loop.
MATTERS: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": LENGTH + 5, "max_new_tokens": None},
    "max_new_tokens": {"max_new_tokens": 5},
    "max_time": {"max_time": 0.0},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[token] for token in range(0, VOCAB, 2)]},
    "forced_eos_token_id": {"forced_eos_token_id": 3},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 9.0), **ENDS},
    "suppress_tokens": {"suppress_tokens": list(range(0, VOCAB, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": [token for token in range(VOCAB) if token != 3]},
    "sequence_bias": {"sequence_bias": [[[3], 50.0]]},
    "guidance_scale": {"guidance_scale": 3.0},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=50.0, greenlist_ratio=0.5)},
    "eos_token_id": {"eos_token_id": list(range(0, VOCAB, 3)), "pad_token_id": 0},
    "min_length": {"min_length": LENGTH + 20, "eos_token_id": list(range(0, VOCAB, 3)), "pad_token_id": 0},
    "min_new_tokens": {"min_new_tokens": 20, "eos_token_id": list(range(0, VOCAB, 3)), "pad_token_id": 0},
    "generation_config": {"generation_config": GenerationConfig(repetition_penalty=1.5, max_new_tokens=24)},
    "logits_processor": {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5)])},
    "stopping_criteria": {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(LENGTH + 4)])},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda batch, ids: [int(ids[-1] + 1) % VOCAB, 3]},
    "negative_prompt_ids": {"negative_prompt_ids": torch.tensor([[3, 3, 3]]), "guidance_scale": 3.0},
    "attention_mask": {"attention_mask": torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, 1, 1]])},
    "position_ids": {"position_ids": torch.arange(LENGTH)[None] * 3},
    "is_causal": {"is_causal": False},
    "inputs_embeds": {"inputs_embeds": torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(0))},
}
OTHERS: dict[str, dict[str, Any]] = {
    "do_sample": {"do_sample": True, "top_k": 1},
    "temperature": {"do_sample": True, "temperature": 1e-6, "top_k": 0},
    "top_k": {"do_sample": True, "top_k": 1},
    "top_p": {"do_sample": True, "top_p": 1e-6, "top_k": 0},
    "min_p": {"do_sample": True, "min_p": 1.0, "top_k": 0},
    "top_h": {"do_sample": True, "top_h": 0.4, "top_k": 1},
    "typical_p": {"do_sample": True, "typical_p": 0.5, "top_k": 1},
    "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 1e-3, "top_k": 1},
    "eta_cutoff": {"do_sample": True, "eta_cutoff": 1e-3, "top_k": 1},
    "early_stopping": {"early_stopping": True},
    "length_penalty": {"length_penalty": 2.0},
    "num_beams": {"num_beams": 3},
    "num_beam_groups": {"num_beam_groups": 2, "num_beams": 2},
    "diversity_penalty": {"diversity_penalty": 0.5},
    "constraints": {"constraints": [1], "num_beams": 2},
    "force_words_ids": {"force_words_ids": [[3]], "num_beams": 2},
    "low_memory": {"low_memory": True},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "dola_layers": {"dola_layers": "high"},
    "use_cache": {"use_cache": False},
    "cache_implementation": {"cache_implementation": "static"},
    "cache_config": {"cache_config": {"nbits": 4}},
    "max_cache_len": {"max_cache_len": 100},
    "renormalize_logits": {"renormalize_logits": True},
    "remove_invalid_values": {"remove_invalid_values": True},
    "forced_bos_token_id": {"forced_bos_token_id": 3},
    "token_healing": {"token_healing": True, "tokenizer": character_tokenizer()},
    "stop_strings": {"stop_strings": "a", "tokenizer": character_tokenizer()},
    "num_return_sequences": {"num_return_sequences": 2, "do_sample": True},
    "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
    "output_scores": {"output_scores": True, "return_dict_in_generate": True},
    "output_logits": {"output_logits": True, "return_dict_in_generate": True},
    "return_dict_in_generate": {"return_dict_in_generate": True},
    "pad_token_id": {"pad_token_id": 3},
    "bos_token_id": {"bos_token_id": 3},
    "decoder_start_token_id": {"decoder_start_token_id": 3},
    "is_assistant": {"is_assistant": True},
    "num_assistant_tokens": {"num_assistant_tokens": 3},
    "num_assistant_tokens_schedule": {"num_assistant_tokens_schedule": "heuristic"},
    "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.9},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "max_matching_ngram_size": {"max_matching_ngram_size": 3},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "assistant_lookbehind": {"assistant_lookbehind": 3},
    "target_lookbehind": {"target_lookbehind": 3},
    "assistant_ensemble_weight": {"assistant_ensemble_weight": 0.5},
    "speculation_type": {"speculation_type": "mtp"},
    "use_mtp": {"use_mtp": True},
    "compile_config": {"compile_config": CompileConfig()},
    "disable_compile": {"disable_compile": True},
    "continuous_batching_config": {"continuous_batching_config": None},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
    "transformers_version": {"transformers_version": "5"},
    "inputs": {},
    "synced_gpus": {"synced_gpus": True},
    "assistant_model": {"assistant_model": tiny_model("llama")},
    "streamer": {"streamer": None},
    "negative_prompt_attention_mask": {"negative_prompt_attention_mask": torch.ones(1, 3)},
    "custom_generate": {},
    "input_ids": {},
    "labels": {"labels": PROMPT},
    "past_key_values": {"past_key_values": StaticCache(config=tiny_model("llama").config, max_cache_len=99)},
    "logits_to_keep": {"logits_to_keep": 3},
    "tokenizer": {"tokenizer": character_tokenizer()},
    "assistant_tokenizer": {"assistant_tokenizer": character_tokenizer()},
    "trust_remote_code": {"trust_remote_code": False},
    "num_items_in_batch": {"num_items_in_batch": torch.tensor(1)},
    "output_router_logits": {"output_router_logits": False},
    "cu_seq_lens_q": {"cu_seq_lens_q": torch.tensor([0, LENGTH])},
    "cu_seq_lens_k": {"cu_seq_lens_k": torch.tensor([0, LENGTH])},
    "max_length_q": {"max_length_q": 3},
    "max_length_k": {"max_length_k": 3},
    "seq_idx": {"seq_idx": torch.zeros(1, LENGTH, dtype=torch.int)},
}


def answer(options: dict[str, Any], **hook: Any) -> list[int] | Exception:
    """The new tokens of a call, or what it raised; on a model of its own, since some arguments are kept there."""
    given: dict[str, Any] = {"attention_mask": torch.ones_like(PROMPT), "do_sample": False, "max_new_tokens": 24}
    if "generation_config" in options:
        given = {"attention_mask": given["attention_mask"]}
    try:
        model: Any = tiny_model("llama")
        out = model.generate(PROMPT, **{**given, **options}, **hook)
    except Exception as error:
        return error
    return (out if isinstance(out, torch.Tensor) else out.sequences)[:, LENGTH:].tolist()


def test_every_argument_is_in_the_sweep():
    config = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    signature = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    forward = set(inspect.signature(type(tiny_model("llama")).forward).parameters) - {"self", "kwargs"}
    extracted = {"tokenizer", "assistant_tokenizer", "trust_remote_code"}
    assert config | signature | forward | extracted | TransformersKwargs.__optional_keys__ == {*MATTERS, *OTHERS}


@pytest.mark.parametrize("name", [*MATTERS, *OTHERS])
def test_an_argument_is_used_or_refused(name):
    options = (MATTERS | OTHERS)[name]
    theirs, ours = answer(options), answer(options, custom_generate=foretoken.generate)
    if isinstance(ours, ForetokenError):
        assert str(ours).endswith(".") and ": " in str(ours)  # what is wrong, and what to do
    elif isinstance(ours, Exception):  # transformers' own refusal, before it calls the hook
        assert not any(OURS in Path(frame.filename).parents for frame in traceback.extract_tb(ours.__traceback__))
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", MATTERS)
def test_the_sweep_would_see_an_argument_that_is_ignored(name):
    without = answer({key: value for key, value in MATTERS[name].items() if key in ENDS and key != name})
    assert answer(MATTERS[name]) != without


def test_the_default_is_refused_nothing():
    assert answer({}, custom_generate=foretoken.generate) == answer({})


def test_a_streamer_is_given_what_transformers_gives():
    streamers = Streamer(), Streamer()
    answer({"streamer": streamers[0]}), answer({"streamer": streamers[1]}, custom_generate=foretoken.generate)
    assert streamers[0].tokens == streamers[1].tokens and streamers[1].ended


def test_only_the_new_tokens_beside_a_cache_are_refused():
    """Transformers takes them; what is drafted from is the whole text, so that all of it is asked for."""
    model, cache = tiny_model("llama"), DynamicCache()
    options = {"do_sample": False, "max_new_tokens": 4, "past_key_values": cache, "custom_generate": foretoken.generate}
    said = model.generate(PROMPT, attention_mask=torch.ones_like(PROMPT), **options)
    more = torch.tensor([[3, 1]])
    mask = torch.ones(1, said.shape[1] + 2, dtype=torch.long)
    with pytest.raises(ForetokenError, match="give the whole conversation"):
        model.generate(more, attention_mask=mask, **options)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]])
def test_a_mask_within_or_after_the_prompt_is_refused(mask):
    said = answer({"attention_mask": torch.tensor([mask])}, custom_generate=foretoken.generate)
    assert isinstance(said, ForetokenError) and "padding_side" in str(said)


def test_a_criterion_that_counts_is_asked_as_often():
    def counting() -> tuple[list[int], StoppingCriteriaList]:
        seen: list[int] = []

        def criterion(input_ids: torch.Tensor, scores: Any, **rest: Any) -> torch.Tensor:
            seen.append(input_ids.shape[1])
            return torch.zeros(1, dtype=torch.bool)

        return seen, StoppingCriteriaList([criterion])

    ends = {"eos_token_id": [7, 20], "pad_token_id": 0, "max_new_tokens": 60}
    (theirs, one), (ours, other) = counting(), counting()
    answer({"stopping_criteria": one, **ends})
    answer({"stopping_criteria": other, **ends}, custom_generate=foretoken.generate)
    assert theirs == ours


def test_a_stateful_processor_sees_the_calls_of_transformers_own_loop():
    def recording() -> tuple[list[list[int]], LogitsProcessorList]:
        seen: list[list[int]] = []

        def processor(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            seen.append(input_ids[0].tolist())
            return scores

        return seen, LogitsProcessorList([processor, MinNewTokensLengthLogitsProcessor(LENGTH, 3, [7, 20], "cpu")])

    ends = {"eos_token_id": [7, 20], "pad_token_id": 0, "max_new_tokens": 60}
    (theirs, one), (ours, other) = recording(), recording()
    answer({"logits_processor": one, **ends})
    answer({"logits_processor": other, **ends}, custom_generate=foretoken.generate, drafter="prompt-lookup")
    assert theirs == ours
