from __future__ import annotations

import random

from foretoken.drafters import PromptLookupDrafter
from foretoken.replay.vllm import ngram_config, suffix_config


def searched(text: list[int], min_ngram: int, max_ngram: int, max_tokens: int) -> list[int]:
    """What vLLM documents, by search."""
    for length in range(max_ngram, min_ngram - 1, -1):
        for start in range(len(text) - length):
            if text[start : start + length] == text[-length:]:
                return text[start + length : start + length + max_tokens]
    return []


def test_guesses_are_those_of_a_search_from_the_start():
    rng = random.Random(0)
    for _ in range(300):
        low = rng.randint(1, 3)
        high = rng.randint(low, 5)
        text = [rng.randrange(3) for _ in range(rng.randint(1, 40))]
        cut = rng.randint(0, len(text))
        drafter = PromptLookupDrafter(high, low, first=True)
        drafter.begin(text[:cut])
        drafter._extend(text[cut:])
        assert list(drafter.propose(text, 4).tokens) == searched(text, low, high, 4)


def test_configs_are_those_of_vllm():
    assert ngram_config(2, 5, 7) == {
        "method": "ngram",
        "num_speculative_tokens": 7,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 5,
    }
    config = suffix_config(15, 0.0512)
    assert config["suffix_decoding_max_tree_depth"] == 30 and config["suffix_decoding_min_token_prob"] == 0.05
    assert config["num_speculative_tokens"] == 15 and config["suffix_decoding_max_spec_factor"] == 1.0
