"""Which tokenizer this is: sixteen digits that tell two vocabularies apart."""

from __future__ import annotations

import hashlib
import json
from typing import Protocol


class HasVocabulary(Protocol):
    """A tokenizer of ``tokenizers`` or of ``transformers``."""

    def get_vocab(self) -> dict[str, int]:
        """Every token's id, the added tokens' too."""
        ...


def fingerprint(tokenizer: HasVocabulary) -> str:
    """16 hex digits of the vocabulary; a transformers tokenizer has those of the tokenizer inside it.

    >>> class Abc:
    ...     def get_vocab(self):
    ...         return {"a": 0, "b": 1, "c": 2}
    >>> fingerprint(Abc())
    'd3b2fcb08480f519'
    """
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
