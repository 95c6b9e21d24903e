"""Tokens of many texts, made beside the answers."""

from __future__ import annotations

import copy
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase


def thread_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Make tokens of texts in one other thread, with a copy of the tokenizer.

    A fast tokenizer cannot be set and used by two threads at once. The copy is made when it is first needed.
    """
    own: list[PreTrainedTokenizerBase] = []

    def encode(texts: list[str]) -> list[list[int]]:
        own[:] = own or [copy.deepcopy(tokenizer)]
        ids: list[list[int]] = own[0](texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
            "input_ids"
        ]
        return ids

    return encode
