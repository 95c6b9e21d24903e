"""The tokenizer of a GGUF file as an engine's tokens."""

from __future__ import annotations

import ctypes
import json
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from foretoken.core.errors import RequestError
from foretoken.core.lazy import lazy
from foretoken.engines.base import Messages, Tokens, Tools
from foretoken.engines.detokenize import BytesDetokenizer
from foretoken.engines.llama_cpp.library import GGUFModel, library
from foretoken.memory.fingerprint import fingerprint

NAMES = {"bos_token": "llama_vocab_bos", "eos_token": "llama_vocab_eos"}  # what chat templates call them


class LlamaCppTokens(Tokens):
    """What the vocabulary in a GGUF file says.

    Args:
        gguf: The file's model.
    """

    def __init__(self, gguf: GGUFModel) -> None:
        self.gguf = gguf
        calls, vocab = library(), gguf.vocab
        every = range(gguf.vocab_size)
        self._special = {token for token in every if calls.llama_vocab_is_control(vocab, token)}
        self.end_tokens = frozenset(token for token in every if calls.llama_vocab_is_eog(vocab, token))

    @property
    def vocab_size(self) -> int:
        return self.gguf.vocab_size

    @lazy
    def fingerprint(self) -> str:
        """16 hex digits of the vocabulary."""
        return fingerprint(self)

    def get_vocab(self) -> dict[bytes, int]:
        """Every token's id, by its text in the file and its id, since a file may have a text twice."""
        calls, vocab = library(), self.gguf.vocab
        return {calls.llama_vocab_get_text(vocab, id_) + b" %d" % id_: id_ for id_ in range(self.vocab_size)}

    @property
    def special_tokens(self) -> list[str]:
        return [self._piece(token, special=True).decode("utf-8", "replace") for token in sorted(self._special)]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        data = text.encode("utf-8")
        room = len(data) + 16  # no token is shorter than a byte, but those that begin and end a text
        tokens = (ctypes.c_int32 * room)()
        num = library().llama_tokenize(self.gguf.vocab, data, len(data), tokens, room, add_special_tokens, True)
        if num < 0:
            raise RequestError(f"llama.cpp cannot make tokens of a text of {len(data)} bytes: give a shorter one.")
        return list(tokens[:num])

    def encode_chat(self, messages: Messages, tools: Tools = ()) -> list[int]:
        template = library().llama_model_chat_template(self.gguf.pointer, None)
        if not template:
            raise RequestError("The GGUF file has no chat template: give the prompt as one string instead of messages.")
        names: dict[str, Any] = {name: self._named(call) for name, call in NAMES.items()}
        if tools:
            names["tools"] = [dict(tool) for tool in tools]
        text = render(template.decode("utf-8"), messages, names)
        return self.encode(text, add_special_tokens=False)

    def grammar_tokenizer(self) -> Any:
        """The tokens as llguidance's ``LLTokenizer``.

        Raises:
            ForetokenError: If no token ends an answer.
            ModuleNotFoundError: If llguidance is missing.
        """
        from llguidance.llamacpp import lltokenizer_from_vocab

        if not self.end_tokens:
            raise RequestError("A grammar or schema needs a file with a token that ends an answer: leave it out.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of calls that llguidance makes
            return lltokenizer_from_vocab(self.gguf.vocab, self.vocab_size, sorted(self.end_tokens))

    def detokenizer(self, prompt: Sequence[int], skip_special_tokens: bool = True) -> BytesDetokenizer:
        if skip_special_tokens:
            return BytesDetokenizer(lambda token: b"" if token in self._special else self._piece(token))
        return BytesDetokenizer(lambda token: self._piece(token, special=True))

    def spelled(self, token: int) -> bytes:
        return self._piece(token, special=True)

    def _piece(self, token: int, special: bool = False) -> bytes:
        """The bytes that a token stands for."""
        buffer = ctypes.create_string_buffer(64)
        for _ in range(2):
            length = library().llama_token_to_piece(self.gguf.vocab, token, buffer, len(buffer), 0, special)
            if length >= 0:
                break
            buffer = ctypes.create_string_buffer(-length)
        return buffer.raw[:length]

    def _named(self, call: str) -> str:
        """How a token that the vocabulary has a name for is written; empty if it has none."""
        token = getattr(library(), call)(self.gguf.vocab)
        return "" if token < 0 else self._piece(token, special=True).decode("utf-8", "replace")


def render(template: str, messages: Messages, names: dict[str, Any]) -> str:
    """The text of a conversation, by the template that came with the model.

    Args:
        template: In Jinja, which runs in a sandbox.
        messages: The turns.
        names: Further variables of the template.

    Raises:
        ForetokenError: If the template does not take these messages.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(said: Any) -> NoReturn:
        raise RequestError(f"The chat template does not take these messages: {said}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    turns = [dict(message) for message in messages]
    try:
        return environment.from_string(template).render(messages=turns, add_generation_prompt=True, **names)
    except RequestError:
        raise
    except Exception as error:  # the template is a program that came with the model
        raise RequestError(f"The chat template does not take these messages: {error}") from error
