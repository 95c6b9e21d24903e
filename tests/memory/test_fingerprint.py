"""The fingerprint tells vocabularies apart and nothing else."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from foretoken.core.errors import ForetokenError
from foretoken.memory.fingerprint import fingerprint
from foretoken.tokenizing import load_tokenizer
from helpers.tokenizing import character_tokenizer


def test_a_transformers_tokenizer_has_that_of_the_tokenizer_inside_it():
    tokenizer = character_tokenizer()
    assert fingerprint(tokenizer) == fingerprint(tokenizer.backend_tokenizer)
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(tokenizer))


def test_an_added_token_changes_it_in_both():
    tokenizer = character_tokenizer()
    before = fingerprint(tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert fingerprint(tokenizer) == fingerprint(tokenizer.backend_tokenizer) != before


def test_it_is_the_same_in_every_process():
    assert fingerprint(load_tokenizer("tiny")) == "1131c2d43948f12a"


def test_ids_count_not_their_order():
    assert fingerprint(Vocabulary({"a": 0, "b": 1})) == fingerprint(Vocabulary({"b": 1, "a": 0}))
    assert fingerprint(Vocabulary({"a": 0, "b": 1})) != fingerprint(Vocabulary({"a": 1, "b": 0}))


class Vocabulary:
    def __init__(self, entries):
        self.get_vocab = lambda: entries


def test_tokens_of_bytes_are_told_apart_from_texts_and_from_each_other():
    vocabularies = [
        {b"a": 0, b"\xff": 1},
        {b"a": 1, b"\xff": 0},
        {"a": 0, "\xff": 1},
        {"61": 0, "ff": 1},
        {"a": 0, b"a": 1},
        {"a": 1, b"a": 0},
        {b"a": 0},
        {},
        {"\ud800": 0},
        {"x": 10**30},
        {"x": -1},
        {"one": 7, "another": 7},
    ]
    assert len({fingerprint(Vocabulary(entries)) for entries in vocabularies}) == len(vocabularies)


def test_numbers_of_numpy_are_the_same_numbers():
    assert fingerprint(Vocabulary({"a": np.int64(0), "b": np.uint8(1)})) == fingerprint(Vocabulary({"a": 0, "b": 1}))


@pytest.mark.parametrize("entries", [{1: 0}, {"a": None}, {"a": 1.5}, {("a", "b"): 0}, None, ["a"]])
def test_what_is_no_vocabulary_is_a_sentence(entries):
    with pytest.raises(ForetokenError, match="The vocabulary of this Vocabulary cannot be read"):
        fingerprint(Vocabulary(entries))


def test_a_tokenizer_without_a_vocabulary_is_a_sentence():
    with pytest.raises(ForetokenError, match="The vocabulary of this object cannot be read"):
        fingerprint(object())


def test_that_of_texts_has_not_changed():
    """By it older files are known: the first digits of the SHA-256 of the sorted vocabulary as JSON."""
    written = b'[["a", 1], ["b", 0], ["\\u00e9", 2]]'
    assert fingerprint(Vocabulary({"b": 0, "a": 1, "é": 2})) == hashlib.sha256(written).hexdigest()[:16]
