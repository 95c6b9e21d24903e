"""The hook: an existing script changes one argument."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest
import torch
import transformers as tf
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, TextIteratorStreamer
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
)

import foretoken
from foretoken import AdaptiveBudget, DecodeStats, Draft, FixedBudget, ForetokenError
from foretoken.core.costs import CostCurve
from foretoken.drafters import DraftModel, EarlyExit, NgramMixer
from foretoken.engines import base
from foretoken.memory.namespace import Namespace
from helpers.drafting import WITHOUT_HEADS, named
from helpers.shapes import SMALL, VOCAB, tiny_model
from helpers.tokenizing import character_tokenizer

PROMPT = torch.tensor([[5, 9, 4, 1, 5, 9]])


MASK = torch.ones_like(PROMPT)


def ours(model, prompt=PROMPT, **options):
    options = {"attention_mask": torch.ones_like(prompt), "custom_generate": foretoken.generate, **options}
    return model.generate(prompt, **options)


def theirs(model, prompt=PROMPT, **options):
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


@pytest.mark.parametrize("shape", ["llama", "mistral", "gemma3", "gpt2"])
@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 3, "eos_token_id": [7, 8]}]
)
def test_greedy_output_is_transformers_own(shape, options):
    model = tiny_model(shape)
    options = {"max_new_tokens": 60, "do_sample": False, **options}
    assert torch.equal(ours(model, **options), theirs(model, **options))


def test_left_padding_is_passed_over():
    model = tiny_model("llama")
    prompt = torch.cat([torch.zeros(1, 3, dtype=torch.long), PROMPT], dim=1)
    mask = (torch.arange(9) >= 3).long()[None]
    options = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False}
    assert torch.equal(
        model.generate(prompt, custom_generate=foretoken.generate, **options), model.generate(prompt, **options)
    )


def wandering(model: tf.PreTrainedModel) -> tf.PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 2 / parameter.shape[1] ** 0.5, generator=torch.Generator().manual_seed(0))
    return model.eval()


def bart() -> tf.PreTrainedModel:
    """A decoder that numbers its positions by itself, padding too."""
    sizes: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    return wandering(tf.BartForCausalLM(tf.BartConfig(**SMALL, **sizes, max_position_embeddings=128)))


def padded(model, **options):
    prompt = torch.cat([torch.zeros(1, 3, dtype=torch.long), PROMPT], dim=1)
    options = {
        "attention_mask": (torch.arange(9) >= 3).long()[None],
        "max_new_tokens": 30,
        "do_sample": False,
    } | options
    return model.generate(prompt, **options)


def test_padding_is_refused_where_the_text_depends_on_it():
    model = bart()
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    plain = theirs(model, **options)
    assert torch.equal(ours(model, **options), plain)
    assert not torch.equal(padded(model, **options)[:, 3:], plain), "transformers' own text is another with padding"
    with pytest.raises(ForetokenError, match="BartForCausalLM counts padding as text"):
        padded(model, custom_generate=foretoken.generate, **options)


@pytest.mark.parametrize("kind", ["bloom", "mpt"])
def test_padding_is_passed_over_where_only_distances_count(kind):
    model = wandering(
        tf.BloomForCausalLM(tf.BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4))
        if kind == "bloom"
        else tf.MptForCausalLM(tf.MptConfig(**SMALL, d_model=32, n_heads=4, n_layers=2, max_seq_len=128))
    )
    options = {"use_cache": True}
    assert torch.equal(padded(model, custom_generate=foretoken.generate, **options), padded(model, **options))


@pytest.mark.parametrize("given", [True, False])
def test_the_cache_that_a_caller_gets_may_be_written_to(given):
    """As after transformers' own generate: whoever edits keys in place, or trains on them, is not in inference mode."""
    model = tiny_model("llama")
    options = {"max_new_tokens": 20, "return_dict_in_generate": True} | (
        {"past_key_values": DynamicCache()} if given else {}
    )
    cache = ours(model, **options).past_key_values
    assert cache.get_seq_length() == PROMPT.shape[1] + 19
    for layer in cache.layers:
        layer.keys.mul_(1.0)
        layer.values.mul_(1.0)


@pytest.mark.parametrize(
    "options",
    [{"min_new_tokens": 10, "eos_token_id": [29, 20, 7]}, {"repetition_penalty": 1.5}, {"forced_eos_token_id": 7}],
)
def test_processors_see_the_padding_that_they_were_made_for(options):
    model = tiny_model("llama")
    prompt = torch.cat([torch.zeros(1, 7, dtype=torch.long), PROMPT], dim=1)
    options = {
        "attention_mask": (torch.arange(13) >= 7).long()[None],
        "max_new_tokens": 20,
        "do_sample": False,
    } | options
    assert torch.equal(
        model.generate(prompt, custom_generate=foretoken.generate, **options), model.generate(prompt, **options)
    )


@pytest.mark.parametrize("criterion", [MaxLengthCriteria(12), EosTokenCriteria([32, 20, 1, 16])])
def test_a_callers_own_criteria_replace_the_configs(criterion):
    model = tiny_model("llama")
    options = {"max_new_tokens": 40, "do_sample": False, "stopping_criteria": StoppingCriteriaList([criterion])}
    assert torch.equal(ours(model, **options), theirs(model, **options))


def test_stop_tokens_may_be_a_tensor():
    model = tiny_model("llama")
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": torch.tensor([7, 8, 20])}
    assert torch.equal(ours(model, **options), theirs(model, **options))


def test_drafts_do_not_reach_beyond_a_position_table():
    model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()

    class Always:
        def begin(self, prompt):
            pass

        def observe(self, step):
            pass

        def propose(self, context, max_tokens):
            return Draft.chain([1] * max_tokens)

    stop_at_30 = StoppingCriteriaList([MaxLengthCriteria(30)])
    options = {"max_new_tokens": 60, "do_sample": False, "stopping_criteria": stop_at_30, "pad_token_id": 0}
    assert torch.equal(ours(model, drafter=Always(), **options), theirs(model, **options))


def test_torchs_seed_decides_a_sample_whatever_drafts():
    model, smaller = tiny_model("llama"), tiny_model("qwen2")
    options = {"do_sample": True, "temperature": 0.9, "top_p": 0.95, "max_new_tokens": 40}
    said = []
    for drafter in (*WITHOUT_HEADS, "none", None):
        torch.manual_seed(11)
        said.append(ours(model, drafter=named(drafter, smaller) if drafter else None, **options).tolist())
    assert all(text == said[0] for text in said)
    torch.manual_seed(12)
    assert ours(model, **options).tolist() != said[0]


@pytest.mark.parametrize("sample", [False, True])
def test_a_draft_model_asks_processors_of_its_own(sample):
    """One that counts its calls, behind padding; the count of drafts that come to nothing would change the text."""

    class CountsItsCalls(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids, scores):
            self.calls += 1
            return scores + 3 * torch.sin(self.calls * torch.arange(scores.shape[1]))

    model, prompt = tiny_model("llama"), torch.cat([torch.zeros(1, 3, dtype=torch.long), PROMPT], dim=1)
    said, calls = [], []
    for drafter in ("none", "draft-model"):
        torch.manual_seed(3)
        processor, stats = CountsItsCalls(), DecodeStats()
        output = model.generate(
            prompt,
            attention_mask=(torch.arange(9) >= 3).long()[None],
            logits_processor=LogitsProcessorList([processor]),
            max_new_tokens=30,
            do_sample=sample,
            custom_generate=foretoken.generate,
            budget=FixedBudget(4),
            **{"drafter": drafter} | ({} if drafter == "none" else {"draft_model": tiny_model("qwen2")}),
            stats=stats,
        )
        said.append(output.tolist())
        calls.append(processor.calls)
    assert said[0] == said[1] and stats.drafted > 30 and calls == [30, 30]


def test_statistics_are_filled_in():
    stats = DecodeStats()
    tokens = ours(tiny_model("llama"), max_new_tokens=50, do_sample=False, stats=stats)
    assert stats.tokens == 50 == tokens.shape[1] - PROMPT.shape[1]
    assert stats.steps + stats.accepted == 49 and stats.seconds > 0


@pytest.mark.parametrize("shape", ["llama", "mistral", "gemma3"])
def test_a_conversation_goes_on_in_its_cache(shape):
    model = tiny_model(shape)
    caches = [DynamicCache(config=model.config), DynamicCache(config=model.config)]
    said = PROMPT
    for turn in range(3):
        options = {"max_new_tokens": 25, "do_sample": False}
        answer = ours(model, said, past_key_values=caches[0], **options)
        assert torch.equal(answer, theirs(model, said, past_key_values=caches[1], **options))
        assert caches[0].get_seq_length() == answer.shape[1] - 1
        said = torch.cat([answer, torch.tensor([[turn, 2, 5, 9]])], dim=1)


def test_a_streamer_receives_every_token():
    tokenizer = character_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=600)
    model = tiny_model("llama")
    thread = Thread(target=ours, args=(model,), kwargs={"streamer": streamer, "max_new_tokens": 30, "do_sample": False})
    thread.start()
    text = "".join(streamer)
    thread.join()
    answer = theirs(model, max_new_tokens=30, do_sample=False)[0, PROMPT.shape[1] :]
    assert text == tokenizer.decode(answer)


def test_other_stopping_criteria_are_asked():
    class AtFive:
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([bool((input_ids[0, -1] % 5 == 0).item())])

    model = tiny_model("llama")
    options = {"max_new_tokens": 60, "do_sample": False, "stopping_criteria": StoppingCriteriaList([AtFive()])}
    answer = ours(model, **options)
    assert torch.equal(answer, theirs(model, **options)) and answer.shape[1] < 60
    at_once = StoppingCriteriaList([MaxTimeCriteria(max_time=0)])
    assert ours(model, max_new_tokens=9, do_sample=False, stopping_criteria=at_once).shape[1] == PROMPT.shape[1] + 1


def test_a_dict_is_returned_when_asked_for():
    model = tiny_model("llama")
    output = ours(model, max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
    assert output.sequences.shape == (1, 26) and output.past_key_values.get_seq_length() == 25


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        (PROMPT, {"num_beams": 2}, "num_beams is 2.*set it to 1"),
        (PROMPT.repeat(2, 1), {}, "batch has 2 sequences.*one"),
        (PROMPT, {"do_sample": True, "num_return_sequences": 3}, "batch has 3 sequences"),
        (PROMPT, {"return_dict_in_generate": True, "output_scores": True}, "output_scores is not recorded"),
        (PROMPT, {"drafter": "magic"}, "no drafter named 'magic'"),
        (PROMPT, {"inputs_embeds": torch.zeros(1, 6, 32)}, "inputs_embeds"),
        (PROMPT, {"cache_implementation": "static"}, "cache_implementation is 'static'"),
    ],
)
def test_what_cannot_be_drafted_is_refused_with_a_sentence(prompt, options, said):
    model = tiny_model("llama")
    with pytest.raises(ForetokenError, match=said):
        ours(model, prompt, max_new_tokens=5, **options)


def test_a_prompt_of_any_token_is_accepted():
    model = tiny_model("llama")
    for token in range(0, VOCAB, 7):
        assert ours(model, torch.tensor([[token]]), max_new_tokens=3, do_sample=False).shape == (1, 4)


def test_an_ngram_drafter_of_ones_own_has_an_adaptive_budget_too(monkeypatch):
    """Fixed tokens are for drafters that say nothing of their chances."""
    model = tiny_model("llama")
    budgets = []
    monkeypatch.setattr(base, "decode", lambda *args, budget, **rest: budgets.append(budget) or iter(()))
    for drafter in ("ngram", NgramMixer(), "anpd"):
        ours(model, torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False, drafter=drafter)
    assert [type(budget) for budget in budgets] == [AdaptiveBudget, AdaptiveBudget, type(None)]
    assert budgets[0] is not budgets[1]  # a drafter of one's own learns from its own caller only


def test_a_drafter_of_ones_own_begins_with_the_budget_of_its_last_call_and_with_nobody_elses(monkeypatch):
    model, own, prompt = tiny_model("llama"), NgramMixer(), torch.tensor([[1, 2, 3]])
    before: list[AdaptiveBudget | None] = []

    def new_budget(self: Namespace, costs: CostCurve) -> AdaptiveBudget:
        before.append(self._budget)
        return AdaptiveBudget(costs=costs)

    monkeypatch.setattr(Namespace, "new_budget", new_budget)
    for drafter in ("ngram", own, own, NgramMixer(), "ngram"):
        ours(model, prompt, max_new_tokens=3, do_sample=False, drafter=drafter)
    of_own, of_last = before[2], before[4]
    assert before[1] is None and of_own is not None
    assert before[3] is None and of_last is not None and of_last is not of_own


def test_a_drafter_that_takes_no_weak_reference_drafts_too():
    class Slotted(NgramMixer):
        __hash__ = None  # type: ignore[assignment]

    model, options = tiny_model("llama"), {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours(model, drafter=Slotted(), **options), theirs(model, **options))


def test_an_ngram_drafter_of_ones_own_remembers_its_answers_and_nobody_elses():
    model, own = tiny_model("llama"), NgramMixer()
    prompt, options = torch.tensor([[1, 2, 3]]), {"max_new_tokens": 12, "do_sample": False}
    answer = ours(model, prompt, drafter=own, **options)[0, 3:]
    assert own.memory.answers.num_tokens == len(answer) + 1, "and what separates it from the next"
    ours(model, prompt, drafter="ngram", **options)
    assert own.memory.answers.num_tokens == len(answer) + 1


@pytest.mark.parametrize("drafter", WITHOUT_HEADS)
def test_tensors_are_made_where_the_model_is(drafter):
    model = tiny_model("llama")
    options = {"max_new_tokens": 12, "budget": FixedBudget(6), "drafter": named(drafter, model)}
    greedy = ours(model, do_sample=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sampled = ours(model, do_sample=True, **options)
        torch.manual_seed(3)
        with torch.device("meta"):  # stands for a GPU that the model is not on
            assert torch.equal(ours(model, **options | {"do_sample": True, "attention_mask": MASK}), sampled)
    with torch.device("meta"):
        assert torch.equal(ours(model, **options | {"do_sample": False, "attention_mask": MASK}), greedy)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_training_with_gradient_checkpointing_is_refused_and_without_it_is_not():
    model = tiny_model.__wrapped__("llama").train()
    greedy = {"max_new_tokens": 9, "do_sample": False}
    assert torch.equal(ours(model, **greedy), theirs(model, **greedy))
    model.gradient_checkpointing_enable()
    for drafter in ("none", "mixed", "early-exit"):
        with pytest.raises(ForetokenError, match=r"gradient checkpointing: call model.eval\(\) first"):
            ours(model, **greedy, drafter=drafter)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"drafter": "draft-model"}, "needs a smaller model: give one as draft_model"),
        ({"drafter": "draft-model:model=tiny"}, "give a model of transformers"),
        ({"draft_model": tiny_model("qwen2")}, "draft_model is for the drafter 'draft-model', not for 'mixed'"),
        ({"draft_model": tiny_model("qwen2"), "drafter": "anpd"}, "draft_model is for the drafter 'draft-model'"),
        ({"exit_layer": 1}, "exit_layer is for the drafter 'early-exit', not for 'mixed'"),
        ({"exit_layer": 1, "drafter": "early-exit:layer=1"}, "exit_layer is for the drafter 'early-exit'"),
        ({"exit_layer": 0, "drafter": "early-exit"}, "layer is 0: give a whole number from 1 on"),
        ({"exit_layer": 2, "drafter": "early-exit"}, "choose from 1 to 1"),
        ({"drafter": "magic"}, "no drafter named 'magic'"),
    ],
)
def test_what_the_drafter_does_not_take_is_refused(options, sentence):
    with pytest.raises(ForetokenError, match=sentence):
        ours(tiny_model("llama"), max_new_tokens=3, do_sample=False, **options)


def test_a_layer_and_a_draft_model_may_stand_beside_the_drafters_name():
    model, smaller = tiny_model("llama"), tiny_model("qwen2")
    greedy = {"max_new_tokens": 20, "do_sample": False}
    plain = theirs(model, **greedy)
    for options in (
        {"drafter": "early-exit", "exit_layer": 1},
        {"drafter": "early-exit:layer=1"},
        {"drafter": EarlyExit(layer=1)},
        {"drafter": "draft-model", "draft_model": smaller},
        {"drafter": DraftModel(smaller, trees=False)},
    ):
        stats = DecodeStats()
        assert torch.equal(ours(model, **greedy, **options, stats=stats, budget=FixedBudget(3)), plain)
        assert stats.drafted > 0
