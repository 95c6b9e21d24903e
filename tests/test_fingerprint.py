"""The fingerprint tells vocabularies apart and nothing else."""

from __future__ import annotations

import re

from foretoken.fingerprint import fingerprint
from foretoken.tokenizing import load_tokenizer
from tokenizing import character_tokenizer


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
    class Vocabulary:
        def __init__(self, vocabulary):
            self.get_vocab = lambda: vocabulary

    assert fingerprint(Vocabulary({"a": 0, "b": 1})) == fingerprint(Vocabulary({"b": 1, "a": 0}))
    assert fingerprint(Vocabulary({"a": 0, "b": 1})) != fingerprint(Vocabulary({"a": 1, "b": 0}))
