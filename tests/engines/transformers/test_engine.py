"""The transformers engine behind the protocol: settings that a generation config has no place for."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from foretoken import FixedBudget, LanguageModel
from foretoken.engines.transformers.cost_key import cost_key
from helpers.shapes import tiny_model
from helpers.tokenizing import character_tokenizer


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(tiny_model("llama"), character_tokenizer(), background=None)


def penalised(lm, prompt, num_tokens, presence, frequency):
    """Token by token, counting by hand what the answer holds."""
    ids = lm.encode(prompt)
    start = len(ids)
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits = lm.model(torch.tensor([ids])).logits[0, -1]
            for token, count in Counter(ids[start:]).items():
                logits[token] -= presence + frequency * count
            ids.append(int(logits.argmax()))
    return tuple(ids[start:])


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.7), (-1.0, 0.5)])
def test_presence_and_frequency_count_what_the_answer_holds(lm, presence, frequency):
    penalties = {"presence_penalty": presence, "frequency_penalty": frequency}
    want = penalised(lm, "abc abc", 30, presence, frequency)
    for drafter in ("none", "anpd", "early-exit", "mixed"):
        options = {"max_new_tokens": 30, "temperature": 0, "drafter": drafter, "budget": FixedBudget(6)}
        assert lm.generate("abc abc", **options, **penalties).tokens == want
    assert want != lm.generate("abc abc", max_new_tokens=30, temperature=0).tokens


def test_processors_are_asked_in_order_and_once_for_each_token(lm):
    asked = []

    def first(ids, scores):
        asked.append(("first", ids.shape[1]))
        return scores

    def second(ids, scores):
        asked.append(("second", ids.shape[1]))
        return scores

    result = lm.generate("abc", max_new_tokens=6, processors=[first, second], drafter="anpd")
    assert asked == [(name, 3 + i) for i in range(6) for name in ("first", "second")]
    assert result.tokens == lm.generate("abc", max_new_tokens=6).tokens and result.num_prompt_tokens == 3


def test_the_key_of_costs_tells_models_dtypes_and_threads_apart(lm):
    def key(shape, dtype=torch.float32):
        return LanguageModel(tiny_model(shape, dtype=dtype), character_tokenizer(), background=None).engine.cost_key

    assert key("llama") == lm.engine.cost_key
    assert len({key("llama"), key("qwen2"), key("llama", torch.bfloat16)}) == 3


def test_saving_a_model_does_not_change_its_key(tmp_path):
    saved, other = (tiny_model.__wrapped__("llama") for _ in range(2))
    saved.save_pretrained(tmp_path)
    assert cost_key(saved) == cost_key(other)


def test_a_target_to_measure_with_chooses_by_temperature_and_seed_alone(lm, monkeypatch):
    ids = lm.encode("abc")
    with torch.inference_mode():
        best = int(lm.model(torch.tensor([ids])).logits[0, -1].argmax())
    monkeypatch.setattr(lm.model.generation_config, "bad_words_ids", [[best]])
    assert lm.engine.target().prefill(ids).choose(0) == best != lm.generate("abc", max_new_tokens=1).tokens[0]
    assert len({lm.engine.target(1.0, seed).prefill(ids).choose(0) for seed in range(20)}) > 1
