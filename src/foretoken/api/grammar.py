"""Answers of a given form: JSON, of any kind or after a schema, or calls, by a grammar that masks the logits.

A grammar decides which tokens may be chosen, whatever drafts. The target never chooses a token that it forbids, so such
a guess is never accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foretoken.core.errors import ForetokenError, RequestError
from foretoken.core.lazy import lazy
from foretoken.engines.base import Engine

MAX_SCHEMA = 16_384  # characters; a grammar's making takes longer than its schema grows
JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \n]{0,16}"}  # without a bound a model may write spaces for ever

Processor = Callable[[Any, Any], Any]


class Grammars:
    """Makes logits processors of JSON schemas and of grammars.

    Args:
        engine: The model; see ``Engine.grammar_tokenizer``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @lazy
    def _tokenizer(self) -> Any:
        """The model's tokens, as grammars read them."""
        try:
            return self._engine.grammar_tokenizer()
        except ModuleNotFoundError as error:
            if error.name != "llguidance":
                raise
            raise RequestError("Grammars, JSON schemas and tools need llguidance: pip install llguidance.") from error

    def of_schema(self, schema: Mapping[str, Any], name: str = "The JSON schema") -> Callable[[], Processor]:
        """Makes the processor of one answer that follows a JSON schema.

        Args:
            schema: The schema.
            name: What a message calls it.

        Raises:
            ForetokenError: If the schema cannot be followed.
        """
        try:
            text = json.dumps(dict(schema))
        except (TypeError, ValueError) as error:
            raise RequestError(f"{name} is no JSON: {error}.") from error
        _check_length(f"{name} has", text)
        self._tokenizer  # noqa: B018  # says what is missing before the next line does
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS)
        except ValueError as error:
            raise _unfit(name, str(error)) from error
        return self._of(name, grammar)

    def of_grammar(self, text: str) -> Callable[[], Processor]:
        """Makes the processor of one answer that follows a grammar, in llama.cpp's GBNF or llguidance's Lark.

        Raises:
            ForetokenError: If it does not parse, or cannot be followed.
        """
        if not isinstance(text, str) or not text.strip():
            raise RequestError("The grammar is empty: give it as text, in GBNF or Lark.")
        _check_length("The grammar has", text)
        self._tokenizer  # noqa: B018
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark

        try:
            grammar = LLMatcher.grammar_from_lark(any_to_lark(text))
        except Exception as error:  # of the converter, which knows several
            raise _unfit("The grammar", str(error)) from error
        return self._of("The grammar", grammar)

    def of_calls(self, text: str) -> Callable[[], Processor]:
        """Makes the processor of one answer that follows a grammar of calls; see ``grammar_of``.

        Raises:
            ForetokenError: If a schema in it cannot be followed.
        """
        _check_length("The functions of tools have", text)
        self._tokenizer  # noqa: B018
        from llguidance import LLMatcher

        return self._of("A schema of tools", LLMatcher.grammar_from_lark(text))

    def _of(self, what: str, grammar: str) -> Callable[[], Processor]:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(self._tokenizer, grammar)
        except ValueError as error:
            raise _unfit(what, str(error)) from error
        if matcher.is_error():
            raise _unfit(what, matcher.get_error())
        return lambda: GrammarProcessor(matcher.deep_copy(), self._engine.vocab_size)


class GrammarProcessor:
    """Leaves the tokens that a grammar allows after the answer so far. It belongs to one answer.

    It is called as transformers calls a processor, for one row at a time, or with arrays as llama-cpp-python does. Rows
    may be asked for in any order: what was read of another path is taken back.

    Args:
        matcher: The grammar, at its beginning; an ``LLMatcher``.
        vocab_size: How many logits a row has.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._num_prompt_tokens: int | None = None
        self._read: list[int] = []  # of the answer, as far as the grammar has read it

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The logits [1, vocab] that follow token ids [1, length]; those of forbidden tokens are minus infinity.

        Arrays of numpy come without the first dimension, and the logits are changed in place.
        """
        tokens: list[int] = input_ids.tolist() if input_ids.ndim == 1 else input_ids[0].tolist()
        if self._num_prompt_tokens is None:  # the prefill's row comes first
            self._num_prompt_tokens = len(tokens)
        if not self._go_to(tokens[self._num_prompt_tokens :]):
            return scores  # the row stands after a guess that is forbidden, so that it is of no use
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        forbidden = np.unpackbits(bits, bitorder="little")[: self._vocab_size] == 0
        if isinstance(scores, np.ndarray):
            scores[forbidden] = -np.inf
            return scores
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


def _check_length(what: str, text: str) -> None:
    if len(text) > MAX_SCHEMA:
        raise RequestError(f"{what} {len(text)} characters: {MAX_SCHEMA} at most can be followed.")


def _unfit(what: str, reason: str) -> ForetokenError:
    return RequestError(f"{what} cannot be followed: {reason.strip().splitlines()[0][:200]}.")
