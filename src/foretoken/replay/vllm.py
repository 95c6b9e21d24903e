"""vLLM's draft-free methods: what to write for them in its config."""

from __future__ import annotations

from typing import Any

MIN_TREE_DEPTH = 24  # vLLM's default


def ngram_config(min_ngram: int, max_ngram: int, num_tokens: int) -> dict[str, Any]:
    """The ``--speculative-config`` of method ngram."""
    return {
        "method": "ngram",
        "num_speculative_tokens": num_tokens,
        "prompt_lookup_min": min_ngram,
        "prompt_lookup_max": max_ngram,
    }


def suffix_config(num_tokens: int, break_even: float) -> dict[str, Any]:
    """The ``--speculative-config`` of method suffix that comes closest; nothing here replays that method.

    Args:
        num_tokens: The budget that was best for chains.
        break_even: The chance at which a further guess pays for its row.
    """
    return {
        "method": "suffix",
        "num_speculative_tokens": num_tokens,
        # A match as long as the guess, as a factor of 1 asks for, and the guess itself share the depth.
        "suffix_decoding_max_tree_depth": max(MIN_TREE_DEPTH, 2 * num_tokens),
        "suffix_decoding_max_spec_factor": 1.0,
        # The method compares it with the chance of the whole path, which is what pays for a row.
        "suffix_decoding_min_token_prob": round(min(break_even, 1.0), 2),
    }
