"""A tokenizer's fingerprint: sixteen digits that tell two vocabularies apart."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Mapping
from typing import Any, Protocol

from foretoken.core.errors import ForetokenError


class HasVocabulary(Protocol):
    """A tokenizer of ``tokenizers`` or of ``transformers``."""

    def get_vocab(self) -> Mapping[str, int] | Mapping[bytes, int]:
        """Every token's id, the added tokens' too."""
        ...


def fingerprint(tokenizer: HasVocabulary) -> str:
    """16 hex digits of the vocabulary; a transformers tokenizer has those of the tokenizer inside it.

    Raises:
        ForetokenError: If it has no vocabulary of texts or bytes, each with a whole number.

    >>> class Abc:
    ...     def get_vocab(self):
    ...         return {"a": 0, "b": 1, "c": 2}
    >>> fingerprint(Abc())
    'd3b2fcb08480f519'
    """
    try:
        entries: Any = tokenizer.get_vocab().items()
        vocabulary = sorted(_entry(token, id_) for token, id_ in entries)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ForetokenError(
            f"The vocabulary of this {type(tokenizer).__name__} cannot be read: its get_vocab must give a whole number "
            "for each token, a text or bytes."
        ) from error
    # A text is written as it is, so that files of earlier versions still belong to their tokenizers.
    rows = [[token if text else {"bytes": token}, id_] for text, token, id_ in vocabulary]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _entry(token: Any, id_: Any) -> tuple[bool, str, int]:
    """Whether a token is text, the text or the bytes in hexadecimal, and its id."""
    if not isinstance(token, str | bytes):
        raise TypeError
    return isinstance(token, str), token if isinstance(token, str) else token.hex(), operator.index(id_)
