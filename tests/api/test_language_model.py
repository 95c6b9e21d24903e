"""Text in, text out: the door most people use."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from foretoken import FixedBudget, ForetokenError, LanguageModel
from helpers.drafting import WITHOUT_HEADS, named
from helpers.shapes import LLAMA, tiny_model
from helpers.tokenizing import character_tokenizer


@pytest.fixture
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), character_tokenizer())


OPTIONS = [
    {"max_new_tokens": 60},
    {"max_new_tokens": 60, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "seed": 7},
    {"max_new_tokens": 60, "temperature": 1.2, "min_p": 0.05, "repetition_penalty": 1.3, "seed": 2**63},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("drafter", WITHOUT_HEADS)
def test_text_is_the_same_with_and_without_drafting(lm, options, drafter):
    plain = lm.generate("hello, hello", drafter="none", **options)
    drafted = lm.generate("hello, hello", drafter=named(drafter, tiny_model("qwen2")), **options)
    assert (drafted.text, drafted.tokens, drafted.finish_reason) == (plain.text, plain.tokens, plain.finish_reason)
    assert plain.stats.drafted == 0 and plain.stats.acceptance_length == 1
    assert plain.stats.tokens == len(plain.tokens) == 60 and plain.finish_reason == "length"


def test_greedy_text_is_that_of_transformers(lm):
    ids = torch.tensor([lm.encode("abc abc ")])
    theirs = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    assert list(lm.generate("abc abc ", max_new_tokens=40, temperature=0).tokens) == theirs[0, ids.shape[1] :].tolist()


def test_a_model_whose_config_has_no_use_of_a_cache_is_answered_with_it():
    """As training with gradient checkpointing leaves it in the files of many models; no text depends on it."""
    model = LlamaForCausalLM(LlamaConfig(**LLAMA, use_cache=False)).eval()
    assert model.generation_config.use_cache is False
    lm = LanguageModel(model, character_tokenizer(), background=None)
    ids = torch.tensor([lm.encode("abc abc ")])
    theirs = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    assert list(lm.generate("abc abc ", max_new_tokens=20, temperature=0).tokens) == theirs[0, ids.shape[1] :].tolist()
    assert model.generation_config.use_cache is False, "the model is the caller's"
    with pytest.raises(ForetokenError, match="pass use_cache=True"):
        lm.generate("abc", generation_config=GenerationConfig(use_cache=False))


def test_streamed_chunks_make_up_the_text(lm):
    stream = lm.stream("abc", max_new_tokens=50, drafter="anpd", budget=FixedBudget(7))
    chunks = list(stream)
    assert "".join(chunk.text for chunk in chunks) == stream.result.text == lm.generate("abc", max_new_tokens=50).text
    # A token without text of its own, such as a special one, makes no chunk.
    assert 0 < sum(chunk.accepted for chunk in chunks) <= stream.result.stats.accepted


def test_a_stream_may_be_left(lm):
    stream = lm.stream("abc", max_new_tokens=50)
    taken = "".join(chunk.text for chunk in itertools.islice(stream, 10))
    assert stream.result.text == taken and stream.result.finish_reason is None
    assert lm.generate("abc", max_new_tokens=50).text.startswith(taken)


def test_a_seed_decides_and_torch_decides_the_seed(lm):
    def say(**options):
        return lm.generate("abc", max_new_tokens=30, temperature=1.0, **options).text

    assert say(seed=1) == say(seed=1) != say(seed=2)
    torch.manual_seed(5)
    first = say()
    assert say() != first
    torch.manual_seed(5)
    assert say(drafter="none") == first


def test_stop_strings_and_stop_tokens_end_the_answer(lm):
    whole = lm.generate("abc", max_new_tokens=60, drafter="none")
    stop = whole.text[20:23]
    end = whole.text.index(stop) + len(stop)
    for name in (*WITHOUT_HEADS, "none"):
        drafter = named(name, tiny_model("qwen2"))
        result = lm.generate("abc", max_new_tokens=60, stop=["not in it", stop], drafter=drafter)
        assert (result.text, result.finish_reason) == (whole.text[:end], "stop")
        config = GenerationConfig(eos_token_id=[whole.tokens[20], 0], pad_token_id=0)
        result = lm.generate("abc", max_new_tokens=60, generation_config=config, drafter=drafter)
        assert result.tokens == whole.tokens[: whole.tokens.index(whole.tokens[20]) + 1]
        assert result.finish_reason == "stop"


def test_the_models_own_config_is_honoured(lm):
    config = GenerationConfig(do_sample=True, temperature=0.9, top_k=8, repetition_penalty=1.2, pad_token_id=0)
    lm.model.generation_config, before = config, lm.model.generation_config
    try:
        honoured = lm.generate("abc", max_new_tokens=30, seed=3)
    finally:
        lm.model.generation_config = before
    spelled_out = lm.generate("abc", max_new_tokens=30, seed=3, temperature=0.9, top_k=8, repetition_penalty=1.2)
    assert honoured.tokens == spelled_out.tokens != lm.generate("abc", max_new_tokens=30).tokens


def test_the_context_ends_an_answer(lm):
    result = lm.generate("a" * 500, max_new_tokens=100)
    assert len(result.tokens) == 12 and result.finish_reason == "length"


def test_a_list_of_prompts_is_answered_in_order(lm):
    results = lm.generate(["abc", "def"], max_new_tokens=10)
    assert [result.text for result in results] == [lm.generate(text, max_new_tokens=10).text for text in ("abc", "def")]


def test_messages_go_through_the_chat_template(lm):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ForetokenError, match="chat template"):
        lm.generate(messages)
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }};{% endfor %}"
    assert lm.generate(messages, max_new_tokens=9).text == lm.generate("user: hi;", max_new_tokens=9).text
    assert len(lm.generate([messages, messages], max_new_tokens=5)) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 2.0}, "min_p is 2.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"drafter": "magic"}, "no drafter named 'magic': choose one of mixed, ngram, anpd"),
        ({"stop": ""}, "stop string is empty"),
    ],
)
def test_bad_options_are_refused_with_a_sentence(lm, options, said):
    with pytest.raises(ForetokenError, match=said):
        lm.generate("abc", **options)


def test_bad_prompts_are_refused_with_a_sentence(lm):
    for empty in ("", []):
        with pytest.raises(ForetokenError, match="prompt is empty"):
            lm.generate(empty)
    with pytest.raises(ForetokenError, match="600 tokens and the model's context holds 512"):
        lm.generate("a" * 600)


def test_a_budget_may_be_given(lm):
    assert lm.generate("abc", max_new_tokens=30, budget=FixedBudget(0)).stats.drafted == 0
    with pytest.raises(ValueError, match="whole number from 0 on"):
        FixedBudget(-1)
