"""A transformers tokenizer as an engine's tokens."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from foretoken.core.errors import RequestError
from foretoken.core.lazy import lazy
from foretoken.engines.base import BatchEncoder, Messages, Tools
from foretoken.engines.transformers.detokenize import Detokenizer, special_tokens
from foretoken.engines.transformers.loading import is_fault, reason
from foretoken.memory.fingerprint import fingerprint


class TransformersTokens:
    """What a tokenizer of transformers says.

    Args:
        tokenizer: Any, fast or slow.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @lazy
    def fingerprint(self) -> str:
        """16 hex digits of the vocabulary."""
        return fingerprint(self.tokenizer)

    @property
    def special_tokens(self) -> Collection[str]:
        return special_tokens(self.tokenizer).values()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        try:  # not verbose: what is too long for the model is refused in other words, and a reference never is
            return list(self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"])
        except BaseException as error:
            if not is_fault(error):
                raise
            raise RequestError(f"A text cannot be made into tokens: {reason(error)}") from error

    def encode_chat(self, messages: Messages, tools: Tools = ()) -> list[int]:
        if not self.tokenizer.chat_template:
            raise RequestError(
                "This model's tokenizer has no chat template: give the prompt as one string instead of messages."
            )
        try:
            turns = [dict(message) for message in messages]
            told: Any = {"tools": [dict(tool) for tool in tools]} if tools else {}
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **told))
        except Exception as error:  # the template is a program that came with the model
            raise RequestError(f"The chat template does not take these messages: {reason(error)}") from error
        return self.encode(text, add_special_tokens=False)

    def batch_encoder(self) -> BatchEncoder:
        # With a tokenizer of its own: a fast one cannot be set and used at once by two threads.
        own: list[PreTrainedTokenizerBase] = []

        def encode(texts: list[str]) -> list[list[int]]:
            own[:] = own or [copy.deepcopy(self.tokenizer)]
            how = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
            ids: list[list[int]] = own[0](texts, **how)["input_ids"]
            return ids

        return encode

    def detokenizer(self, prompt: Sequence[int], skip_special_tokens: bool = True) -> Detokenizer:
        return Detokenizer(self.tokenizer, prompt, skip_special_tokens=skip_special_tokens)

    def spelled(self, token: int) -> bytes:
        return self.detokenizer([token], skip_special_tokens=False).spelled(token)
