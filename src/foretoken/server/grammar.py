"""Answers of a given form: JSON, of any kind or after a schema, by a grammar that masks the logits.

A grammar decides which tokens may be chosen, whatever drafts. The target never chooses a token that it forbids, so such
a guess is never accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from foretoken.api.language_model import LanguageModel
from foretoken.core.errors import ForetokenError, RequestError
from foretoken.core.lazy import lazy

MAX_SCHEMA = 16_384  # characters; a grammar's making takes longer than its schema grows
JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \n]{0,16}"}  # without a bound a model may write spaces for ever

Processor = Callable[[Any, Any], Any]


class Grammars:
    """Makes logits processors of JSON schemas.

    Args:
        lm: The model; its tokenizer must be a fast one of transformers.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm

    @lazy
    def _tokenizer(self) -> Any:
        """The model's tokens, as grammars read them."""
        try:
            from llguidance.hf import from_tokenizer
        except ModuleNotFoundError as error:
            raise RequestError(f"response_format needs {error.name}: the server must install it.") from error
        end = getattr(getattr(self._lm.model, "generation_config", None), "eos_token_id", None)
        if end is None:
            raise RequestError("response_format needs a model with a token that ends an answer: leave it out.")
        try:
            return from_tokenizer(self._lm.tokenizer, self._lm.engine.vocab_size, end)
        except ValueError as error:
            raise RequestError("response_format needs a fast tokenizer of transformers: leave it out.") from error

    def of_schema(self, schema: dict[str, Any]) -> Callable[[], Processor]:
        """Makes the processor of one answer that follows a JSON schema.

        Raises:
            ForetokenError: If the schema cannot be followed.
        """
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA:
            raise RequestError(f"The schema has {len(text)} characters: {MAX_SCHEMA} at most can be followed.")
        tokenizer = self._tokenizer
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS))
        except ValueError as error:
            raise _unfit(str(error)) from error
        if matcher.is_error():
            raise _unfit(matcher.get_error())
        return lambda: GrammarProcessor(matcher.deep_copy(), self._lm.engine.vocab_size)


class GrammarProcessor:
    """Leaves the tokens that a grammar allows after the answer so far. It belongs to one answer.

    It is called as transformers calls a processor, for one row at a time. Rows may be asked for in any order: what was
    read of another path is taken back.

    Args:
        matcher: The grammar, at its beginning; an ``LLMatcher``.
        vocab_size: How many logits a row has.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._num_prompt_tokens: int | None = None
        self._read: list[int] = []  # of the answer, as far as the grammar has read it

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The logits [1, vocab] that follow token ids [1, length]; those of forbidden tokens are minus infinity."""
        if self._num_prompt_tokens is None:  # the prefill's row comes first
            self._num_prompt_tokens = input_ids.shape[1]
        if not self._go_to(input_ids[0, self._num_prompt_tokens :].tolist()):
            return scores  # the row stands after a guess that is forbidden, so that it is of no use
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        forbidden = np.unpackbits(bits, bitorder="little")[: self._vocab_size] == 0
        return scores.masked_fill(scores.new_tensor(forbidden).bool(), -np.inf)

    def _go_to(self, answer: list[int]) -> bool:
        """Let the grammar have read this much; whether it allows it."""
        shared = next((i for i, (a, b) in enumerate(zip(self._read, answer, strict=False)) if a != b), None)
        shared = min(len(self._read), len(answer)) if shared is None else shared
        if shared < len(self._read):
            self._matcher.rollback(len(self._read) - shared)
        num_read = self._matcher.try_consume_tokens(answer[shared:])
        self._read = answer[: shared + num_read]
        return len(self._read) == len(answer)


def _unfit(reason: str) -> ForetokenError:
    return RequestError(f"The schema of response_format cannot be followed: {reason.strip().splitlines()[0][:200]}.")
